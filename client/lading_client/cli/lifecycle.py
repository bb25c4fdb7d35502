"""The verbs `lading start|stop|restart|kill|pause|unpause|rm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from lading_client.cli import change, waves
from lading_client.cli.change import Plan, Verb
from lading_client.cli.invocation import Command, pass_invocation
from lading_client.cli.targets import argument, select, selection
from lading_client.cli.values import SPAN

if TYPE_CHECKING:
    from lading.v1.commands_pb2 import Command as CommandMessage
    from lading_client.cli.invocation import Invocation
    from lading_client.client import Client


def verb_command(verb: Verb, summary: str, examples: str, *own: click.Option) -> click.Command:
    """The command that asks `verb` of the selected containers; `own` options go to the client's method as they are."""

    @pass_invocation
    def run(
        invocation: Invocation,
        targets: tuple[str, ...],
        labels: dict[str, str] | None,
        agent: str | None,
        every: bool,
        wait: bool,
        max_parallel: int,
        fail_fast: bool,
        strict: bool,
        dry_run: bool,
        wave: Sequence[str] | None,
        max_failures: int | None,
        soak: float | None,
        stop_on_breach: bool,
        **arguments: Any,
    ) -> int:
        def ask(client: Client, target: str, **how: Any) -> CommandMessage:
            answer: CommandMessage = getattr(client, verb.name)(target, **arguments, **how)
            return answer

        care = waves.Care(wave, max_parallel, max_failures, soak, stop_on_breach)
        care.check(fail_fast, strict)
        chosen = select(invocation.client, targets, labels, agent, every)
        if wave:
            return waves.run(invocation, verb, chosen, care, arguments, detach=not wait, dry_run=dry_run)
        plan = Plan(not wait, max_parallel, fail_fast, strict)
        return change.run(invocation, verb, chosen, ask, plan, dry_run=dry_run)

    return Command(
        verb.name,
        callback=run,
        params=[*SELECTION, *own, *MANNER, *waves.OPTIONS],
        help=summary,
        examples=examples,
        no_args_is_help=True,
    )


SELECTION = (argument(), *selection(), click.Option(["--all", "every"], is_flag=True, help="All of --agent."))
MANNER = (
    click.Option(["--wait/--detach", " /-d"], default=True, help="Wait for the end, or only record it. [wait]"),
    click.Option(["--max-parallel"], type=click.IntRange(1, 100), default=10, help="So many at once. [10]"),
    click.Option(["--fail-fast"], is_flag=True, help="After a failure begin no more."),
    click.Option(["--strict"], is_flag=True, help="Already in that state is an error."),
    click.Option(["--dry-run"], is_flag=True, help="Only say what would be changed."),
)
GRACE = click.Option(["--grace"], type=SPAN, help="How long the process has to end by itself. [10s]")
SIGNAL = click.Option(["-s", "--signal"], default="", metavar="SIGNAL", help="Name or number. [KILL]")
FORCE = click.Option(["-f", "--force"], is_flag=True, help="Also while it runs.")

start = verb_command(
    change.START,
    "Start containers.",
    "lading start dock-1/web\nlading start -l app=web --reason 'release 1.31'",
)
stop = verb_command(
    change.STOP,
    "Ask the processes of containers to end, and end them after the grace period.",
    "lading stop dock-1/web --reason INC-527\nlading stop --agent dock-1 --all --grace 30s",
    GRACE,
)
restart = verb_command(
    change.RESTART,
    "Stop and start containers.",
    "lading restart dock-1/web\nlading restart -l app=web --max-parallel 1 --fail-fast\n"
    "lading restart -l app=web --wave 1,10%,100% --max-failures 2",
    GRACE,
)
kill = verb_command(
    change.KILL,
    "Send a signal to the processes of containers.",
    "lading kill dock-1/web --yes\nlading kill dock-1/web --signal HUP",
    SIGNAL,
)
pause = verb_command(change.PAUSE, "Freeze the processes of containers.", "lading pause dock-1/web")
unpause = verb_command(change.UNPAUSE, "Let the processes of frozen containers go on.", "lading unpause dock-1/web")
rm = verb_command(
    change.REMOVE,
    "Remove containers.",
    "lading rm dock-1/web --yes\nlading rm -f -l app=old --reason retired",
    FORCE,
)
