"""`lading commands`: what became of them, waiting for their end, cancelling."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import click

from lading_client.cli import output
from lading_client.cli.completion import complete_agents, complete_commands
from lading_client.cli.invocation import Group, Invocation, pass_invocation
from lading_client.cli.output import Cell, Column, Listing

if TYPE_CHECKING:
    from lading.v1.commands_pb2 import Command as CommandMessage
    from lading_client.client import Client

SOME_FAILED = 3


def _name(command: CommandMessage) -> str:
    from lading_client.names import short

    return short(command.name)


def _verb(command: CommandMessage) -> Cell:
    from lading_client.labels import verb

    return output.action(verb(command).upper())


def _state(command: CommandMessage) -> Cell:
    from lading_client.labels import code, command_state

    return output.status(command_state(command), code(command.code) if command.code else "")


def _target(command: CommandMessage) -> str:
    from lading_client.names import short

    return short(command.container or command.agent)


LISTING: Listing[CommandMessage] = Listing(
    _name,
    (
        Column("COMMAND", _name),
        Column("VERB", _verb),
        Column("TARGET", _target, least=16),
        Column("USER", lambda command: command.actor_email or command.actor, least=12),
        Column("REASON", lambda command: command.reason or "(none)", wide=True, least=10),
        Column("STATE", _state),
        Column("EVIDENCE", lambda command: command.evidence or "-", wide=True, least=10),
        Column("ERROR", lambda command: command.error or "-", wide=True, least=10),
        Column("AGE", lambda command: output.age(command.created_at)),
    ),
)


@click.group(cls=Group)
def commands() -> None:
    """Commands: one lifecycle instruction to one agent each."""


@commands.command("ls", examples="lading commands ls\nlading commands ls --agent dock-1 --state unknown,failed -o wide")
@click.option("--agent", metavar="AGENT", shell_complete=complete_agents, help="For this agent.")
@click.option("--container", metavar="AGENT/NAME", help="For this container.")
@click.option("--state", "states", metavar="STATE[,STATE]", help="In one of these states.")
@click.option("--limit", type=click.IntRange(1), default=50, help="At most so many. [50]")
@pass_invocation
def ls(invocation: Invocation, agent: str | None, container: str | None, states: str | None, limit: int) -> None:
    """List commands, newest first."""
    from lading.v1 import commands_pb2
    from lading_client import names
    from lading_client.paging import pages

    request = commands_pb2.ListCommandsRequest(
        agent=names.agent(agent) if agent else "", container=names.container(container) if container else ""
    )
    for state in (states or "").upper().split(",") if states else ():
        try:
            request.states.append(commands_pb2.CommandState.Value(f"COMMAND_STATE_{state.strip()}"))
        except ValueError:
            known = ", ".join(name.removeprefix("COMMAND_STATE_") for name in commands_pb2.CommandState.keys()[1:])
            raise click.UsageError(f"There is no state {state}. States: {known}.") from None
    request.page_size = min(500, limit)
    found = (command for page in pages(invocation.client.commands.ListCommands, request) for command in page.commands)
    output.show(invocation, LISTING, islice(found, limit))


ids = click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete_commands)


@commands.command("inspect", examples="lading commands inspect 0198c2de-…")
@ids
@pass_invocation
def inspect(invocation: Invocation, ids: Sequence[str]) -> None:
    """All about commands, as JSON (or -o yaml)."""
    from lading.v1 import commands_pb2
    from lading_client import names
    from lading_client.documents import document

    for identifier in ids:
        request = commands_pb2.GetCommandRequest(name=names.command(identifier))
        output.show_document(invocation, document(invocation.client.commands.GetCommand(request)))


@commands.command("wait", examples="lading commands wait 0198c2de-… --timeout 5m")
@ids
@pass_invocation
def wait(invocation: Invocation, ids: Sequence[str]) -> int:
    """Wait until commands have ended, and end as they did. With --timeout no longer than that."""
    from lading_client import errors
    from lading_client.labels import SETTLED, code

    deadline = time.monotonic() + invocation.timeout() if "timeout" in invocation.flags else None
    exits = set()
    for identifier in ids:
        command = None
        for command in _watched(invocation.client, identifier, deadline):
            if invocation.verbose:
                invocation.say(f"{_name(command)}  {_state(command).text}")
        assert command is not None
        line = f"{_name(command)}  {_verb(command).text} {_target(command)}  {_state(command).text}"
        output.show_one(invocation, command, _name(command), lambda: [line])  # noqa: B023  # called at once
        good = command.code == 0 and command.state in SETTLED
        if not good:
            invocation.say(output.printable(command.error or "What happened is not known."))
        exits.add(0 if good else errors.from_code(code(command.code), "").exit_code)
    return exits.pop() if len(exits) == 1 else SOME_FAILED


def _watched(client: Client, identifier: str, deadline: float | None) -> Iterator[CommandMessage]:
    """Each state of the command until it is settled; a lost connection is taken up again."""
    from lading.v1 import commands_pb2
    from lading_client import errors, names
    from lading_client.labels import SETTLED

    request = commands_pb2.WatchCommandRequest(name=names.command(identifier))
    heard = False
    while True:
        left = None if deadline is None else max(0.01, deadline - time.monotonic())
        try:
            for command in client.commands.WatchCommand(request, timeout=left):
                heard = True
                yield command
                if command.state in SETTLED:
                    return
        except errors.DeadlineExceeded as error:
            message = "The time limit passed before the command ended."
            raise errors.DeadlineExceeded(message, metadata={"command": names.command(identifier)}) from error
        except errors.Unavailable:
            if not heard:
                raise
        time.sleep(0.5)


@commands.command("cancel", examples="lading commands cancel 0198c2de-… --reason 'wrong host'")
@ids
@pass_invocation
def cancel(invocation: Invocation, ids: Sequence[str]) -> None:
    """Ask to stop commands. One that the agent has already begun may still finish."""
    from lading.v1 import commands_pb2
    from lading_client import names

    for identifier in ids:
        request = commands_pb2.CancelCommandRequest(name=names.command(identifier), reason=invocation.reason)
        command = invocation.client.commands.CancelCommand(request)
        line = f"{_name(command)}  {_state(command).text}"
        output.show_one(invocation, command, _name(command), lambda: [line])  # noqa: B023  # called at once


@commands.command("resolve", examples="lading commands resolve 0198c2de-… --succeeded --reason 'web answers, I looked'")
@ids
@click.option("--succeeded", "state", flag_value="SUCCEEDED", help="It was done.")
@click.option("--failed", "state", flag_value="FAILED", help="It was not done.")
@click.option("--cancelled", "state", flag_value="CANCELLED", help="It was stopped before it took effect.")
@pass_invocation
def resolve(invocation: Invocation, ids: Sequence[str], state: str | None) -> None:
    """Settle commands whose state is UNKNOWN by what you have found out; --reason says how you know.

    For one whose agent will never tell: its machine is gone, say. What the agent says later changes nothing more, and
    is recorded beside it.
    """
    from lading.v1 import commands_pb2
    from lading_client import names

    if state is None:
        raise click.UsageError("Say what became of it: --succeeded, --failed or --cancelled.")
    if not invocation.reason:
        raise click.UsageError("Say how you know: --reason TEXT.")
    for identifier in ids:
        request = commands_pb2.ResolveCommandRequest(
            name=names.command(identifier),
            state=commands_pb2.CommandState.Value(f"COMMAND_STATE_{state}"),
            reason=invocation.reason,
        )
        command = invocation.client.commands.ResolveCommand(request)
        line = f"{_name(command)}  {_state(command).text}"
        output.show_one(invocation, command, _name(command), lambda: [line])  # noqa: B023  # called at once
