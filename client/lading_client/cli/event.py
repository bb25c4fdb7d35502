"""`lading audit show`: one event, what was asked, what changed, and what else belongs to it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from lading_client.cli import output
from lading_client.cli.events import action_cell, status_cell
from lading_client.cli.export import file_at
from lading_client.cli.invocation import Command, Invocation, pass_invocation
from lading_client.cli.output import Cell

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Event
    from lading_client.client import Client


@click.command(
    cls=Command,
    examples="""
    lading audit show 0198c2de-…
    lading audit show 0198c2de-… --raw | jq .request
    lading audit show 0198c2de-… --proof --out stop.tlog-proof""",
)
@click.argument("id", metavar="EVENT_ID")
@click.option("--raw", is_flag=True, help="As JSON, all of it.")
@click.option("--proof", is_flag=True, help="A receipt instead (C2SP tlog-proof); also of an operation, by its id.")
@click.option("--out", type=click.Path(dir_okay=False), metavar="FILE", help="File to write the receipt to. [stdout]")
@pass_invocation
def show(invocation: Invocation, id: str, raw: bool, proof: bool, out: str | None) -> None:
    """Show one event, or prove it: `lading audit verify --file` checks a receipt without any server."""
    from lading.v1 import audit_log_pb2
    from lading_client.documents import document

    if proof:
        with file_at(out) as file:
            file.write(_receipt(invocation, id))
        return
    if out:
        raise click.UsageError("--out is for --proof.")
    event = invocation.client.audit.GetEvent(audit_log_pb2.GetEventRequest(id=id))
    if raw:
        click.echo(json.dumps(document(event), ensure_ascii=False, indent=2))
        return
    output.show_one(invocation, event, event.id, lambda: _lines(invocation.client, event))


def _receipt(invocation: Invocation, id: str) -> str:
    """The text of a receipt, checked against the log's key."""
    from lading_client.cli.audit_verify import open_log, refusing
    from lading_client.verify import receipts

    with refusing(invocation):
        _, key = open_log(invocation)
        text = invocation.client.receipt(id)
        receipts.verify(text, key)
    return text


def _lines(client: Client, event: Event) -> Iterator[str]:
    from lading_client import labels

    related = _related(client, event)
    actor = event.actor
    status = status_cell(event)
    yield from output.fields(
        (
            ("event", f"{event.id}  #{event.index}"),
            ("time", output.clock(event.recorded_at)),
            ("user", labels.user(actor)),
            ("", f"{labels.actor_type(actor)} {actor.id}, by {actor.auth_method or 'none'} {actor.credential}".strip()),
            ("for", f"{actor.on_behalf_of} (says the service)" if actor.on_behalf_of else ""),
            ("action", action_cell(event)),
            ("", event.action if labels.action(event) != event.action else ""),
            *(("target", f"{target.type} {target.id}") for target in event.targets),
            ("command line", shlex.join(_command_line(event, related))),
            ("agent", event.agent),
            ("reason", event.reason or "(none)"),
            ("status", status),
            ("error", Cell(" ".join(event.error.split()), status.color)),
            ("stage", labels.stage(event)),
            ("took", labels.span(event.duration.ToMicroseconds() / 1e6) if event.HasField("duration") else ""),
            ("method", event.method),
            ("source", event.user_agent),
            ("address", event.peer),
            ("claimed", f"{event.claimed_address} (says a header)" if event.claimed_address else ""),
            ("operation", event.operation),
            ("parent", event.parent),
            ("correlation", event.request_id),
            ("trace", event.trace_id),
            ("count", str(event.count) if event.count > 1 else ""),
        )
    )
    if event.HasField("diff"):
        yield from ("", "Change:", *_diff(_plain(event)["diff"]))
    for heading, content in (("Request:", "request"), ("Details:", "details")):
        if event.HasField(content):  # type: ignore[arg-type]
            yield from ("", heading, *output.yaml(_plain(event)[content], "  "))
    yield from _stages(event, related)


def _plain(event: Event) -> dict[str, Any]:
    from lading_client.documents import document

    return document(event)


def _diff(changes: list[Any]) -> Iterator[str]:
    """Each change as the value before and the value after."""
    for change in changes:
        yield f"  {output.printable(str(change.get('path', '')))}"
        if change.get("was") is not None:
            yield click.style(f"    − {output.printable(json.dumps(change['was'], ensure_ascii=False))}", fg="red")
        if change.get("op") != "remove":
            value = json.dumps(change.get("value"), ensure_ascii=False)
            yield click.style(f"    + {output.printable(value)}", fg="green")


def _related(client: Client, event: Event) -> list[Event]:
    """The events of the same call, of the commands that it became, and of their stages, oldest first."""
    from lading.v1 import audit_log_pb2

    root = event.parent or event.operation
    match = audit_log_pb2.Match(field=audit_log_pb2.FIELD_OPERATION, values=[root])
    request = audit_log_pb2.ListEventsRequest(filter=audit_log_pb2.EventFilter(matches=[match]), page_size=50)
    return sorted(client.audit.ListEvents(request).events, key=lambda one: one.index)


def _command_line(event: Event, related: Sequence[Event]) -> list[str]:
    """What was run in an exec session, by whichever of its events says it: those of its later stages do not."""
    if event.action != "container.exec":
        return []
    asked = next((one for one in (event, *related) if one.HasField("request")), event)
    spec = _plain(asked).get("request", {}).get("spec", {})
    return [str(word) for word in spec.get("command", ())]


def _stages(event: Event, found: Sequence[Event]) -> Iterator[str]:
    """When each of them was, and how it went."""
    from lading_client import labels

    if len(found) < 2:
        return
    yield from ("", "What belongs to it:")
    before = None
    for one in found:
        at = labels.moment(one.occurred_at)
        gap = f"+{labels.span((at - before).total_seconds())}" if at and before else ""
        mark = ">" if one.id == event.id else " "
        status = status_cell(one)
        what = "call" if one.method else labels.stage(one).lower()
        yield (
            f"{mark} {output.clock(one.occurred_at)}  {gap:>9}  {action_cell(one).text:<12}"
            f"  {what:<10} {click.style(status.text, fg=status.color)}"
        )
        before = at
