"""What happened in runtimes without a command of ours: each change is an event of its agent, marked out of band."""

import uuid
from typing import Any

from lading.v1 import agent_link_pb2
from lading_server import errors
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger.transaction import Transaction
from lading_server.names import ID
from lading_server.services.resources import text, time_of
from lading_server.sessions import Session
from lading_server.store import events as log

ACTION = "container.drift"
CHANGES_MAX = 1_000
ATTRIBUTES_MAX = 32


def events_of(session: Session, drift: agent_link_pb2.Drift, at: int) -> list[Event]:
    """The events of a frame. `at`: now, for what carries no time. Raises InvalidArgument."""
    if len(drift.changes) > CHANGES_MAX:
        raise errors.InvalidArgument(f"a frame holds more than {CHANGES_MAX} changes")
    found = []
    if drift.HasField("gap_since"):
        since, until = time_of(drift, "gap_since"), time_of(drift, "seen_until")
        data: dict[str, Any] = {"action": "gap", "since_us": since, "until_us": until, "out_of_band": True}
        id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{session.organization}/{session.agent} {since}"))
        error = "the runtime has forgotten what happened meanwhile"
        found.append(event_of(session, id, since or at, ("agent", session.agent), data, Outcome.UNKNOWN, error))
    for change in drift.changes:
        known = ID.fullmatch(change.container)
        target = ("container", f"{session.agent}/{change.container}") if known else ("agent", session.agent)
        data = {
            "action": text(change.action, 64),
            "container_id": text(change.container_id, 128),
            "attributes": {
                text(key, 128): text(value, 1024) for key, value in list(change.attributes.items())[:ATTRIBUTES_MAX]
            },
            "out_of_band": True,
        }
        happened_at = time_of(change, "happened_at") or at
        found.append(event_of(session, uuid_of(change.id), happened_at, target, data))
    return found


def event_of(
    session: Session,
    id: str,
    at: int,
    target: tuple[str, str],
    data: dict[str, Any],
    outcome: Outcome = Outcome.SUCCESS,
    error: str = "",
) -> Event:
    """An event that the agent reports."""
    return Event(
        id=id,
        organization=session.organization,
        operation=id,
        stage=Stage.COMPLETED,
        occurred_at=at,
        actor=Actor(ActorType.AGENT, session.agent),
        action=ACTION,
        outcome=outcome,
        changes=True,
        targets=(target,),
        agent=session.agent,
        error=error,
        details={"data": {key: value for key, value in data.items() if value not in (None, "", {})}},
    )


def record(transaction: Transaction, events: list[Event]) -> int:
    """Append those that are not in the log yet: an agent tells again what may have been lost. How many are new."""
    known = {row.id for row in log.with_ids(transaction.connection, [event.id for event in events])}
    new = {event.id: event for event in events if event.id not in known}
    for event in new.values():
        transaction.append(event)
    return len(new)


def uuid_of(id: str) -> str:
    """The id of a change. Raises InvalidArgument."""
    try:
        return str(uuid.UUID(id))
    except ValueError:
        raise errors.InvalidArgument("the id of a change must be a UUID") from None
