"""What a caller asks of an agent, and how it is recorded: its row and its intent, in one transaction."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lading_server import errors, names
from lading_server.call import Call
from lading_server.clock import new_id
from lading_server.commands import State
from lading_server.ends import target_of
from lading_server.event import Event, Outcome, Stage
from lading_server.ledger.transaction import Proof, Sight, Transaction
from lading_server.store import commands
from lading_server.store.commands import Row


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
    """
    at = transaction.recorded_at
    epoch = None if to is None else to[0]
    command = new_id()
    actor = call.actor
    values: dict[str, Any] = {
        "id": command,
        "organization": call.organization,
        "agent": order.agent,
        "container": order.container,
        "verb": order.verb,
        "arguments_shown": order.arguments_shown,
        "fingerprint": fingerprint_of(command, order),
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
    """Raise AlreadyExists unless a repeated call asks for the same."""
    if known.fingerprint != fingerprint_of(known.id, order):
        raise errors.AlreadyExists(
            f"request_id {order.request_id} was used for another call, command {known.id}: choose a new one",
            metadata={"command": names.command_name(known.id)},
        )


def fingerprint_of(command: str, order: Order) -> bytes:
    """Digest of what is asked, salted with the command's id because the arguments may hold secrets."""
    digest = hashlib.sha256(command.encode())
    for part in (order.agent, order.container, str(order.verb)):
        digest.update(part.encode() + b"\0")
    digest.update(hashlib.sha256(order.arguments).digest() + hashlib.sha256(order.precondition).digest())
    return digest.digest()
