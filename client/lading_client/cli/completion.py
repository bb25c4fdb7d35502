"""Completion in the shell: commands and options by click, names from the server within 500 ms, kept for 2 s."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from lading_client.cli.invocation import Command, Invocation, current

if TYPE_CHECKING:
    from lading_client.client import Client

LIMIT = 0.5  # seconds that a person waits for a completion
KEPT = 2.0  # seconds

SETUP = {
    "bash": 'eval "$(lading completion bash)"      in ~/.bashrc',
    "zsh": 'eval "$(lading completion zsh)"       in ~/.zshrc',
    "fish": "lading completion fish | source       in ~/.config/fish/config.fish",
}


@click.command(cls=Command, examples="\n".join(SETUP.values()))
@click.argument("shell", type=click.Choice(tuple(SETUP)))
def completion(shell: str) -> None:
    """Print what makes a shell complete `lading`."""
    from click.shell_completion import get_completion_class

    from lading_client.cli import root

    kind = get_completion_class(shell)
    assert kind is not None
    if shell == "bash":
        # click's own check starts another bash, which has no completion in a minimal container.
        kind._check_version = staticmethod(lambda: None)  # type: ignore[attr-defined]
    click.echo(kind(root, {}, "lading", "_LADING_COMPLETE").source())


def complete_targets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return _offer(context, "targets", incomplete, _targets)


def complete_agents(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return _offer(context, "agents", incomplete, _agents)


def complete_rollouts(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return _offer(context, "rollouts", incomplete, _rollouts)


def complete_commands(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return _offer(context, "commands", incomplete, _commands)


def _targets(client: Client) -> list[str]:
    from lading_client import names, requests

    page = client.containers.ListContainers(requests.list_containers(), timeout=LIMIT)
    return [names.short(container.name) for container in page.containers]


def _agents(client: Client) -> list[str]:
    from lading.v1 import agents_pb2
    from lading_client import names

    page = client.agents.ListAgents(agents_pb2.ListAgentsRequest(page_size=500), timeout=LIMIT)
    return [names.short(agent.name) for agent in page.agents]


def _rollouts(client: Client) -> list[str]:
    from lading.v1 import rollouts_pb2
    from lading_client import names

    page = client.rollouts.ListRollouts(rollouts_pb2.ListRolloutsRequest(page_size=50), timeout=LIMIT)
    return [names.short(rollout.name) for rollout in page.rollouts]


def _commands(client: Client) -> list[str]:
    from lading.v1 import commands_pb2
    from lading_client import names

    page = client.commands.ListCommands(commands_pb2.ListCommandsRequest(page_size=50), timeout=LIMIT)
    return [names.short(command.name) for command in page.commands]


def _offer(context: click.Context, kind: str, incomplete: str, ask: Callable[[Client], list[str]]) -> list[str]:
    """What begins so. Failures offer nothing: a completion must never disturb the line that is being typed."""
    from lading_client.errors import LadingError

    with current(context) as invocation:
        kept = _cache(invocation, kind)
        try:
            if time.time() - kept.stat().st_mtime < KEPT:
                return [name for name in json.loads(kept.read_text()) if name.startswith(incomplete)]
        except (OSError, ValueError):
            pass
        try:
            found = ask(invocation.client)
        except (LadingError, click.ClickException):
            return []
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept.write_text(json.dumps(found))
    except OSError:
        pass
    return [name for name in found if name.startswith(incomplete)]


def _cache(invocation: Invocation, kind: str) -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    place = f"{invocation.context.server}-{invocation.org}-{kind}".replace("/", "_")
    return pathlib.Path(home) / "lading" / f"{place}.json"
