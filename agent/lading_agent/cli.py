"""`lading agent`: run an agent on this host."""

import asyncio
import base64
import json
import logging
import os
import pathlib
import sys
import time

import click

from lading_agent.errors import AgentError
from lading_agent.journal import Journal, View
from lading_agent.refusals import Refusal
from lading_agent.refusals import read as read_refusals
from lading_agent.runtimes import Runtime
from lading_agent.settings import Settings, agent_name, check_server, parse_labels, read_token

DEFAULT_SOCKET = "unix:///var/run/docker.sock"


@click.group()
def agent() -> None:
    """The agent: executes commands on this host."""


@agent.command()
@click.option(
    "--server",
    envvar="LADING_SERVER",
    default="127.0.0.1:7443",
    show_default=True,
    metavar="HOST:PORT[,…]",
    help="The control plane; of several servers with one database, the IP addresses.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=pathlib.Path),
    metavar="FILE",
    help="File with the agent's token, read anew at each connection. Else LADING_TOKEN.",
)
@click.option(
    "--ca",
    type=click.Path(path_type=pathlib.Path),
    envvar="LADING_CA",
    metavar="FILE",
    help="Certificate that signed the server's (PEM). Needed unless the server is on this machine.",
)
@click.option("--name", metavar="NAME", help="The agent's name; must be the token's subject, and may be left out.")
@click.option(
    "--data",
    type=click.Path(path_type=pathlib.Path),
    envvar="LADING_AGENT_DATA",
    default="lading-agent-data",
    show_default=True,
    metavar="DIR",
    help="Folder for the journal; one agent each. Keep it: it is how a command is never done twice.",
)
@click.option(
    "--runtime",
    type=click.Choice(["docker", "process"]),
    default="docker",
    show_default=True,
    help="What to drive: a Docker-compatible engine (Docker, Podman), or plain processes.",
)
@click.option(
    "--docker-host",
    envvar="DOCKER_HOST",
    default=DEFAULT_SOCKET,
    show_default=True,
    metavar="URL",
    help="The engine: unix:///path/to/socket or tcp://HOST:PORT.",
)
@click.option(
    "--processes",
    type=click.Path(path_type=pathlib.Path),
    metavar="FILE.toml",
    help="Processes of the process runtime, as shown above.",
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the agent; may be repeated.")
def run(
    server: str,
    token_file: pathlib.Path | None,
    ca: pathlib.Path | None,
    name: str | None,
    data: pathlib.Path,
    runtime: str,
    docker_host: str,
    processes: pathlib.Path | None,
    labels: tuple[str, ...],
) -> None:
    """Run the agent of this host until SIGTERM or Ctrl-C.

    \b
    Examples:
      lading agent run --token-file agent.token
      lading agent run --server lading.example:7443 --ca ca.pem --token-file agent.token --label env=prod
      lading agent run --docker-host unix:///run/podman/podman.sock --token-file agent.token
      lading agent run --runtime process --processes processes.toml --token-file agent.token

    An admin makes the token:  lading token create --kind agent AGENT > agent.token

    A signal stops the agent, never a container: commands that run are finished and reported, then it ends with 0.

    \b
    A file of processes:
      [process.web]
      command = ["python3", "-m", "http.server", "8080"]
      cwd = "/srv/www"              # optional, as are all below
      env = { LANG = "C.UTF-8" }
      labels = { app = "web" }
      restart = "on-failure"        # no, on-failure, unless-stopped, always
      autocreate = true             # there is a container `web` at once, not started
      exec = true                   # `lading exec` may run other programs beside it
    """
    write_log_lines()
    try:
        check_server(server, ca)
        token = read_token(token_file, os.environ.get("LADING_TOKEN", ""))
        settings = Settings(
            server=server,
            name=agent_name(token, name),
            organization=token.organization,
            data=data,
            token_file=token_file,
            token_value="" if token_file else token.value,
            labels=parse_labels(labels),
            ca=ca,
        )
        asyncio.run(_run(settings, runtime, docker_host, processes))
    except AgentError as error:
        click.echo(f"lading agent: {error}", err=True)
        sys.exit(2)


@agent.command("forget-log")
@click.option(
    "--data",
    type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False),
    envvar="LADING_AGENT_DATA",
    default="lading-agent-data",
    show_default=True,
    metavar="DIR",
    help="The agent's folder; the agent must be stopped.",
)
def forget_log(data: pathlib.Path) -> None:
    """Believe the next audit log that the server shows, whatever this agent saw before.

    An agent refuses a log that does not extend the one it saw: history was rewritten, or the database restored.
    Only when it was restored, and `lading server accept-rollback` has said so in the log, is this the way on. Prints
    what the agent knew: the log's key, and the signed checkpoint, which its signer cannot deny.
    """
    try:
        view = asyncio.run(_forget_log(data))
    except AgentError as error:
        click.echo(f"lading agent: {error}", err=True)
        sys.exit(2)
    click.echo(f"{view.log_key}\n\n{view.checkpoint}" if view is not None else "the agent has seen no log yet")


