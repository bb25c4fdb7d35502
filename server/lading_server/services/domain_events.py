"""Events that services record of their own: what RecordEvents makes of its request, and when it was there before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lading.v1 import audit_log_pb2 as pb
from lading_server import errors
from lading_server.call import Call
from lading_server.event import Event, Outcome, Stage
from lading_server.ledger import rows
from lading_server.ledger.transaction import Transaction
from lading_server.services.messages import is_patch, moment, plain, plain_struct
from lading_server.store import events as log
from lading_server.store.events import Row

AHEAD_MAX = 5 * 60 * 1_000_000
"""Microseconds that a service's clock may be ahead."""
EARLIEST = -8_520_336_000_000_000
"""1700-01-01: what entries can say of times, as integers of JSON, ends a little before."""
BYTES_MAX = 32 * 1024
OUTCOMES = {int(outcome) for outcome in Outcome}
CONTENT = (
    *("stage", "occurred_at", "actor_type", "actor", "action", "target_type", "target", "agent", "outcome", "reason"),
    *("error", "request_id"),
)
"""Columns that are what the service said; with `details.diff`, `.data`, `.targets` and on whose behalf."""
ERASABLE = {"reason", "error", "request_id"}


def events_of(call: Call, request: pb.RecordEventsRequest, now: int) -> list[Event]:
    """The events of a request. Raises InvalidArgument, naming the first one that cannot be recorded."""
    found = [event_of(call, message, number, now) for number, message in enumerate(request.events)]
    if len({event.id for event in found}) < len(found):
        raise refusal("events", "must have ids of their own: two are the same")
    return found


def event_of(call: Call, message: pb.NewEvent, number: int, now: int) -> Event:
    """One event of a request, as the caller's. `now`: microseconds since the epoch."""
    at = f"events[{number}]"
    occurred_at = moment(message.occurred_at) if message.HasField("occurred_at") else now
    if occurred_at > now + AHEAD_MAX:
        raise refusal(f"{at}.occurred_at", "must not be more than 5 minutes ahead of the server's clock")
    if occurred_at < EARLIEST:
        raise refusal(f"{at}.occurred_at", "must not be before 1700")
    try:
        diff = [plain(part) for part in message.diff.values]
        data = plain_struct(message.details)
    except ValueError as failure:
        raise refusal(at, str(failure)) from None
    if not is_patch(diff):
        raise refusal(f"{at}.diff", 'must be a JSON Patch: a list of {"op": …, "path": "/…", …}')
    if message.outcome not in OUTCOMES:
        raise refusal(f"{at}.outcome", "is not known")
    details: dict[str, Any] = {"peer": call.peer}
    if diff:
        details["diff"] = diff
    if data:
        details["data"] = data
    targets = tuple((target.type, target.id) for target in message.targets)
    event = Event(
        id=message.id,
        organization=call.organization,
        operation=message.id,
        parent=call.operation,
        stage=Stage.COMPLETED,
        occurred_at=occurred_at,
        actor=replace(call.actor, on_behalf_of=message.on_behalf_of),
        action=message.action,
        outcome=Outcome(message.outcome or Outcome.SUCCESS),
        changes=True,
        targets=targets,
        agent=agent_of(targets),
        reason=message.reason,
        error=message.error,
        request_id=message.request_id,
        source=call.user_agent,
        details=details,
    )
    if sum(len(value.encode()) for value in rows.encode(event, 0, 0, "", 0) if isinstance(value, str)) > BYTES_MAX:
        raise refusal(at, f"must have at most {BYTES_MAX} bytes as JSON")
    return event


def record(transaction: Transaction, events: Sequence[Event], timed: Mapping[str, bool]) -> list[int]:
    """Append events that are not there yet; the indexes of all. `timed`: by id, whether the service said when.

    Raises AlreadyExists when an id stands for something else, and then nothing is recorded.
    """
    before = {row.id: row for row in log.with_ids(transaction.connection, [event.id for event in events])}
    for event in events:
        if event.id in before and not is_same(before[event.id], event, timed=timed[event.id]):
            raise errors.AlreadyExists(f"the id {event.id} stands for another event: give each event an id of its own")
    return [before[event.id].index if event.id in before else transaction.append(event) for event in events]


def is_same(row: Row, event: Event, *, timed: bool) -> bool:
    """Whether a row is this event, recorded before. Of one that was erased what is left is compared."""
    again = dict(zip(rows.COLUMNS, rows.encode(event, 0, 0, "", 0), strict=True))
    erased = row.salt is None
    left_out = ({"occurred_at"} if not timed else set()) | (ERASABLE if erased else set())
    return (
        row.organization == event.organization
        and all(row._mapping[name] == again[name] for name in CONTENT if name not in left_out)
        and (erased or said(row.details) == said(again["details"]))
    )


def said(details: str) -> tuple[Any, ...]:
    """What a service said, of the details of an event."""
    found = json.loads(details)
    return *(found.get(key) for key in ("diff", "data", "targets")), found["actor"].get("on_behalf_of")


def agent_of(targets: Sequence[tuple[str, str]]) -> str:
    """The agent that the targets name, if any."""
    for type, id in targets:
        if type == "agent":
            return id
        if type == "container" and "/" in id:
            return id.partition("/")[0]
    return ""


def refusal(field: str, sentence: str) -> errors.InvalidArgument:
    """The error for a field of the request."""
    return errors.InvalidArgument(f"{field}: {sentence}", violations={field: sentence})
