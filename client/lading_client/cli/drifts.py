"""`lading events`: what happened in the engines without a command of ours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from lading_client.cli import output
from lading_client.cli.completion import complete_agents
from lading_client.cli.events import follow_events, read_query
from lading_client.cli.invocation import Command, Invocation, pass_invocation
from lading_client.cli.output import Cell, Column, Listing
from lading_client.cli.values import MOMENT

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Event

ACTION = "container.drift"


def _target(event: Event) -> str:
    from lading_client.labels import target

    return target(event) or "-"


def _said(event: Event) -> str:
    """What the engine says of it: `exitCode=137,signal=9`."""
    found = event.details.fields["attributes"].struct_value if "attributes" in event.details.fields else None
    return ",".join(f"{key}={value}" for key, value in sorted(found.items())) if found else event.error or "-"


def _action(event: Event) -> Cell:
    word = event.details.fields["action"].string_value if "action" in event.details.fields else ""
    return Cell(word or "-", "yellow" if word == "gap" else None)


LISTING: Listing[Event] = Listing(
    lambda event: event.id,
    (
        Column("HAPPENED", lambda event: output.clock(event.occurred_at)),
        Column("TARGET", _target, least=16),
        Column("ACTION", _action),
        Column("SAID", _said, least=10),
        Column("ID", lambda event: event.id, wide=True),
    ),
)


@click.command(
    "events",
    cls=Command,
    examples="""
    lading events                        what was last done behind Lading's back
    lading events -f --agent dock-1      go on with what happens from now on
    lading events web --since 1d         to containers of that name""",
)
@click.argument("container", required=False)
@click.option("--agent", metavar="AGENT", shell_complete=complete_agents, help="On this agent.")
@click.option("--since", type=MOMENT, help="Recorded since.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is recorded from now on.")
@click.option("-n", "--lines", type=click.IntRange(0, 500), default=50, help="So many to begin with. [50]")
@pass_invocation
def events(
    invocation: Invocation, container: str | None, agent: str | None, since: datetime | None, follow: bool, lines: int
) -> None:
    """What the engines report that no command of ours did: somebody used docker, a program ended, an engine restarted.

    Oldest first. It reads the audit log, where these events are action:container.drift; `gap` says that an engine could
    not tell any more what had happened for a while.
    """
    from lading.v1 import audit_log_pb2

    words = [f"action:{ACTION}"]
    words += [f"agent:{agent}"] if agent else []
    words += [f"target:{container}"] if container else []
    asked = read_query(invocation, words, False, since).filter
    if follow and since is not None:
        raise click.UsageError("With -f there is no --since: it goes on from now.")
    found: Sequence[Event] = []
    if lines:
        request = audit_log_pb2.ListEventsRequest(filter=asked, page_size=lines)
        found = list(reversed(invocation.client.audit.ListEvents(request).events))
    if not follow:
        output.show(invocation, LISTING, found)
        return
    follow_events(invocation, asked, LISTING, found)
