"""CSV and JSONL of the events of a view, streamed. The server records who exported what."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from lading.v1.audit_log_pb2 import ExportEventsRequest, ExportEventsResponse
from lading_client.documents import CSV_HEADER, csv_row, json_line
from lading_viewer.moments import COMPACT, Window
from lading_viewer.view import View

FORMATS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
ROWS_MAX = 1_000_000
WHAT = f"The newest {ROWS_MAX:,} events of this view at most, times in UTC. The export itself is recorded."


def addresses(view: View) -> dict[str, str]:
    """Where the exports of a view are, by format."""
    return {name: f"/export?format={name}&{view.link()}" for name in FORMATS}


def request(view: View, format_name: str) -> ExportEventsRequest:
    return ExportEventsRequest(filter=view.filter(), limit=ROWS_MAX, format=format_name)


def file_name(organization: str, window: Window, format_name: str) -> str:
    """`audit-acme-20261120T000000Z-20261121T000000Z.csv`"""
    return f"audit-{organization}-{window.begins.strftime(COMPACT)}-{window.ends.strftime(COMPACT)}.{format_name}"


def lines(batches: Iterable[ExportEventsResponse], format_name: str) -> Iterator[bytes]:
    """The file, piece by piece: one for each batch. As `lading audit export` writes it."""
    if format_name == "csv":
        yield _csv([CSV_HEADER])
    for batch in batches:
        if format_name == "csv":
            yield _csv(csv_row(event) for event in batch.events)
        else:
            yield "".join(f"{json_line(event)}\n" for event in batch.events).encode()


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
