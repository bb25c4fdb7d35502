"""How a command's later stages are written: its row and its event, in one transaction."""

from dataclasses import dataclass
from typing import Any

from lading_server.clock import new_id
from lading_server.commands import ENDS, State, outcome_of
from lading_server.event import Actor, ActorType, Event, Stage
from lading_server.ledger.transaction import Transaction
from lading_server.store import commands
from lading_server.store.commands import Row


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


def record_end(
    transaction: Transaction,
    organization: str,
    command: str,
    end: End,
    agent: str | None = None,
    epoch: int | None = None,
) -> tuple[Row, int] | None:
    """Move a command to its end (or to UNKNOWN) with its event; None when it had an end already."""
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
    }
    stage = Stage.COMPLETED if end.state in ENDS else Stage.ABANDONED
    return row, transaction.append(event_of(row, stage, at, details))


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
