"""Events on the command line: how they are listed, and the queries that select them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING

import click

from lading_client.cli import output
from lading_client.cli.connection import Connection
from lading_client.cli.invocation import Command, Invocation
from lading_client.cli.output import Cell, Column, Listing
from lading_client.cli.values import MOMENT

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Event, EventFilter
    from lading_client.query import Query


def status_cell(event: Event) -> Cell:
    from lading_client import labels

    word = labels.outcome(event)
    if word == "PENDING":
        return output.status(labels.stage(event) if labels.stage(event) != "COMPLETED" else word)
    return output.status(word, labels.code(event.code) if event.code else "")


def action_cell(event: Event) -> Cell:
    from lading_client.labels import action

    cell = output.action(action(event))
    return cell if event.changes else Cell(cell.text, "bright_black")


def _user(event: Event) -> str:
    from lading_client.labels import user

    return user(event.actor)


def _target(event: Event) -> str:
    from lading_client.labels import target

    return target(event) or "-"


def _took(event: Event) -> str:
    from lading_client.labels import span

    return span(event.duration.ToMicroseconds() / 1e6) if event.HasField("duration") else "-"


LISTING: Listing[Event] = Listing(
    lambda event: event.id,
    (
        Column("TIMESTAMP", lambda event: output.clock(event.recorded_at)),
        Column("USER", _user, least=12),
        Column("ACTION", action_cell),
        Column("TARGET", _target, least=16),
        Column("REASON", lambda event: event.reason or "(none)", least=10),
        Column("STATUS", status_cell),
        Column("TOOK", _took, wide=True),
        Column("SOURCE", lambda event: event.user_agent.partition(" ")[0] or "-", wide=True),
        Column("IP", lambda event: event.peer or "-", wide=True),
        Column("ERROR", lambda event: event.error or "-", wide=True, least=10),
        Column("ID", lambda event: event.id, wide=True),
    ),
)


class QueryCommand(Command):
    """A command with a query: `-status:SUCCESS` is a part of it, not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        excluded = [argument for argument in args if EXCLUSION.match(argument)]
        rest = super().parse_args(ctx, [argument for argument in args if not EXCLUSION.match(argument)])
        ctx.params["words"] = (*ctx.params["words"], *excluded)
        return rest


EXCLUSION = re.compile(r"-\w+:")
QUERY = (
    click.Argument(["words"], nargs=-1, metavar="[QUERY]"),
    click.Option(["--changes"], is_flag=True, help="Leave reads out."),
    click.Option(["--since"], type=MOMENT, help="Recorded since."),
    click.Option(["--until"], type=MOMENT, help="Recorded before."),
)


def read_query(
    invocation: Invocation,
    words: Sequence[str],
    changes: bool,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Query:
    """The query of a command line; what of it does not apply is said."""
    from lading_client.query import parse
    from lading_client.requests import timestamp

    query = parse(" ".join(words), datetime.now(UTC), zone=None)
    for warning in query.warnings:
        invocation.say(warning)
    query.filter.changes_only = changes
    for name, moment in (("since", since), ("until", until)):
        if moment is not None:
            getattr(query.filter, name).CopyFrom(timestamp(moment))
    return query


def show_events(invocation: Invocation, events: Iterable[Event], no_trunc: bool = False) -> None:
    if invocation.format == "csv":
        from lading_client.cli.export import csv_lines

        output.emit(csv_lines(events))
    else:
        output.show(invocation, LISTING, events, no_trunc)


def follow_events(invocation: Invocation, asked: EventFilter, listing: Listing[Event], found: Sequence[Event]) -> None:
    """Show what was found, and what is committed after it, for ever; says when the server is away, and when back."""
    from lading_client.documents import json_line

    if invocation.format not in ("table", "wide", "jsonl"):
        raise click.UsageError("With -f the formats are table, wide and jsonl.")
    drawn = output.table(listing, invocation.format)
    # No heading yet where nothing is found: it is as wide as the first lines need.
    greeting = "" if found else "Nothing yet. What comes is shown here."
    connection = Connection(invocation, "tail", greeting, "nothing will be left out")
    next_index = found[-1].index + 1 if found else None
    tail = invocation.client.tail(asked, from_index=next_index, begun=connection.begun, lost=connection.lost)
    later = ([event] for event in tail)
    for events in chain([found] if found else [], later):
        output.emit(drawn.lines(events) if invocation.format != "jsonl" else map(json_line, events))
