"""The command line `lading`. Conventions, formats and exit codes are those of docker and kubectl where they agree.

`main` is the entry point; each noun has its module. Modules load when their command runs: `lading --help` waits for
none of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from lading_client.cli.invocation import Invocation, global_options, write_examples

if TYPE_CHECKING:
    from lading_client.errors import LadingError

HERE = "lading_client.cli"
INTERRUPTED = 130
# Section, command, where it is, what it does.
TREE = (
    ("Containers", "ps", f"{HERE}.containers:ps", "Containers and their state."),
    ("Containers", "create", f"{HERE}.containers:create", "Make a container."),
    ("Containers", "start", f"{HERE}.lifecycle:start", "Start containers."),
    ("Containers", "stop", f"{HERE}.lifecycle:stop", "Stop containers."),
    ("Containers", "restart", f"{HERE}.lifecycle:restart", "Stop and start containers."),
    ("Containers", "kill", f"{HERE}.lifecycle:kill", "Send a signal to containers."),
    ("Containers", "pause", f"{HERE}.lifecycle:pause", "Freeze containers."),
    ("Containers", "unpause", f"{HERE}.lifecycle:unpause", "Let frozen containers go on."),
    ("Containers", "rm", f"{HERE}.lifecycle:rm", "Remove containers."),
    ("Containers", "pull", f"{HERE}.containers:pull", "Fetch an image to agents."),
    ("Containers", "exec", f"{HERE}.exec:exec_", "Run a program in a container."),
    ("Containers", "logs", f"{HERE}.containers:logs", "What a container writes."),
    ("Containers", "events", f"{HERE}.drifts:events", "What happened to containers without Lading."),
    ("Containers", "inspect", f"{HERE}.containers:inspect", "All about one container."),
    ("Fleet", "agents", f"{HERE}.agents:agents", "Agents: which there are, drain, ban."),
    ("Fleet", "commands", f"{HERE}.commands:commands", "Commands: what became of them, wait, cancel."),
    ("Fleet", "rollouts", f"{HERE}.rollouts:rollouts", "Rollouts: one action on many containers, in waves."),
    ("Audit", "audit", f"{HERE}.audit:audit", "The log: list, follow, show, count, export, verify."),
    ("Access", "login", f"{HERE}.contexts:login", "Save a server and a token."),
    ("Access", "logout", f"{HERE}.contexts:logout", "Forget a token."),
    ("Access", "whoami", f"{HERE}.access:whoami", "Who the server takes you for."),
    ("Access", "context", f"{HERE}.contexts:context", "Servers and tokens that are saved."),
    ("Access", "token", f"{HERE}.access:token", "Tokens: create, list, revoke."),
    ("Access", "role", f"{HERE}.access:role", "Roles: list, assign, remove."),
    ("Access", "org", f"{HERE}.access:org", "Organizations: create."),
    ("This machine", "demo", f"{HERE}.demo:demo", "Server, agents and viewer at work, for a look."),
    ("This machine", "doctor", f"{HERE}.doctor:doctor", "What is wrong, and the command that fixes it."),
    ("This machine", "server", "", "The server: init, run, migrate."),
    ("This machine", "agent", "", "The agent: run, and what it refused."),
    ("This machine", "viewer", "", "The viewer: run."),
    ("This machine", "completion", f"{HERE}.completion:completion", "Completion for bash, zsh or fish."),
    ("This machine", "version", f"{HERE}.version:version", "Versions of client, protocol and server."),
)
SETTINGS = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
EXAMPLES = """
  lading demo                                      all of it on this machine
  lading ps                                        what runs where
  lading stop dock-1/web --reason "INC-527"        stop it, and say why
  lading audit ls 'action:stop -status:SUCCESS'    stops that did not succeed
"""
PLACES = {name: place for _, name, place, _ in TREE}


class Root(click.Group):
    """`lading`: a group whose commands are loaded when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in PLACES:
            return None
        if PLACES[cmd_name]:
            module, _, attribute = PLACES[cmd_name].partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            found = daemon(cmd_name)
        assert isinstance(found, click.Command)
        return found

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            write_examples(formatter, EXAMPLES)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(section for section, *_ in TREE):
            with formatter.section(section):
                formatter.write_dl([(name, text) for there, name, _, text in TREE if there == section], col_max=12)


def daemon(name: str) -> click.Command:
    """The command group that another package offers as entry point `lading.commands`."""
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="lading.commands", name=name)
    try:
        found = entry.load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lading"):
            raise
        message = f"lading {name} is not installed here ({error}). Run: pip install 'lading[{name}]'"
        raise click.ClickException(message) from None
    assert isinstance(found, click.Command)
    return found


@click.command(cls=Root, params=list(global_options()), context_settings=SETTINGS)
def root() -> None:
    """Operate containers on many hosts, with an audit log that can be proven."""


def main() -> None:
    """Run the command line; ends the process with one of the exit codes of `lading_client.errors` or of click."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = run(sys.argv[1:])
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        sys.stdout.flush()
        # An interrupt inside gRPC's locks can leave its threads waiting for each other: nothing of it is torn down,
        # and while this handler runs the exception keeps all of it alive.
        os._exit(INTERRUPTED)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; its exit code. Raises KeyboardInterrupt or click.Abort on Ctrl-C."""
    invocation = Invocation()
    color = False if os.environ.get("NO_COLOR") else None
    try:
        found = root.main(arguments, prog_name="lading", standalone_mode=False, obj=invocation, color=color)
        sys.stdout.flush()
        return found if isinstance(found, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough; what is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from lading_client.errors import LadingError

        if not isinstance(error, LadingError):
            raise
        return failed(error, invocation.verbose, color)


def failed(error: LadingError, verbose: bool, color: bool | None) -> int:
    """Say what went wrong and what helps; the exit code."""
    from lading_client.cli.failure import sentences

    for line in sentences(error, verbose):
        click.echo(line, err=True, color=color)
    return error.exit_code
