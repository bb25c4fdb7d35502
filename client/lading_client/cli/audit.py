"""`lading audit`: the log. Queries are those of the viewer; see `lading_client.query`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

import click

from lading_client.cli import output
from lading_client.cli.audit_erase import erase
from lading_client.cli.audit_forget import forget_log
from lading_client.cli.audit_verify import verify
from lading_client.cli.event import show
from lading_client.cli.events import LISTING, QUERY, QueryCommand, follow_events, read_query, show_events
from lading_client.cli.export import export
from lading_client.cli.invocation import Group, Invocation, pass_invocation
from lading_client.cli.output import Column, Listing

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Event, FacetValue, SummarizeEventsResponse
    from lading_client.query import Query

BARS = "▁▂▃▄▅▆▇█"


@click.group(cls=Group)
def audit() -> None:
    """The audit log: who did what, to what, why, and how it ended."""


@audit.command(
    "ls",
    cls=QueryCommand,
    params=list(QUERY),
    examples="""
    lading audit ls                                          the newest events
    lading audit ls 'action:stop,kill -status:SUCCESS' --since 7d
    lading audit ls --changes                                without reads
    lading audit ls user:deploy-bot target:web --limit 200 -o jsonl
    lading audit ls cmd:0198c2de-… --all                     every stage of a command
    lading audit fields                                      what a query may name""",
)
@click.option("--limit", type=click.IntRange(1), default=50, help="At most so many. [50]")
@click.option("--cursor", default="", metavar="CURSOR", help="Go on from an answer before.")
@click.option("--all", "every", is_flag=True, help="Every stage, not only the last word on each operation.")
@click.option("--no-trunc", is_flag=True, help="Cut nothing to the width of the terminal.")
@pass_invocation
def ls(
    invocation: Invocation,
    words: Sequence[str],
    changes: bool,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    cursor: str,
    every: bool,
    no_trunc: bool,
) -> None:
    """List events, newest first: the last word on each operation."""
    from lading.v1 import audit_log_pb2

    query = read_query(invocation, words, changes, since, until)
    asked = query.filter
    asked.latest_only = not every
    found: list[Event] = []
    while len(found) < limit:
        request = audit_log_pb2.ListEventsRequest(
            filter=asked, page_size=min(500, limit - len(found)), page_token=cursor
        )
        page = invocation.client.audit.ListEvents(request)
        found += page.events
        cursor = page.next_page_token
        if not cursor:
            break
    show_events(invocation, found, no_trunc)
    if cursor:
        rest = ["--limit", str(limit), *(["--all"] if every else []), "--cursor", cursor]
        invocation.say(f"more: {shlex.join([*_again(invocation, query), *rest])}")


def _again(invocation: Invocation, query: Query) -> Iterator[str]:
    """The command line of the same query. Its times are absolute: a cursor belongs to exactly one filter."""
    from lading_client.query import TIMES, write

    yield from ("lading", "audit", "ls")
    if text := write(term for term in query.terms if term.field not in TIMES):
        yield text
    if query.filter.changes_only:
        yield "--changes"
    if query.filter.HasField("since"):
        yield from ("--since", query.filter.since.ToJsonString())
    if query.filter.HasField("until"):
        yield from ("--until", query.filter.until.ToJsonString())
    for name in ("server", "context", "org", "output"):
        if name in invocation.flags:
            yield from (f"--{name}", str(invocation.flags[name]))


@audit.command(
    "tail",
    cls=QueryCommand,
    params=list(QUERY[:2]),
    examples="lading audit tail\nlading audit tail -f 'status:FAILURE,DENIED'\nlading audit tail -f -n 0 -o jsonl",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is recorded from now on.")
@click.option("-n", "--lines", type=click.IntRange(0, 500), default=10, help="So many events to begin with. [10]")
@pass_invocation
def tail(invocation: Invocation, words: Sequence[str], changes: bool, follow: bool, lines: int) -> None:
    """The newest events in the order in which they came, every stage of each operation."""
    from lading.v1 import audit_log_pb2
    from lading_client.paging import pages

    asked = read_query(invocation, words, changes).filter
    if follow and (asked.HasField("since") or asked.HasField("until")):
        raise click.UsageError("With -f there are no times in the query: it goes on from now.")
    found: list[Event] = []
    if lines:
        request = audit_log_pb2.ListEventsRequest(filter=asked, page_size=lines)
        newest = (event for page in pages(invocation.client.audit.ListEvents, request) for event in page.events)
        found = list(islice(newest, lines))[::-1]
    if not follow:
        show_events(invocation, found)
        return
    follow_events(invocation, asked, LISTING, found)


@audit.command(
    "stats",
    cls=QueryCommand,
    params=list(QUERY),
    examples="lading audit stats --since 7d\nlading audit stats 'action:stop' --by user,status",
)
@click.option("--by", default="status,action,user,agent", metavar="FIELD[,FIELD]", help="Count by these fields.")
@pass_invocation
def stats(
    invocation: Invocation, words: Sequence[str], changes: bool, since: datetime | None, until: datetime | None, by: str
) -> None:
    """Count events over time and by field; without --since, of the last 24 hours."""
    from lading.v1 import audit_log_pb2
    from lading_client.query import ALIASES, FIELDS

    fields = [ALIASES.get(name.strip(), name.strip()) for name in by.split(",") if name.strip()]
    countable = ("user", "action", "agent", "status", "code", "source")
    if wrong := [name for name in fields if name not in countable]:
        raise click.UsageError(f"{wrong[0]} cannot be counted. Fields: {', '.join(countable)}.")
    query = read_query(invocation, words, changes, since, until)
    request = audit_log_pb2.SummarizeEventsRequest(filter=query.filter, facets=[FIELDS[name] for name in fields])
    found = invocation.client.audit.SummarizeEvents(request)
    output.show_one(invocation, found, str(found.total), lambda: _counts(found))


def _counts(found: SummarizeEventsResponse) -> Iterator[str]:
    from lading_client import labels
    from lading_client.query import FIELDS

    least = "at least " if found.capped else ""
    yield f"{least}{output.plural(found.total, 'event')}, {found.failed} of them failed"
    if found.buckets:
        top = max(bucket.total for bucket in found.buckets) or 1
        marks = [BARS[round(bucket.total / top * (len(BARS) - 1))] if bucket.total else " " for bucket in found.buckets]
        began = output.clock(found.buckets[0].begins_at)
        width = labels.span(found.width.ToMicroseconds() / 1e6)
        yield "".join(marks)
        yield click.style(f"from {began}, each bar {width}, the highest {top}", fg="bright_black")
    names = {number: name for name, number in FIELDS.items()}
    for facet in found.facets:
        heading = names.get(facet.field, "?").upper()
        rows: Listing[FacetValue] = Listing(
            lambda value: value.value,
            (
                Column(heading, lambda value: value.value or "(none)", least=16),
                Column("EVENTS", lambda value: f"{value.total:>6}"),
                Column("FAILED", lambda value: f"{value.failed:>6}"),
                Column("SHARE", lambda value: f"{value.failed / value.total:>5.0%}" if value.total else ""),
            ),
        )
        yield ""
        yield from output.table(rows, "table").lines(facet.values)


@audit.command("fields", examples="lading audit fields\nlading audit fields -o json")
@pass_invocation
def fields(invocation: Invocation) -> None:
    """The vocabulary of queries: fields, statuses, codes, and the actions of this version."""
    from lading.v1 import options_pb2
    from lading_client.channel import SERVICES
    from lading_client.labels import CODES
    from lading_client.query import ALIASES, FIELDS, STATUSES, TIMES

    actions = {method.GetOptions().Extensions[options_pb2.audit].action for one in SERVICES for method in one.methods}
    vocabulary = {
        "fields": list(FIELDS),
        "times": list(TIMES),
        "aliases": dict(ALIASES),
        "statuses": list(STATUSES),
        "actions": sorted(actions),
        "codes": list(CODES),
    }
    if invocation.format in ("json", "jsonl", "yaml"):
        output.show_document(invocation, vocabulary)
        return
    for name, words in vocabulary.items():
        pairs = [f"{alias}={field}" for alias, field in words.items()] if isinstance(words, dict) else words
        click.echo(click.style(name, fg="bright_black"))
        click.echo(click.wrap_text(" ".join(pairs), 78, "  ", "  "))


for command in (show, export, verify, forget_log, erase):
    audit.add_command(command)
