"""How a command's later stages are written: its row and its event, in one transaction."""

import uuid
from dataclasses import dataclass, replace
from typing import Any

from lading_server import errors
from lading_server.call import Call
from lading_server.clock import new_id
from lading_server.commands import ENDS, State, outcome_of
from lading_server.errors import Code
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger.transaction import Transaction
from lading_server.store import commands, events, rollouts
from lading_server.store.commands import Row

OPERATOR = "operator"
"""Evidence of a command that a person settled."""


@dataclass(frozen=True, slots=True)
class End:
    """What an agent says became of a command. `agent_time` and `duration` in microseconds, or None."""

    state: State
    code: int = 0
    error: str = ""
    evidence: str = ""
    container_id: str = ""
    agent_time: int | None = None
    duration: int | None = None
    exit_code: int | None = None
    session: dict[str, Any] | None = None
    """What is recorded of an exec session."""
    signature: dict[str, Any] | None = None
    """The agent's, with what it signed."""


def record_start(
    transaction: Transaction, organization: str, agent: str, command: str, epoch: int, agent_time: int | None
) -> Row | None:
    """The agent has journalled a command; None when that was known, or the session is fenced."""
    row = commands.move(
        transaction.connection,
        organization,
        command,
        State.ACKNOWLEDGED,
        epoch=epoch,
        agent=agent,
        acknowledged_at=transaction.recorded_at,
    )
    if row is not None:
        transaction.append(event_of(row, Stage.STARTED, transaction.recorded_at, {"agent_time": agent_time}))
    return row


def record_end(
    transaction: Transaction,
    organization: str,
    command: str,
    end: End,
    agent: str | None = None,
    epoch: int | None = None,
    by: Call | None = None,
) -> tuple[Row, int] | None:
    """Move a command to its end (or to UNKNOWN) with its event; None when it had an end already. `by`: the call of who
    settles it in the place of its agent."""
    at = transaction.recorded_at
    settled = {"settled_at": at} if end.state in ENDS else {}
    row = commands.move(
        transaction.connection,
        organization,
        command,
        end.state,
        agent=agent,
        epoch=epoch,
        code=int(end.code),
        error=end.error,
        evidence=end.evidence,
        **({"container_id": end.container_id} if end.container_id else {}),
        **({"exit_code": end.exit_code} if end.exit_code is not None else {}),
        **settled,
    )
    if row is None:
        return None
    details: dict[str, Any] = {
        "evidence": end.evidence,
        "agent_time": end.agent_time,
        "agent_duration_us": end.duration,
        "container_id": end.container_id,
        "duration_us": at - row.created_at,
        "agent_signature": end.signature,
        "data": {"exec": end.session} if end.session else None,
    }
    stage = Stage.COMPLETED if end.state in ENDS else Stage.ABANDONED
    event = event_of(row, stage, at, details)
    if by is not None:
        event = replace(event, actor=by.actor, reason=by.reason, source=by.user_agent)
    return row, transaction.append(event)


def record_cancel(transaction: Transaction, call: Call, command: str) -> tuple[Row, bool]:
    """Cancel a command that was not dispatched; of one in flight keep that its agent is to be asked. Whether it ended.

    Raises NotFound, FailedPrecondition.
    """
    row = find(transaction, call, command)
    if row.settled_at is not None:
        raise errors.FailedPrecondition(f"the command is {State(row.state).name} already")
    if row.state != State.PENDING:
        return commands.ask_cancel(transaction.connection, command, transaction.recorded_at), False
    end = End(State.CANCELLED, Code.CANCELLED, f"cancelled by {call.actor.id}", "never sent")
    done = record_end(transaction, call.organization, command, end)
    assert done is not None
    return done[0], True


def record_withdrawal(transaction: Transaction, row: Row) -> Row | None:
    """Take back a command whose caller was told that nothing happened, as it stood in `row`, when nobody was sent it.

    None when it ended by itself, or a session took it since: that one's agent is asked to cancel it.
    """
    end = End(State.CANCELLED, Code.UNAVAILABLE, "its caller was told UNAVAILABLE", "never sent")
    done = record_end(transaction, row.organization, row.id, end, epoch=row.epoch)
    if done is None:
        stands = commands.get(transaction.connection, row.organization, row.id)
        if stands is not None and stands.settled_at is None:
            commands.ask_cancel(transaction.connection, row.id, transaction.recorded_at)
        return None
    if row.rollout:
        rollouts.free_target(transaction.connection, row.rollout, row.id)
    return done[0]


def record_resolution(transaction: Transaction, call: Call, command: str, state: State) -> Row:
    """Settle a command whose state is UNKNOWN by what the caller has found out.

    Raises NotFound, FailedPrecondition.
    """
    row = find(transaction, call, command)
    if row.state != State.UNKNOWN:
        raise errors.FailedPrecondition(
            f"the command is {State(row.state).name}: only what became UNKNOWN is settled by an operator"
        )
    code = {State.SUCCEEDED: Code.OK, State.CANCELLED: Code.CANCELLED}.get(state, Code.UNKNOWN)
    error = "" if state is State.SUCCEEDED else f"as {call.actor.id} found out: {call.reason}"
    done = record_end(transaction, call.organization, command, End(state, code, error, OPERATOR), by=call)
    assert done is not None
    return done[0]


def find(transaction: Transaction, call: Call, command: str) -> Row:
    """A command of the caller's organization. Raises NotFound."""
    row = commands.get(transaction.connection, call.organization, command)
    if row is None:
        raise errors.NotFound(f"there is no command {command} in your organization")
    return row


def record_evidence(
    transaction: Transaction, organization: str, agent: str, command: str, end: End, epoch: int | None = None
) -> tuple[Row, int] | None:
    """An agent says what became of a command that an operator has settled, or that it cannot find out what became of
    one that is UNKNOWN already: it changes nothing, and is recorded once. None when it is no news.

    Raises Superseded for one that has no end and belongs to a newer session than that of `epoch`: an agent that took a
    receipt for its answer would forget what nobody has recorded.
    """
    row = commands.get(transaction.connection, organization, command)
    if row is None or row.agent != agent:
        return None
    if row.settled_at is None and epoch is not None and row.epoch > epoch:
        raise errors.Superseded
    said = {"state": end.state.name, "code": int(end.code), "error": end.error, "evidence": end.evidence}
    id = str(uuid.uuid5(uuid.UUID(command), f"{said}"))
    if row.state == State.UNKNOWN == end.state:
        news = (row.error, row.evidence) != (end.error, end.evidence)
        data = said
        id = str(uuid.uuid5(uuid.UUID(command), end.state.name))  # whatever words it finds next time
    else:
        news = row.evidence == OPERATOR and end.state in ENDS
        data = {**said, "settled_as": State(row.state).name, "agrees": row.state == end.state}
    if not news or events.with_ids(transaction.connection, [id]):
        return None
    index = transaction.append(
        Event(
            id=id,
            organization=organization,
            operation=id,
            parent=command,
            stage=Stage.COMPLETED,
            occurred_at=transaction.recorded_at,
            actor=Actor(ActorType.AGENT, agent),
            action="command.evidence",
            outcome=Outcome.SUCCESS,
            targets=(("command", command), *target_of(agent, row.container)),
            agent=agent,
            details={
                "data": {key: value for key, value in data.items() if value != ""},
                **({"agent_signature": end.signature} if end.signature else {}),
            },
        )
    )
    return row, index


def conflict_of(organization: str, agent: str, command: str, error: str, at: int) -> Event:
    """That an agent was sent other content under the id of a command that it has; that one goes on."""
    return Event(
        id=new_id(),
        organization=organization,
        operation=new_id(),
        parent=command,
        stage=Stage.COMPLETED,
        occurred_at=at,
        actor=Actor(ActorType.AGENT, agent),
        action="command.conflict",
        outcome=Outcome.FAILURE,
        code=Code.ALREADY_EXISTS,
        targets=(("command", command), ("agent", agent)),
        agent=agent,
        error=error,
    )


def target_of(agent: str, container: str) -> tuple[tuple[str, str], ...]:
    """The target of a command's events."""
    return (("container", f"{agent}/{container}"),) if container else (("agent", agent),)


def event_of(row: Row, stage: Stage, at: int, details: dict[str, Any]) -> Event:
    """The event of a command's later stage: its actor is who asked for it."""
    state = State(row.state)
    return Event(
        id=new_id(),
        organization=row.organization,
        operation=row.id,
        parent=row.parent,
        stage=stage,
        occurred_at=at,
        actor=Actor(ActorType(row.actor_type), row.actor, row.actor_email),
        action=row.action,
        outcome=outcome_of(state, row.code),
        code=row.code,
        changes=True,
        targets=target_of(row.agent, row.container),
        agent=row.agent,
        reason=row.reason,
        error=row.error,
        request_id=row.correlation,
        source=row.source,
        follows=True,
        details={key: value for key, value in details.items() if value not in (None, "")},
    )
