"""Messages for machines: JSON with the names of the protos (the standard mapping of Protobuf), and events as CSV."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from lading.v1 import audit_log_pb2
from lading_client import labels

CSV_HEADER = (
    "index",
    "id",
    "recorded_at",
    "occurred_at",
    "actor_type",
    "actor",
    "email",
    "on_behalf_of",
    "action",
    "targets",
    "agent",
    "reason",
    "outcome",
    "code",
    "error",
    "duration_ms",
    "diff",
    "stage",
    "operation",
    "parent",
    "request_id",
    "trace_id",
    "peer",
    "user_agent",
    "method",
    "credential",
    "count",
)


def document(message: Message) -> dict[str, Any]:
    """Field names as in the protos, all present; times RFC 3339 UTC; 64-bit integers as strings."""
    said = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {name: whole(value) for name, value in said.items()}


def whole(value: Any) -> Any:
    """Whole numbers as such: the JSON inside a message (Struct) knows only floating ones."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: whole(each) for name, each in value.items()}
        case list():
            return [whole(each) for each in value]
    return value


def json_line(message: Message) -> str:
    """One line of JSON without its end."""
    return json.dumps(document(message), ensure_ascii=False, separators=(",", ":"))


def csv_row(event: audit_log_pb2.Event) -> list[str]:
    """Cells under CSV_HEADER, safe to open in a spreadsheet."""
    ended = event.outcome != audit_log_pb2.OUTCOME_UNSPECIFIED
    duration = event.duration.ToMicroseconds() / 1000 if event.HasField("duration") else None
    diff = document(event)["diff"] if event.HasField("diff") else None
    cells = (
        str(event.index),
        event.id,
        labels.rfc3339(event.recorded_at),
        labels.rfc3339(event.occurred_at),
        labels.actor_type(event.actor),
        event.actor.id,
        event.actor.email,
        event.actor.on_behalf_of,
        event.action,
        " ".join(f"{target.type}:{target.id}" for target in event.targets),
        event.agent,
        event.reason,
        labels.outcome(event),
        labels.code(event.code) if ended else "",
        event.error,
        "" if duration is None else f"{duration:g}",
        json.dumps(diff, ensure_ascii=False, separators=(",", ":")) if diff else "",
        labels.stage(event),
        event.operation,
        event.parent,
        event.request_id,
        event.trace_id,
        event.peer,
        event.user_agent,
        event.method,
        event.actor.credential,
        str(event.count),
    )
    return [inert(cell) for cell in cells]


def inert(cell: str) -> str:
    """The cell with an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
