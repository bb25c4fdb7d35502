"""`lading agents`: which there are, and taking one out of service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from lading_client.cli import output
from lading_client.cli.completion import complete_agents
from lading_client.cli.connection import Connection
from lading_client.cli.invocation import Group, Invocation, pass_invocation
from lading_client.cli.output import Cell, Column, Listing
from lading_client.cli.values import LABELS

if TYPE_CHECKING:
    from lading.v1.agents_pb2 import Agent
    from lading_client.client import Client


def _name(agent: Agent) -> str:
    from lading_client.names import short

    return short(agent.name)


def _state(agent: Agent) -> Cell:
    from lading_client.labels import agent_state

    if agent.banned:
        return output.state("banned")
    if agent.quarantined:
        return Cell("quarantined", "red")
    word = agent_state(agent)
    if word == "online" and not agent.hearing:
        return Cell("deaf", "red")
    if word == "online" and not agent.acting:
        return Cell("stuck", "red")
    return Cell(f"{word} drained", "yellow") if agent.drained else output.state(word)


def _life(agent: Agent) -> str:
    """Which of the three an agent is: connected, hearing, acting."""
    words = {"connected": agent.connected, "hearing": agent.hearing, "acting": agent.acting}
    return ",".join(word for word, is_so in words.items() if is_so) or "-"


LISTING: Listing[Agent] = Listing(
    _name,
    (
        Column("AGENT", _name, least=12),
        Column("STATE", _state),
        Column("SEEN", lambda agent: output.age(agent.last_seen_at)),
        Column("RUNTIME", lambda agent: agent.runtime or "-", least=10),
        Column("CONTAINERS", lambda agent: f"{agent.containers_running}/{agent.containers_total}"),
        Column("IN-FLIGHT", lambda agent: str(agent.commands_in_flight)),
        Column("LIFE", _life, wide=True),
        Column("VERSION", lambda agent: agent.version or "-", wide=True),
        Column("EPOCH", lambda agent: str(agent.epoch), wide=True),
        Column("LABELS", lambda agent: output.pairs(agent.labels), wide=True, least=12),
        Column("AGE", lambda agent: output.age(agent.created_at)),
    ),
)


def every(client: Client, labels: Mapping[str, str] | None = None) -> Iterator[Agent]:
    """All pages, by name."""
    from lading.v1 import agents_pb2
    from lading_client.paging import pages

    for page in pages(client.agents.ListAgents, agents_pb2.ListAgentsRequest(page_size=500, labels=labels or {})):
        yield from page.agents


@click.group(cls=Group)
def agents() -> None:
    """Agents: the processes beside container engines."""


@agents.command("ls", examples="lading agents ls\nlading agents ls -l zone=ams -o wide\nlading agents ls -w")
@click.option("-l", "--labels", type=LABELS, help="With all of these labels.")
@click.option("-w", "--watch", is_flag=True, help="Then each one that changes.")
@pass_invocation
def ls(invocation: Invocation, labels: Mapping[str, str] | None, watch: bool) -> None:
    """List agents.

    An agent that is `deaf` is connected and has not processed what it was sent; one that is `stuck` hears, and a canary
    has not come back through its executor; `quarantined`: two processes used its name at once (lading agents unban).
    """
    if watch:
        _watch(invocation, labels or {})
        return
    found = list(every(invocation.client, labels))
    output.show(invocation, LISTING, found)
    if not found and not labels:
        invocation.say("No agents yet. Make a token: lading token create --kind agent NAME")


def _watch(invocation: Invocation, labels: Mapping[str, str]) -> None:
    from lading_client.documents import json_line

    connection = Connection(invocation, "watch")
    table = output.table(LISTING, invocation.format)
    for agent in invocation.client.watch_agents(begun=connection.begun, lost=connection.lost):
        if any(agent.labels.get(key) != value for key, value in labels.items()):
            continue
        output.emit(table.lines([agent]) if invocation.format in ("table", "wide") else [json_line(agent)])


@agents.command("inspect", examples="lading agents inspect dock-1")
@click.argument("agent", shell_complete=complete_agents)
@pass_invocation
def inspect(invocation: Invocation, agent: str) -> None:
    """All about one agent, as JSON (or -o yaml)."""
    from lading.v1 import agents_pb2
    from lading_client import names
    from lading_client.documents import document

    found = invocation.client.agents.GetAgent(agents_pb2.GetAgentRequest(name=names.agent(agent)))
    output.show_document(invocation, document(found))


def _drain(invocation: Invocation, agents: Sequence[str], resume: bool) -> None:
    from lading.v1 import agents_pb2
    from lading_client import names

    for agent in agents:
        request = agents_pb2.DrainAgentRequest(name=names.agent(agent), reason=invocation.reason, resume=resume)
        invocation.client.agents.DrainAgent(request)
        click.echo(f"{names.short(agent)} {'resumed' if resume else 'drained'}")


def _ban(invocation: Invocation, agents: Sequence[str], lift: bool) -> None:
    from lading.v1 import agents_pb2
    from lading_client import names

    for agent in agents:
        request = agents_pb2.BanAgentRequest(name=names.agent(agent), reason=invocation.reason, lift=lift)
        invocation.client.agents.BanAgent(request)
        click.echo(f"{names.short(agent)} {'may connect again' if lift else 'banned'}")


which = click.argument("agents", nargs=-1, required=True, metavar="AGENT...", shell_complete=complete_agents)


@agents.command("drain", examples="lading agents drain dock-1 --reason 'kernel update'")
@which
@pass_invocation
def drain(invocation: Invocation, agents: Sequence[str]) -> None:
    """Send agents no more commands, until they are resumed. What runs goes on."""
    _drain(invocation, agents, resume=False)


@agents.command("resume", examples="lading agents resume dock-1")
@which
@pass_invocation
def resume(invocation: Invocation, agents: Sequence[str]) -> None:
    """Let drained agents have commands again."""
    _drain(invocation, agents, resume=True)


@agents.command("ban", examples="lading agents ban dock-1 --reason 'key was copied'")
@which
@pass_invocation
def ban(invocation: Invocation, agents: Sequence[str]) -> None:
    """End the sessions of agents and refuse new ones, until the ban is lifted."""
    if not invocation.yes:
        click.confirm(f"Ban {' '.join(agents)}?", abort=True, err=True)
    _ban(invocation, agents, lift=False)


@agents.command("unban", examples="lading agents unban dock-1")
@which
@pass_invocation
def unban(invocation: Invocation, agents: Sequence[str]) -> None:
    """Let banned or quarantined agents connect again."""
    _ban(invocation, agents, lift=True)


# kubectl's words for the same.
agents.add_command(drain, "cordon")
agents.add_command(resume, "uncordon")
