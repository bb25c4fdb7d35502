"""`lading rollouts`: one action on many containers in waves, that the server carries out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import click

from lading_client.cli import output
from lading_client.cli.change import INTERRUPTED
from lading_client.cli.completion import complete_rollouts
from lading_client.cli.invocation import Group, Invocation, pass_invocation
from lading_client.cli.output import Cell, Column, Listing

if TYPE_CHECKING:
    from lading.v1.rollouts_pb2 import Rollout, RolloutPlan, RolloutTarget
    from lading_client.client import Client
    from lading_client.errors import LadingError

FAILED = 3
RECONNECT = 0.5  # seconds
WIDTH = 24  # columns of the bar
STATES = {
    "RUNNING": ("…", "blue"),
    "PAUSED": ("‖", "yellow"),
    "SUCCEEDED": ("✓", "green"),
    "FAILED": ("✗", "red"),
    "STOPPED": ("○", "bright_black"),
}


def follow(invocation: Invocation, rollout: Rollout) -> int:
    """Show how a rollout goes until it ends or is paused; the exit code."""
    try:
        last = _show(invocation, rollout)
    except KeyboardInterrupt:
        click.echo(f"\nStopped watching. The rollout goes on: lading rollouts watch {name_of(rollout)}", err=True)
        return INTERRUPTED
    return conclude(invocation, last)


def _show(invocation: Invocation, rollout: Rollout) -> Rollout:
    """A line that is drawn anew on a terminal; a line for each wave elsewhere; nothing for documents."""
    live = invocation.human and invocation.format in ("table", "wide") and not invocation.quiet
    lines = invocation.format in ("table", "wide") and not invocation.quiet
    wave = 0
    if lines:
        click.echo(f"rollout {name_of(rollout)}: {output.plural(rollout.targets_total, 'target')}", err=live)
    last = rollout

    def lost(failure: LadingError) -> None:
        click.echo("", nl=live, err=True)
        invocation.say(f"The connection is lost ({failure.code}), going on as soon as there is one.")

    for last in _watched(invocation.client, rollout, lost):
        if live:
            click.echo(f"\r\x1b[2K{_bar(last)}", nl=False, err=True)
        elif lines and last.wave != wave:
            wave = last.wave
            click.echo(f"wave {wave} of {len(last.wave_ends)}, to {last.wave_ends[wave - 1]} of {last.targets_total}")
        if _word(last.state) != "RUNNING":
            break
    if live:
        click.echo("", err=True)
    return last


def _watched(client: Client, rollout: Rollout, lost: Callable[[LadingError], None]) -> Iterator[Rollout]:
    """Each change until the end; a lost connection is taken up again, and `lost` is told of it once."""
    from lading.v1 import rollouts_pb2
    from lading_client.resumption import PASSING

    request = rollouts_pb2.WatchRolloutRequest(name=rollout.name)
    away = False
    while True:
        try:
            for found in client.rollouts.WatchRollout(request):
                away = False
                yield found
                if found.HasField("settled_at"):
                    return
        except PASSING as failure:
            if not away:
                lost(failure)
            away = True
        time.sleep(RECONNECT)


def conclude(invocation: Invocation, rollout: Rollout) -> int:
    """Say how it ended, and what can be done."""
    name, word = name_of(rollout), _word(rollout.state)
    output.show_one(invocation, rollout, name, lambda: _summary(invocation.client, rollout))
    if word == "PAUSED":
        invocation.say(f"Go on: lading rollouts resume {name}. End it: lading rollouts stop {name}")
    elif rollout.targets_succeeded < rollout.targets_total:
        invocation.say(f"Again for those that did not succeed: lading rollouts retry {name}")
    return 0 if word == "SUCCEEDED" else FAILED


def _summary(client: Client, rollout: Rollout) -> Iterator[str]:
    yield f"{_state(rollout).text}  {progress_of(rollout)}"
    for target in islice(_bad(client, rollout), 10):
        yield f"  {_short(target.container)}  {_target_state(target).text}  {target.error}".rstrip()


def _bad(client: Client, rollout: Rollout) -> Iterator[RolloutTarget]:
    from lading.v1 import commands_pb2, rollouts_pb2
    from lading_client.paging import pages

    good = ("UNSPECIFIED", "PENDING", "DISPATCHED", "ACKNOWLEDGED", "SUCCEEDED")
    states = [
        number for name, number in commands_pb2.CommandState.items() if name.removeprefix("COMMAND_STATE_") not in good
    ]
    request = rollouts_pb2.ListRolloutTargetsRequest(rollout=rollout.name, states=states)
    for page in pages(client.rollouts.ListRolloutTargets, request):
        yield from page.targets


def name_of(rollout: Rollout) -> str:
    return _short(rollout.name)


def _short(name: str) -> str:
    from lading_client.names import short

    return short(name)


def _word(state: int) -> str:
    from lading.v1 import rollouts_pb2

    return rollouts_pb2.RolloutState.Name(state).removeprefix("ROLLOUT_STATE_")  # type: ignore[arg-type]


def _state(rollout: Rollout) -> Cell:
    word = _word(rollout.state)
    icon, color = STATES.get(word, ("", None))
    why = f" ({rollout.state_reason})" if rollout.state_reason else ""
    return Cell(f"{icon} {word}{why}".strip(), color)


def _target_state(target: RolloutTarget) -> Cell:
    from lading.v1 import commands_pb2

    word = commands_pb2.CommandState.Name(target.state).removeprefix("COMMAND_STATE_")
    return output.status("SKIPPED", "not begun") if word == "UNSPECIFIED" else output.status(word)


def _verb(plan: RolloutPlan) -> Cell:
    from lading.v1 import commands_pb2

    return output.action(commands_pb2.Verb.Name(plan.verb).removeprefix("VERB_"))


def progress_of(rollout: Rollout) -> str:
    """`7 of 10 done, 2 failed, 1 unknown, 3 in flight`."""
    parts = [f"{rollout.targets_succeeded} of {rollout.targets_total} done"]
    for word, count in (
        ("failed", rollout.targets_failed),
        ("unknown", rollout.targets_unknown),
        ("in flight", rollout.targets_in_flight),
    ):
        if count:
            parts.append(f"{count} {word}")
    return ", ".join(parts)


def _bar(rollout: Rollout) -> str:
    ended = rollout.targets_total - rollout.targets_waiting - rollout.targets_in_flight
    full = WIDTH * ended // max(1, rollout.targets_total)
    bar = "█" * full + "░" * (WIDTH - full)
    return f"{bar}  wave {rollout.wave}/{len(rollout.wave_ends)}  {progress_of(rollout)}"


LISTING: Listing[Rollout] = Listing(
    name_of,
    (
        Column("ROLLOUT", name_of),
        Column("VERB", lambda rollout: _verb(rollout.plan)),
        Column("STATE", _state),
        Column("WAVE", lambda rollout: f"{rollout.wave}/{len(rollout.wave_ends)}"),
        Column("DONE", lambda rollout: f"{rollout.targets_succeeded}/{rollout.targets_total}"),
        Column("FAILED", lambda rollout: str(rollout.targets_failed + rollout.targets_unknown)),
        Column("USER", lambda rollout: rollout.actor_email or rollout.actor, least=12),
        Column("REASON", lambda rollout: rollout.reason or "(none)", wide=True, least=10),
        Column("AGE", lambda rollout: output.age(rollout.created_at)),
    ),
)
TARGETS: Listing[RolloutTarget] = Listing(
    lambda target: _short(target.container),
    (
        Column("TARGET", lambda target: _short(target.container), least=16),
        Column("WAVE", lambda target: str(target.wave)),
        Column("STATE", _target_state),
        Column("COMMAND", lambda target: _short(target.command) or "-", wide=True),
        Column("ERROR", lambda target: target.error or "-", least=16),
    ),
)


@click.group(cls=Group)
def rollouts() -> None:
    """Rollouts: one action on many containers, in waves.

    They are made by `lading restart -l app=web --wave 1,10%,100% --max-failures 2`, and by start, stop, kill, pause,
    unpause and rm likewise. The server carries them out, so that they go on when you leave, and after its restart.
    """


@rollouts.command("ls", examples="lading rollouts ls\nlading rollouts ls -o wide --limit 5")
@click.option("--limit", type=click.IntRange(1), default=50, help="At most so many. [50]")
@pass_invocation
def ls(invocation: Invocation, limit: int) -> None:
    """List rollouts, newest first."""
    from lading.v1 import rollouts_pb2
    from lading_client.paging import pages

    request = rollouts_pb2.ListRolloutsRequest(page_size=min(500, limit))
    pages_of = pages(invocation.client.rollouts.ListRollouts, request)
    found = list(islice((one for page in pages_of for one in page.rollouts), limit))
    output.show(invocation, LISTING, found)
    if not found and not invocation.quiet and invocation.format == "table":
        invocation.say("Make one: lading restart -l app=web --wave 1,10%,100% --max-failures 2")


identifier = click.argument("identifier", metavar="ID", shell_complete=complete_rollouts)


@rollouts.command("inspect", examples="lading rollouts inspect 0198c2de-…")
@identifier
@pass_invocation
def inspect(invocation: Invocation, identifier: str) -> None:
    """All about one rollout, as JSON (or -o yaml)."""
    from lading_client.documents import document

    output.show_document(invocation, document(_get(invocation.client, identifier)))


def _get(client: Client, identifier: str) -> Rollout:
    from lading.v1 import rollouts_pb2
    from lading_client import names

    return client.rollouts.GetRollout(rollouts_pb2.GetRolloutRequest(name=names.rollout(identifier)))


@rollouts.command("targets", examples="lading rollouts targets 0198c2de-…\nlading rollouts targets 0198c2de-… -o wide")
@identifier
@pass_invocation
def targets(invocation: Invocation, identifier: str) -> None:
    """List the targets of a rollout, and what became of each."""
    from lading.v1 import rollouts_pb2
    from lading_client import names
    from lading_client.paging import pages

    request = rollouts_pb2.ListRolloutTargetsRequest(rollout=names.rollout(identifier), page_size=500)
    found = (one for page in pages(invocation.client.rollouts.ListRolloutTargets, request) for one in page.targets)
    output.show(invocation, TARGETS, found)


@rollouts.command("watch", examples="lading rollouts watch 0198c2de-…")
@identifier
@pass_invocation
def watch(invocation: Invocation, identifier: str) -> int:
    """Show how a rollout goes, until it ends or is paused."""
    return follow(invocation, _get(invocation.client, identifier))


@rollouts.command("pause", examples="lading rollouts pause 0198c2de-… --reason 'errors in the graphs'")
@identifier
@pass_invocation
def pause(invocation: Invocation, identifier: str) -> None:
    """Begin no more of its commands; those in flight go on."""
    _change(invocation, identifier, "Pause")


@rollouts.command(
    "resume", short_help="Go on with a rollout that was paused.", examples="lading rollouts resume 0198c2de-…"
)
@identifier
@click.option("-d", "--detach", is_flag=True, help="Do not watch it.")
@pass_invocation
def resume(invocation: Invocation, identifier: str, detach: bool) -> int:
    """Go on with a rollout that was paused, with a new budget of failures."""
    rollout = _change(invocation, identifier, "Resume", silent=not detach)
    return 0 if detach else follow(invocation, rollout)


@rollouts.command(
    "stop", short_help="End a rollout.", examples="lading rollouts stop 0198c2de-… --reason 'wrong version'"
)
@identifier
@pass_invocation
def stop(invocation: Invocation, identifier: str) -> None:
    """End a rollout: begin no more commands, and cancel those that no agent has."""
    _change(invocation, identifier, "Stop")


@rollouts.command(
    "retry", short_help="A new one for those that did not succeed.", examples="lading rollouts retry 0198c2de-…"
)
@identifier
@click.option("-d", "--detach", is_flag=True, help="Do not watch it.")
@pass_invocation
def retry(invocation: Invocation, identifier: str, detach: bool) -> int:
    """A new rollout for those targets that failed, whose end is unknown, or that were not reached."""
    rollout = _change(invocation, identifier, "Retry", silent=not detach)
    return 0 if detach else follow(invocation, rollout)


def _change(invocation: Invocation, identifier: str, what: str, *, silent: bool = False) -> Rollout:
    import uuid

    from lading.v1 import rollouts_pb2
    from lading_client import names

    request = getattr(rollouts_pb2, f"{what}RolloutRequest")(
        name=names.rollout(identifier), reason=invocation.reason, request_id=str(uuid.uuid4())
    )
    rollout: Rollout = getattr(invocation.client.rollouts, f"{what}Rollout")(request)
    if not silent:
        line = f"{name_of(rollout)}  {_state(rollout).text}"
        output.show_one(invocation, rollout, name_of(rollout), lambda: [line])
    sys.stdout.flush()
    return rollout