@agent.command()
@click.option(
    "--data",
    type=click.Path(path_type=pathlib.Path, exists=True, file_okay=False),
    envvar="LADING_AGENT_DATA",
    default="lading-agent-data",
    show_default=True,
    metavar="DIR",
    help="The agent's folder; the agent may run.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: with the evidence.",
)
def refusals(data: pathlib.Path, output: str) -> None:
    """Show what this agent refused, oldest first. Only reads.

    \b
    Examples:
      lading agent refusals --data /var/lib/lading-agent
      lading agent refusals --data /var/lib/lading-agent -o json > evidence.json

    \b
    KIND is
      log      the server showed a log that does not extend the one that this agent saw: its history was rewritten,
               or its database restored. The agent executes nothing for it.
      command  one command was not proven to be in the log, or cannot be done here. The others go on.

    With -o json each one carries the evidence: `known`, the signed checkpoint that the agent had; `shown`, that which
    the server showed; and `frame`, all that it sent (a lading.v1.ConnectResponse, base64). Two checkpoints signed by
    one key that contradict each other are proof against who holds the key. The newest 256 of each kind are kept.
    """
    try:
        found = read_refusals(data)
    except AgentError as error:
        click.echo(f"lading agent: {error}", err=True)
        sys.exit(2)
    if output == "json":
        click.echo(json.dumps([_document(each) for each in found], indent=2, ensure_ascii=False))
        return
    if found:
        click.echo(f"{'AT':<20}  {'KIND':<7}  {'COMMAND':<36}  REASON")
    for each in found:
        at = each.at.strftime("%Y-%m-%dT%H:%M:%SZ")
        # What the server sent is data: its control characters never reach the terminal.
        reason, command = ("".join(c if c.isprintable() else "�" for c in text) for text in (each.reason, each.command))
        click.echo(f"{at}  {each.kind:<7}  {command or '-':<36}  {reason}")
    told = "The evidence is shown by -o json." if found else "This agent refused nothing."
    click.echo(told, err=True)


def _document(refusal: Refusal) -> dict[str, str]:
    return {
        "at": refusal.at.isoformat().replace("+00:00", "Z"),
        "kind": refusal.kind,
        "command": refusal.command,
        "reason": refusal.reason,
        "known": refusal.known,
        "shown": refusal.shown,
        "log_key": refusal.log_key,
        "frame": base64.b64encode(refusal.frame).decode(),
    }


async def _forget_log(data: pathlib.Path) -> View | None:
    journal = Journal(data)
    await journal.open()
    try:
        return await journal.forget_log()
    finally:
        await journal.close()


async def _run(settings: Settings, runtime: str, docker_host: str, processes: pathlib.Path | None) -> None:
    from lading_agent.daemon import Daemon

    await Daemon(settings, _make_runtime(settings, runtime, docker_host, processes)).run()


def _make_runtime(settings: Settings, runtime: str, docker_host: str, processes: pathlib.Path | None) -> Runtime:
    """Imports only what is driven: an agent of processes needs no HTTP."""
    if runtime == "docker":
        from lading_agent.runtimes.docker import DockerRuntime

        return DockerRuntime(docker_host)
    from lading_agent.runtimes.process import ProcessRuntime

    return ProcessRuntime(settings.data / "processes", processes)


def write_log_lines() -> None:
    """One line an event, on stderr: time in UTC, level, what happened."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
