"""Events, filters and summaries as messages of the contract, and back."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from lading.v1 import audit_log_pb2 as pb
from lading_server import errors
from lading_server.services.resources import duration, microseconds, plain_stamp, stamp
from lading_server.store import events as log
from lading_server.store.event_filter import EventFilter, Field, Match
from lading_server.store.events import Row
from lading_server.store.summary import Summary

TIME_MAX = 2**62


def event_of(
    row: Row, erasure: Row | None = None, *, with_entry: bool = False, make: Callable[..., pb.Event] = pb.Event
) -> pb.Event:
    """An event, from its row, and that of its erasure where its details were erased. `make`: `add` of a repeated field
    makes it in its place."""
    of = log.values(row)
    raw = of["details"]
    details = json.loads(raw)
    # What columns and details both say is shown from the columns: so lists are searched by what is verified.
    targets = details.get("targets", ())
    if erasure is not None:
        targets = [(target["type"], target["id"]) for target in json.loads(of["entry"])["targets"]]
    if targets or of["target_type"] or of["target"]:
        targets = [(of["target_type"], of["target"]), *targets[1:]]
    # Plain dicts where messages would do: those are copied, by way of their bytes, and an export has a million of them.
    message = make(
        id=of["id"],
        index=of["index"],
        organization=of["organization"],
        operation=of["operation"],
        parent=of["parent"],
        stage=of["stage"],
        occurred_at=plain_stamp(of["occurred_at"]),
        recorded_at=plain_stamp(of["recorded_at"]),
        agent_time=stamp(details.get("agent_time")),
        actor=details.get("actor", {}) | {"type": of["actor_type"], "id": of["actor"], "email": of["actor_email"]},
        action=of["action"],
        method=details.get("method", ""),
        targets=[{"type": type, "id": id} for type, id in targets],
        reason=of["reason"],
        outcome=of["outcome"],
        code=of["code"],
        error=of["error"],
        messages_in=details.get("messages_in", 0),
        messages_out=details.get("messages_out", 0),
        peer=details.get("peer", ""),
        user_agent=of["source"],
        trace_id=details.get("trace_id", ""),
        request_id=of["request_id"],
        emitter={"boot_id": of["boot_id"], "sequence": of["sequence"]},
        changes=of["changes"],
        agent=of["agent"],
        count=of["count"],
        claimed_address=details.get("claimed_address", ""),
        superseded_by=of["superseded_by"],
    )
    if "duration_us" in details:
        message.duration.CopyFrom(duration(details["duration_us"]))
    if "request" in details:
        message.request.update(details["request"])
    if "diff" in details:
        message.diff.extend(details["diff"])
    if "data" in details:
        message.details.update(details["data"])
    if erasure is not None:
        message.erasure.CopyFrom(
            pb.Erasure(erased_at=stamp(erasure.erased_at), actor=erasure.actor, reason=erasure.reason)
        )
    if with_entry:
        message.entry = of["entry"]
        if of["salt"] is not None:
            message.entry_details, message.salt = raw.encode(), of["salt"]
    return message


def filter_of(message: pb.EventFilter) -> EventFilter:
    """A filter. Raises InvalidArgument for one that cannot be meant."""
    since = moment(message.since) if message.HasField("since") else None
    until = moment(message.until) if message.HasField("until") else None
    if since is not None and until is not None and since > until:
        raise errors.InvalidArgument(
            "filter.until: must not be before since", violations={"filter.until": "must not be before since"}
        )
    return EventFilter(
        since=since,
        until=until,
        matches=tuple(Match(field_of(match.field), tuple(match.values), match.negate) for match in message.matches),
        words=tuple(message.words),
        latest_only=message.latest_only,
        changes_only=message.changes_only,
    )


def moment(message: Any) -> int:
    """A Timestamp in microseconds, kept within what a database holds."""
    return max(-TIME_MAX, min(TIME_MAX, microseconds(message)))


def field_of(number: int) -> Field:
    """A field of a filter or a facet. Raises InvalidArgument for one that there is not."""
    try:
        return Field(number)
    except ValueError:
        raise errors.InvalidArgument(
            f"there is no field {number}: use one of lading.v1.Field", violations={"field": "is not known"}
        ) from None


def summary_of(summary: Summary) -> pb.SummarizeEventsResponse:
    """The counts of a summary."""
    return pb.SummarizeEventsResponse(
        total=summary.total,
        failed=summary.failed,
        buckets=[pb.Bucket(begins_at=stamp(bar.begins_at), total=bar.total, failed=bar.failed) for bar in summary.bars],
        facets=[
            pb.Facet(
                field=pb.Field.ValueType(field),
                values=[pb.FacetValue(value=of.value, total=of.total, failed=of.failed) for of in values],
            )
            for field, values in summary.facets.items()
        ],
        capped=summary.capped,
        width=duration(summary.width),
    )


def plain_struct(message: Struct) -> dict[str, Any]:
    """The JSON object in a Struct. Raises ValueError for numbers that JSON has not."""
    return {key: plain(value) for key, value in message.fields.items()}


def plain(value: Value) -> Any:
    """The JSON value in a Value; whole numbers are int."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain_struct(value.struct_value)
    if kind == "list_value":
        return [plain(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise ValueError(f"{number} is not a number of JSON")
        return int(number) if number.is_integer() else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def is_patch(diff: Any) -> bool:
    """Whether a JSON value is a JSON Patch (RFC 6902) in shape: operations with `op` and `path`."""
    return isinstance(diff, list) and all(
        isinstance(part, Mapping)
        and part.get("op") in ("add", "remove", "replace", "move", "copy", "test")
        and isinstance(path := part.get("path"), str)
        and (not path or path.startswith("/"))
        for part in diff
    )
