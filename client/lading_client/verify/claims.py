"""Whether what is shown of an event is what its entry, and the details it commits to, say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lading.transparency.entry import VERSION
from lading.transparency.jcs import INTEGER_MAX
from lading.v1 import audit_log_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.struct_pb2 import Value
    from google.protobuf.timestamp_pb2 import Timestamp

STAGES = {number: name.removeprefix("STAGE_") for name, number in pb.Stage.items()}
OUTCOMES = {number: name.removeprefix("OUTCOME_") for name, number in pb.Outcome.items()} | {0: "PENDING"}
ACTORS = {number: name.removeprefix("ACTOR_TYPE_").lower() for name, number in pb.ActorType.items()}
OF_DETAILS = (
    *("actor.auth_method", "actor.credential", "actor.email", "actor.name", "actor.on_behalf_of"),
    *("agent", "error", "reason", "request_id", "method", "peer", "trace_id", "claimed_address", "user_agent"),
    *("messages_in", "messages_out", "changes", "count", "duration", "agent_time"),
)

STRANGE = object()
"""Equal to nothing that was recorded, and nothing that JSON has."""
KEPT = ("agent", "changes", "count")
"""What is shown of an event still whose details were erased, unproven: the server needs it to find and to count it."""


def shown_entry(event: pb.Event, commitment: str) -> dict[str, Any]:
    """The entry that says what is shown of an event, whose details it commits to so. STRANGE where none can say it."""
    actor, emitter = event.actor, event.emitter
    return {
        "action": event.action,
        "actor": {"id": actor.id, "type": ACTORS.get(actor.type, STRANGE)},
        "code": event.code,
        "details": commitment,
        "emitter": {"boot_id": emitter.boot_id, "sequence": _whole(emitter.sequence)},
        "id": event.id,
        "occurred_at": _whole(_microseconds(event.occurred_at)),
        "operation": event.operation,
        "organization": event.organization,
        "outcome": OUTCOMES.get(event.outcome, STRANGE),
        "parent": event.parent,
        "recorded_at": _whole(_microseconds(event.recorded_at)),
        "stage": STAGES.get(event.stage, STRANGE),
        "targets": [{"id": one.id, "type": one.type} for one in event.targets],
        "v": VERSION,
    }


def first_difference(event: pb.Event, entry: Mapping[str, Any], details: Mapping[str, Any] | None) -> str:
    """Name of a field that is shown as something else than what was recorded; empty when there is none.

    `details` is None where they were erased: then what is in the entry is compared, and the rest must not be there.
    """
    shown = shown_entry(event, entry["details"])
    if shown != entry:
        return next(name for name, value in shown.items() if value != entry[name])
    return _first_left(event) if details is None else first_of_details(event, details)


def first_of_details(event: pb.Event, details: Mapping[str, Any]) -> str:
    """The same of what only the details say."""
    shown, recorded = _shown_of_details(event), _details(details)
    if shown != recorded:
        return next(name for name, one, other in zip(OF_DETAILS, shown, recorded, strict=True) if one != other)
    if event.HasField("request") != ("request" in details) or event.HasField("details") != ("data" in details):
        return "details" if event.HasField("request") == ("request" in details) else "request"
    if "request" in details and not _same_struct(event.request.fields, details["request"]):
        return "request"
    if "data" in details and not _same_struct(event.details.fields, details["data"]):
        return "details"
    if event.HasField("diff") != ("diff" in details):
        return "diff"
    return "" if "diff" not in details or _same_list(event.diff.values, details["diff"]) else "diff"


def _first_left(event: pb.Event) -> str:
    """Name of a field of an event that was erased which shows something all the same: nothing proves it."""
    for name in ("request", "details", "diff"):
        if event.HasField(name):
            return name
    shown = zip(OF_DETAILS, _shown_of_details(event), _details({}), strict=True)
    return next((name for name, one, blank in shown if one != blank and name not in KEPT), "")


# Tuples, compared at once: a log may have millions of events.


def _shown_of_details(event: pb.Event) -> tuple[Any, ...]:
    actor = event.actor
    return (
        actor.auth_method,
        actor.credential,
        actor.email,
        actor.name,
        actor.on_behalf_of,
        event.agent,
        event.error,
        event.reason,
        event.request_id,
        event.method,
        event.peer,
        event.trace_id,
        event.claimed_address,
        event.user_agent,
        event.messages_in,
        event.messages_out,
        event.changes,
        event.count,
        _microseconds(event.duration) if event.HasField("duration") else None,
        _microseconds(event.agent_time) if event.HasField("agent_time") else None,
    )


def _details(details: Mapping[str, Any]) -> tuple[Any, ...]:
    get = details.get
    actor = get("actor", {}).get
    return (
        actor("auth_method", ""),
        actor("credential", ""),
        actor("email", ""),
        actor("name", ""),
        actor("on_behalf_of", ""),
        get("agent", ""),
        get("error", ""),
        get("reason", ""),
        get("request_id", ""),
        get("method", ""),
        get("peer", ""),
        get("trace_id", ""),
        get("claimed_address", ""),
        get("source", ""),
        get("messages_in", 0),
        get("messages_out", 0),
        get("changes", False),
        get("count", 1),
        get("duration_us"),
        get("agent_time"),
    )


def _microseconds(moment: Timestamp | Duration) -> Any:
    # Nothing is recorded more finely: what is shown so is not what was recorded.
    return STRANGE if moment.nanos % 1000 else moment.seconds * 1_000_000 + moment.nanos // 1000


def _whole(number: Any) -> Any:
    return number if number is not STRANGE and -INTEGER_MAX <= number <= INTEGER_MAX else STRANGE


def _same_struct(shown: Mapping[str, Value], recorded: Any) -> bool:
    if not isinstance(recorded, dict) or len(shown) != len(recorded):
        return False
    return all(name in shown and _same(shown[name], value) for name, value in recorded.items())


def _same_list(shown: Sequence[Value], recorded: Any) -> bool:
    if not isinstance(recorded, list) or len(shown) != len(recorded):
        return False
    return all(map(_same, shown, recorded))


def _same(shown: Value, recorded: Any) -> bool:
    match shown.WhichOneof("kind"):
        case "struct_value":
            return _same_struct(shown.struct_value.fields, recorded)
        case "list_value":
            return _same_list(shown.list_value.values, recorded)
        case "null_value":
            return recorded is None and shown.null_value == 0
        case "bool_value":
            return recorded is shown.bool_value
        case "number_value":
            number = isinstance(recorded, int | float) and not isinstance(recorded, bool)
            return number and shown.number_value == recorded
        case "string_value":
            return bool(shown.string_value == recorded)
        case _:
            return False
