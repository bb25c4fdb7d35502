"""What a caller asks of an agent, and how it is recorded: its row and its intent, in one transaction."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lading_server import errors, fingerprints, names
from lading_server.call import Call
from lading_server.clock import new_id
from lading_server.commands import State
from lading_server.ends import target_of
from lading_server.event import Event, Outcome, Stage
from lading_server.ledger.transaction import Proof, Sight, Transaction
from lading_server.store import agents, commands, requests, rollouts
from lading_server.store.commands import Row
from lading_server.store.reader import Reader


@dataclass(frozen=True, slots=True)
class Order:
    """What a caller asks an agent to do; durations in microseconds, messages serialized."""

    agent: str
    container: str
    verb: int
    action: str
    arguments: bytes
    arguments_shown: bytes
    precondition: bytes
    deliver_within: int
    execute_within: int
    reason: str
    request_id: str
    detach: bool
    rollout: str = ""
    """UUID of the rollout it is part of, and its target's number there."""
    number: int = -1
    id: str = ""
    """UUID that its command is to have; empty: a new one."""
    fields: Mapping[str, bytes] = field(default_factory=dict)
    """What the caller said, by the names of the request's fields: a repeated call must say the same."""

    @property
    def content(self) -> dict[str, bytes]:
        """What must be the same when it is asked for again."""
        said = dict(self.fields) or {"arguments": self.arguments, "precondition": self.precondition}
        return {**said, "name": f"{self.agent}/{self.container}".encode(), "method": str(self.verb).encode()}


def record_order(
    transaction: Transaction,
    call: Call,
    order: Order,
    seal: Callable[[dict[str, Any], bytes], bytes],
    to: tuple[int, Sight] | None,
) -> tuple[Row, Proof | None]:
    """Make the command with its intent in the log of the caller: PENDING, or DISPATCHED `to` a session.

    The session is given by its epoch and what its agent was shown of the log; then the proof of the intent is for it.
    `seal` makes the bytes that the agent gets, from the command's columns and arguments.
    Raises NotRunning for a target of a rollout that was halted, or where another replica was faster.
    """
    at = transaction.recorded_at
    epoch = None if to is None else to[0]
    command = order.id or new_id()
    if order.rollout and not rollouts.begin_target(transaction.connection, order.rollout, order.number, command):
        raise errors.NotRunning
    actor = call.actor
    values: dict[str, Any] = {
        "id": command,
        "organization": call.organization,
        "agent": order.agent,
        "container": order.container,
        "verb": order.verb,
        "arguments_shown": order.arguments_shown,
        "fingerprint": fingerprints.digest(order.content).encode() if order.request_id else b"",
        "precondition": order.precondition,
        "state": int(State.PENDING if epoch is None else State.DISPATCHED),
        "epoch": epoch or 0,
        "action": order.action,
        "reason": order.reason,
        "actor_type": int(actor.type),
        "actor": actor.id,
        "actor_email": actor.email,
        "source": call.user_agent,
        "correlation": call.request_id,
        "request_id": order.request_id,
        "parent": call.operation,
        "created_at": at,
        "dispatched_at": None if epoch is None else at,
        "acknowledged_at": None,
        "settled_at": None,
        "deliver_by": at + order.deliver_within,
        "execute_within": order.execute_within,
        "code": 0,
        "error": "",
        "evidence": "",
        "container_id": "",
        "rollout": order.rollout,
    }
    values["envelope"] = seal(values, order.arguments)
    details = {
        "deliver_by": values["deliver_by"],
        "execute_within_us": order.execute_within,
        # What the agent holds the bytes against: it executes nothing else than what is recorded here.
        "envelope": base64.b64encode(hashlib.sha256(values["envelope"]).digest()).decode(),
    }
    if "request" in call.details:
        details["request"] = call.details["request"]
    intent = Event(
        id=new_id(),
        organization=call.organization,
        operation=command,
        parent=call.operation,
        stage=Stage.RECEIVED,
        occurred_at=at,
        actor=actor,
        action=order.action,
        outcome=Outcome.PENDING,
        changes=True,
        targets=target_of(order.agent, order.container),
        agent=order.agent,
        reason=order.reason,
        request_id=call.request_id,
        source=call.user_agent,
        details=details,
    )
    proof = None if to is None else transaction.prove(intent, to[1])
    index = transaction.append(intent) if proof is None else proof.index
    return commands.insert(transaction.connection, {**values, "event_index": index}), proof


def check_same(known: Row, order: Order) -> None:
    """Raise AlreadyExists, naming what differs, unless a repeated call asks for the same."""
    differing = fingerprints.differences(known.fingerprint, order.content)
    if differing:
        name = names.command_name(known.id)
        raise errors.already_used(order.request_id, f"command {known.id}", differing, command=name)


def check_unused(known: requests.Row | None, order: Order) -> None:
    """Raise AlreadyExists when a call of another kind was made under the key."""
    if known is not None:
        operation = known.operation
        raise errors.already_used(order.request_id, f"operation {operation}", ["method"], first=operation)


def check_agent(row: agents.Row | None, agent: str) -> agents.Row:
    """Raise unless the agent exists and takes commands."""
    if row is None:
        raise errors.NotFound(f"there is no agent {agent} in your organization: see `lading agents ls`")
    if row.banned:
        raise errors.FailedPrecondition(f"agent {agent} is banned", metadata={"agent": agent})
    if row.quarantined:
        raise errors.AgentCloned(
            f"agent {agent} is quarantined: two processes used its name at once. See `lading audit ls "
            f"action:agent.clone agent:{agent}`, stop one of them, then `lading agents unban {agent}`",
            metadata={"agent": agent},
        )
    if row.drained:
        raise errors.FailedPrecondition(
            f"agent {agent} is drained and takes no commands: `lading agents resume {agent}`", metadata={"agent": agent}
        )
    return row


async def require_online(reader: Reader, call: Call, order: Order, at: int) -> None:
    """Raise AgentOffline unless the agent is connected, to whichever process, or the order was placed before. `at`:
    now."""
    organization, agent = call.organization, order.agent
    if order.request_id:
        known = await reader.read(commands.get_by_request, organization, call.actor.id, order.request_id)
        if known is not None:
            return  # its answer may be known already
    row = check_agent(await reader.read(agents.get, organization, agent), agent)
    if not row.connected or row.lease_until <= at:
        seconds = (at - (row.last_seen_at or 0)) // 1_000_000
        raise errors.AgentOffline(
            f"agent {agent} is not connected, it was last heard {seconds} s ago: "
            "start it, or repeat the call with detach to have it done when it is back",
            metadata={"agent": agent},
        )
