"""`lading audit export`: everything that matches, into a file that is whole or not there."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from typing import IO, TYPE_CHECKING, TypeVar

import click

from lading_client.cli.events import QUERY, QueryCommand, read_query
from lading_client.cli.invocation import Invocation, pass_invocation

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Event, EventFilter
    from lading_client.client import Client

Item = TypeVar("Item")
TOLD_EVERY = 0.5  # seconds


@click.command(
    cls=QueryCommand,
    params=list(QUERY),
    examples="""
    lading audit export --since 30d --format csv --out audit.csv
    lading audit export 'action:rbac.*' --format jsonl | jq .actor.email
    lading audit export --since 30d --with-proofs --out audit.jsonl
    lading audit export --tiles acme-log""",
)
@click.option("--format", "kind", type=click.Choice(["csv", "jsonl"]), default="jsonl", help="Format. [jsonl]")
@click.option("--out", type=click.Path(dir_okay=False), metavar="FILE", help="File to write; replaced at the end.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Most events. [1 000 000]")
@click.option("--with-proofs", is_flag=True, help="JSON Lines that `lading audit verify --file` can check.")
@click.option(
    "--tiles",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="The whole log as a folder of tiles (C2SP) instead.",
)
@click.option("--last-only", is_flag=True, help="Only the last word on each operation.")
@pass_invocation
def export(
    invocation: Invocation,
    words: Sequence[str],
    changes: bool,
    since: datetime | None,
    until: datetime | None,
    kind: str,
    out: str | None,
    limit: int,
    with_proofs: bool,
    tiles: str | None,
    last_only: bool,
) -> None:
    """Write all events that match, newest first, every stage of each operation. The export itself is recorded.

    A folder of tiles goes on where it was left; it holds entries only, no details.
    """
    if tiles is not None:
        if words or changes or since or until or limit or last_only or with_proofs or out or kind != "jsonl":
            raise click.UsageError("--tiles is of the whole log: it goes with no other option.")
        _write_tiles(invocation, pathlib.Path(tiles))
        return
    asked = read_query(invocation, words, changes, since, until).filter
    asked.latest_only = last_only
    if with_proofs:
        if kind != "jsonl":
            raise click.UsageError("--with-proofs is for JSON Lines.")
        _write_proofs(invocation, asked, limit, out)
        return
    events = _told(invocation, _events(invocation.client, asked, limit, kind))
    with file_at(out) as file:
        for line in csv_lines(events) if kind == "csv" else _json_lines(events):
            file.write(line + "\n")


def _write_tiles(invocation: Invocation, folder: pathlib.Path) -> None:
    from lading_client.cli.audit_verify import open_log, progress, refusing
    from lading_client.verify import tile_folder

    with refusing(invocation):
        answer, key = open_log(invocation)
        checkpoint = tile_folder.write(invocation.client, folder, answer, key, progress("tiles"))
    invocation.say(f"{folder} holds the log up to #{checkpoint.size - 1}.")


def _write_proofs(invocation: Invocation, asked: EventFilter, limit: int, out: str | None) -> None:
    from lading_client.cli.audit_verify import open_log, refusing
    from lading_client.verify import exported

    with refusing(invocation):
        # The checkpoint first: an event that comes later is left to the next export.
        answer, key = open_log(invocation)
        events = _events(invocation.client, asked, limit, "jsonl", with_entries=True)
        lines = exported.lines(invocation.client, answer, key, events)
        with file_at(out) as file:
            file.write(next(lines) + "\n")
            for line in _told(invocation, lines):
                file.write(line + "\n")


def csv_lines(events: Iterable[Event]) -> Iterator[str]:
    """Lines of CSV (RFC 4180) without their ends, the heading first. A quoted cell may hold line breaks."""
    from lading_client.documents import CSV_HEADER, csv_row

    waiting = iter(events)
    # A refusal comes with the first event: then there is no heading either.
    first = next(waiting, None)
    yield _csv_line(CSV_HEADER)
    for event in chain([first] if first else [], waiting):
        yield _csv_line(csv_row(event))


def _csv_line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    # csv quotes only those line breaks that its own line end has.
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n")


def _json_lines(events: Iterable[Event]) -> Iterator[str]:
    from lading_client.documents import json_line

    return map(json_line, events)


def _events(
    client: Client, asked: EventFilter, limit: int, kind: str, *, with_entries: bool = False
) -> Iterator[Event]:
    from lading.v1 import audit_log_pb2

    request = audit_log_pb2.ExportEventsRequest(filter=asked, limit=limit, format=kind, with_entries=with_entries)
    for batch in client.audit.ExportEvents(request):
        yield from batch.events


def _told(invocation: Invocation, events: Iterable[Item]) -> Iterator[Item]:
    """The same events; how many there were is said, on a terminal also meanwhile."""
    count, began = 0, time.monotonic()
    told = began
    for event in events:
        yield event
        count += 1
        if sys.stderr.isatty() and time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            click.echo(f"\r{count:,} events, {count / (told - began):,.0f} a second ", nl=False, err=True)
    if told != began:
        click.echo("\r", nl=False, err=True)
    invocation.say(f"{count:,} events in {time.monotonic() - began:.1f} s.")


@contextmanager
def file_at(out: str | None) -> Iterator[IO[str]]:
    """stdout, or a new file that takes its name only when it is complete: a crash leaves the old one."""
    if out is None:
        yield sys.stdout
        return
    path = pathlib.Path(out)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error.strerror}") from None
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise
