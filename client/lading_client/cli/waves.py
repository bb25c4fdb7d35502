"""What `--wave` makes of the lifecycle verbs: one rollout on the server, instead of a call for each container."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lading_client.cli import output
from lading_client.cli.change import confirm
from lading_client.cli.invocation import Invocation
from lading_client.cli.rollouts import follow, name_of, progress_of
from lading_client.cli.values import SPAN

if TYPE_CHECKING:
    from lading.v1.rollouts_pb2 import Rollout
    from lading_client.cli.change import Verb


class Waves(click.ParamType[list[str]]):
    """`1,10%,100%`."""

    name = "waves"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


@dataclass(frozen=True)
class Care:
    """How carefully a rollout goes, as the options of a lifecycle verb say; `soak` in seconds."""

    waves: Sequence[str] | None
    max_parallel: int
    max_failures: int | None
    soak: float | None
    stop_on_breach: bool

    def check(self, fail_fast: bool, strict: bool) -> None:
        """Raises click.UsageError when options do not go together: none of them is left out silently."""
        if not self.waves and (self.max_failures is not None or self.soak is not None or self.stop_on_breach):
            raise click.UsageError(
                "--max-failures, --soak and --stop-on-breach are of a rollout: add --wave 1,10%,100%."
            )
        if self.waves and (fail_fast or strict):
            raise click.UsageError("--fail-fast and --strict are not for --wave: see --max-failures, --stop-on-breach.")


OPTIONS = (
    click.Option(["--wave"], type=Waves(), metavar="WAVES", help="As a rollout, in waves on the server: 1,10%,100%."),
    click.Option(["--max-failures"], type=click.IntRange(0), help="Of a rollout: so many may fail. [0]"),
    click.Option(["--soak"], type=SPAN, help="Of a rollout: how long to look at a wave before the next."),
    click.Option(["--stop-on-breach"], is_flag=True, help="Of a rollout: end it, not pause it, when too many fail."),
)


def run(
    invocation: Invocation,
    verb: Verb,
    chosen: Sequence[str],
    care: Care,
    arguments: Mapping[str, Any],
    *,
    detach: bool,
    dry_run: bool,
) -> int:
    """Make a rollout of these containers, show how it goes, and return the exit code."""
    import uuid

    from lading.v1 import commands_pb2, rollouts_pb2
    from lading_client import names, requests

    if not chosen:
        invocation.say("Nothing matches: nothing to do.")
        return 0
    plan = rollouts_pb2.RolloutPlan(
        verb=commands_pb2.Verb.Value(f"VERB_{verb.name.upper()}"),
        containers=[names.container(target) for target in chosen],
        waves=care.waves,
        max_concurrent=care.max_parallel,
        max_failures=care.max_failures or 0,
        soak=requests.duration(care.soak) if care.soak else None,
        on_breach=rollouts_pb2.ON_BREACH_STOP if care.stop_on_breach else rollouts_pb2.ON_BREACH_PAUSE,
    )
    if arguments.get("grace") is not None:
        plan.arguments.grace.CopyFrom(requests.duration(arguments["grace"]))
    plan.arguments.signal = arguments.get("signal") or ""
    plan.arguments.force = bool(arguments.get("force"))
    request = rollouts_pb2.CreateRolloutRequest(
        plan=plan, reason=invocation.reason, request_id=str(uuid.uuid4()), validate_only=dry_run
    )
    if not dry_run and len(chosen) >= verb.asks:
        confirm(invocation, verb, chosen)
    rollout = invocation.client.rollouts.CreateRollout(request)
    if dry_run:
        output.show_one(invocation, rollout, "", lambda: _planned(rollout, verb.name, chosen))
        return 0
    if detach:
        output.show_one(invocation, rollout, name_of(rollout), lambda: [f"{name_of(rollout)}  {progress_of(rollout)}"])
        return 0
    return follow(invocation, rollout)


def _planned(rollout: Rollout, verb: str, chosen: Sequence[str]) -> Iterator[str]:
    begin = 0
    for number, end in enumerate(rollout.wave_ends, 1):
        yield f"wave {number}: {verb} {output.plural(end - begin, 'container')}"
        yield from (f"  {target}" for target in chosen[begin:end][:10])
        if end - begin > 10:
            yield f"  and {end - begin - 10} more"
        begin = end
