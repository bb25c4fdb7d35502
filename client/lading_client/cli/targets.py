"""Which containers a command line means: names, a name that is unique in the organization, labels, all of an agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lading_client.cli.completion import complete_agents, complete_targets
from lading_client.cli.values import LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lading_client.client import Client


def argument() -> click.Argument:
    return click.Argument(["targets"], nargs=-1, metavar="[TARGET]...", shell_complete=complete_targets)


def selection() -> tuple[click.Option, ...]:
    """The options that select containers instead of naming them."""
    return (
        click.Option(["--agent"], metavar="AGENT", shell_complete=complete_agents, help="On this agent."),
        click.Option(["-l", "--labels"], type=LABELS, help="With all of these labels."),
    )


def resolve(client: Client, target: str) -> str:
    """`agent/container` of what a person typed.

    click.UsageError, naming the candidates, when several containers have the name; errors.NotFound when none has.
    """
    from lading_client import errors, names

    name = names.short(target)
    if "/" in name:
        agent, _, container = name.partition("/")
        if not agent or not container or "/" in container:
            raise click.UsageError(f"{target!r} is not AGENT/CONTAINER, as in dock-1/web.")
        return name
    found = [names.short(container.name) for container in client.list_containers(container=name)]
    if not found:
        raise errors.NotFound(f"There is no container {name} on any agent. What there is: lading ps -a")
    if len(found) > 1:
        raise click.UsageError(f"{name} is on several agents. Say which: {' '.join(found)}")
    return found[0]


def select(
    client: Client, targets: Sequence[str], labels: Mapping[str, str] | None, agent: str | None, every: bool
) -> list[str]:
    """`agent/container` of everything meant, each once, in the order given. Labels and agents may match nothing."""
    from lading_client import names

    if targets and (labels or agent or every):
        raise click.UsageError("Give targets, or select them by -l or --agent with --all; not both.")
    if targets:
        return list(dict.fromkeys(resolve(client, target) for target in targets))
    if not labels and not (agent and every):
        raise click.UsageError("Which? Give targets (AGENT/CONTAINER), or -l LABELS, or --agent AGENT --all.")
    return [names.short(container.name) for container in client.list_containers(agent=agent or "", labels=labels)]
