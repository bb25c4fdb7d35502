"""CSV and JSONL of the events of a view, streamed. The server records who exported what."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict

from lading.v1.audit_log_pb2 import Event, ExportEventsRequest, ExportEventsResponse
from lading_viewer import words
from lading_viewer.moments import COMPACT, Window, moment
from lading_viewer.view import View

FORMATS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
ROWS_MAX = 1_000_000
WHAT = f"The newest {ROWS_MAX:,} events of this view at most, times in UTC. The export itself is recorded."
COLUMNS = (
    "recorded_at",
    "user",
    "action",
    "target",
    "reason",
    "status",
    "code",
    "error",
    "agent",
    "organization",
    "source",
    "peer",
    "duration_ms",
    "operation",
    "request_id",
    "index",
    "id",
)


def addresses(view: View) -> dict[str, str]:
    """Where the exports of a view are, by format."""
    return {name: f"/export?format={name}&{view.link()}" for name in FORMATS}


def request(view: View, format_name: str) -> ExportEventsRequest:
    return ExportEventsRequest(filter=view.filter(), limit=ROWS_MAX, format=format_name)


def file_name(organization: str, window: Window, format_name: str) -> str:
    """`audit-acme-20261120T000000Z-20261121T000000Z.csv`"""
    return f"audit-{organization}-{window.begins.strftime(COMPACT)}-{window.ends.strftime(COMPACT)}.{format_name}"


def lines(batches: Iterable[ExportEventsResponse], format_name: str) -> Iterator[bytes]:
    """The file, piece by piece: one for each batch."""
    if format_name == "csv":
        yield _csv([COLUMNS])
        for batch in batches:
            yield _csv(cells(event) for event in batch.events)
    else:
        for batch in batches:
            yield b"".join(_json(event) for event in batch.events)


def cells(event: Event) -> list[str]:
    """The cells of one event, in the order of COLUMNS, none of which a spreadsheet takes for a formula."""
    duration = event.duration.ToTimedelta().total_seconds() * 1000 if event.HasField("duration") else None
    values: tuple[Any, ...] = (
        moment(event.recorded_at).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        words.user(event.actor),
        event.action,
        words.target(event),
        event.reason,
        words.status(event.outcome).word,
        words.code(event.code),
        event.error,
        event.agent,
        event.organization,
        event.user_agent,
        event.peer,
        "" if duration is None else f"{duration:.3f}",
        event.operation,
        event.request_id,
        event.index,
        event.id,
    )
    return [_harmless(str(value)) for value in values]


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _csv(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _json(event: Event) -> bytes:
    return json.dumps(MessageToDict(event, preserving_proto_field_name=True), ensure_ascii=False).encode() + b"\n"
