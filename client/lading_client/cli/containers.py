"""`lading ps`, `create`, `pull`, `logs`, `inspect`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from lading_client.cli import change, output, targets
from lading_client.cli.completion import complete_agents, complete_targets
from lading_client.cli.invocation import Command, Invocation, pass_invocation
from lading_client.cli.output import Column, Listing
from lading_client.cli.values import LABELS, MOMENT, PAIR

if TYPE_CHECKING:
    from lading.v1.commands_pb2 import Command as CommandMessage
    from lading.v1.containers_pb2 import Container
    from lading_client.client import Client
    from lading_client.errors import LadingError

ALIVE = ("running", "paused", "restarting")
WATCH = 2.0  # seconds between two looks


def _age(container: Container) -> str:
    """Since the last change of the process."""
    since = container.started_at if container.state in ALIVE else container.finished_at
    return output.age(since if since.seconds else container.created_at)


def _name(container: Container) -> str:
    from lading_client.names import short

    return short(container.name)


LISTING: Listing[Container] = Listing(
    _name,
    (
        Column("TARGET", _name, least=20),
        Column("IMAGE", lambda container: container.image, least=12),
        Column("STATE", lambda container: output.state(container.state)),
        Column("HEALTH", lambda container: output.state(container.health)),
        Column("EXIT", lambda container: str(container.exit_code) if container.state == "exited" else "-", wide=True),
        Column("RESTARTS", lambda container: str(container.restart_count), wide=True),
        Column("ID", lambda container: container.id, wide=True, least=12),
        Column("LABELS", lambda container: output.pairs(container.labels), wide=True, least=12),
        Column("AGE", _age),
    ),
)


@click.command(
    cls=Command,
    examples="""
    lading ps                          what runs
    lading ps -a                       what there is
    lading ps -l env=prod -o wide
    lading ps --agent dock-1 --filter status=exited -q""",
    params=[targets.argument(), *targets.selection()],
)
@click.option("-a", "--all", "every", is_flag=True, help="Also what does not run.")
@click.option("--filter", "filters", type=PAIR, multiple=True, help="status=STATE; may be repeated.")
@click.option("-w", "--watch", is_flag=True, help="Go on showing it.")
@click.option("--no-trunc", is_flag=True, help="Cut nothing to the width of the terminal.")
@pass_invocation
def ps(
    invocation: Invocation,
    targets: Sequence[str],
    every: bool,
    labels: Mapping[str, str] | None,
    agent: str | None,
    filters: Sequence[tuple[str, str]],
    watch: bool,
    no_trunc: bool,
) -> None:
    """Containers as their agents last reported them.

    Without a selection, those that run; what is selected is shown in any state.
    """
    if wrong := [key for key, _ in filters if key != "status"]:
        raise click.UsageError(f"There is no filter {wrong[0]}. Filters: status.")
    states = [value for _, value in filters]
    selected = bool(every or targets or labels or agent or states)
    seen: list[Container] | None = None
    while True:
        found = _find(invocation.client, targets, labels, agent, states)
        shown = found if selected else [container for container in found if container.state in ALIVE]
        if shown != seen:
            if seen is not None:
                click.clear() if invocation.human else click.echo()
            output.show(invocation, LISTING, shown, no_trunc)
            _summary(invocation, found, len(shown))
        if not watch:
            return
        seen = shown
        time.sleep(WATCH)


def _find(
    client: Client,
    chosen: Sequence[str],
    labels: Mapping[str, str] | None,
    agent: str | None,
    states: Sequence[str],
) -> list[Container]:
    found = list(client.list_containers(agent=agent or "", labels=labels, states=states))
    if not chosen:
        return found
    wanted = {targets.resolve(client, target) for target in chosen}
    return [container for container in found if _name(container) in wanted]


def _summary(invocation: Invocation, found: Sequence[Container], shown: int) -> None:
    if invocation.format not in ("table", "wide"):
        return
    agents = len({container.name.split("/")[1] for container in found})
    sentence = f"{output.plural(shown, 'container')} on {output.plural(agents, 'agent')}."
    if shown < len(found):
        hidden = len(found) - shown
        sentence += f" {hidden} more {'does' if hidden == 1 else 'do'} not run: lading ps -a"
    invocation.say(sentence)
    stale = {container.name.split("/")[1]: container.as_of for container in found if not container.current}
    for agent, as_of in stale.items():
        invocation.say(f"{agent} is offline: its containers are from {output.age(as_of)} ago.")


@click.command(
    cls=Command,
    examples="""
    lading create dock-1/web --image web:1.30
    lading create dock-1/job --image busybox --network none --label app=job -- sleep 600
    lading create dock-1/api --image api:2.4 -e MODE=fast --restart always""",
)
@click.argument("target", metavar="AGENT/NAME", shell_complete=complete_targets)
@click.argument("command", nargs=-1, metavar="[-- CMD...]")
@click.option("--image", required=True, help="Image as the engine names it; or name of a declared process.")
@click.option("-e", "--env", type=PAIR, multiple=True, help="Environment; never recorded.")
@click.option("--label", "labels", type=PAIR, multiple=True, help="Label.")
@click.option("--network", default="", help="none, host, bridge or a network's name.")
@click.option("--restart", type=click.Choice(["no", "always", "unless-stopped", "on-failure"]), help="When it ends.")
@click.option("-d", "--detach", is_flag=True, help="Only record it; do not wait for the end.")
@pass_invocation
def create(
    invocation: Invocation,
    target: str,
    command: Sequence[str],
    image: str,
    env: Sequence[tuple[str, str]],
    labels: Sequence[tuple[str, str]],
    network: str,
    restart: str | None,
    detach: bool,
) -> int:
    """Make a container, without starting it."""
    if "/" not in target:
        raise click.UsageError(f"{target!r} is not AGENT/NAME, as in dock-1/web.")
    spec: dict[str, Any] = {
        "command": command,
        "env": dict(env),
        "labels": dict(labels),
        "network": network,
        "restart": restart or "",
    }

    def ask(client: Client, target: str, **how: Any) -> CommandMessage:
        return client.create(target, image, **spec, **how)

    chosen = [targets.resolve(invocation.client, target)]
    return change.run(invocation, change.CREATE, chosen, ask, change.Plan(detach=detach))


@click.command(cls=Command, examples="lading pull web:1.31 dock-1 dock-2\nlading pull web:1.31 -l zone=ams")
@click.argument("image")
@click.argument("agents", nargs=-1, metavar="AGENT...", shell_complete=complete_agents)
@click.option("-l", "--labels", type=LABELS, help="On the agents with all of these labels.")
@click.option("-d", "--detach", is_flag=True, help="Only record it; do not wait for the end.")
@pass_invocation
def pull(
    invocation: Invocation, image: str, agents: Sequence[str], labels: Mapping[str, str] | None, detach: bool
) -> int:
    """Fetch an image to agents."""
    from lading_client import names
    from lading_client.cli.agents import every

    if bool(agents) == bool(labels):
        raise click.UsageError("Where to? Give agents, or -l LABELS.")
    chosen = [names.short(agent) for agent in agents]
    chosen = chosen or [names.short(agent.name) for agent in every(invocation.client, labels)]

    def ask(client: Client, agent: str, **how: Any) -> CommandMessage:
        return client.pull(agent, image, **how)

    plan = change.Plan(detach=detach)
    return change.run(invocation, change.PULL, chosen, ask, plan)


@click.command(cls=Command, examples="lading logs dock-1/web --tail 100\nlading logs web -f --since 10m -t")
@click.argument("target", shell_complete=complete_targets)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--tail", type=click.IntRange(0), default=0, help="Only the last so many lines.")
@click.option("--since", type=MOMENT, help="Only what was written since.")
@click.option("-t", "--timestamps", is_flag=True, help="The time before each line.")
@pass_invocation
def logs(
    invocation: Invocation, target: str, follow: bool, tail: int, since: datetime | None, timestamps: bool
) -> None:
    """What the process of a container writes: its stdout to stdout, its stderr to stderr.

    A lost connection, to the server or of its agent, is made anew, and the log goes on where it was: nothing is left
    out, nothing repeated.
    """
    from lading.v1 import containers_pb2

    def lost(failure: LadingError) -> None:
        invocation.say(f"The connection is lost ({failure.code}), going on as soon as there is one.")

    client = invocation.client
    name = targets.resolve(client, target)
    for piece in client.logs(name, follow=follow, tail=tail, since=since, timestamps=timestamps, lost=lost):
        stream = sys.stderr if piece.source == containers_pb2.LOG_SOURCE_STDERR else sys.stdout
        stream.buffer.write(piece.data)
        stream.buffer.flush()


@click.command(cls=Command, examples="lading inspect dock-1/web\nlading inspect web | jq -r .image_digest")
@click.argument("target", shell_complete=complete_targets)
@pass_invocation
def inspect(invocation: Invocation, target: str) -> None:
    """All about one container, as JSON (or -o yaml)."""
    from lading.v1 import containers_pb2
    from lading_client import names
    from lading_client.documents import document

    client = invocation.client
    name = names.container(targets.resolve(client, target))
    container = client.containers.GetContainer(containers_pb2.GetContainerRequest(name=name))
    output.show_document(invocation, document(container))
