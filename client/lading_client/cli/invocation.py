"""One run of `lading`: the options that every command takes, and what follows from them, the environment and the file.

A flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any

import click

from lading_client import claims
from lading_client.cli import config
from lading_client.cli.values import SPAN

if TYPE_CHECKING:
    from lading_client.client import Client

DEFAULT_SERVER = "127.0.0.1:7443"
FORMATS = ("table", "wide", "json", "jsonl", "yaml", "name", "csv")


@dataclass
class Invocation:
    """`flags` are those that were given, by name."""

    flags: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Invocation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if "client" in vars(self) and kind is not KeyboardInterrupt:
            self.client.close()

    def flag(self, name: str, variable: str = "", default: Any = None) -> Any:
        """What was given, else the environment's, else the default."""
        if name in self.flags:
            return self.flags[name]
        return (os.environ.get(variable) if variable else None) or default

    @cached_property
    def saved(self) -> config.Config:
        found = config.read()
        if found.contexts and config.exposed():
            self.say(f"Others can read the tokens in {config.path()}. Run: chmod 600 {config.path()}")
        return found

    @cached_property
    def context(self) -> config.Context:
        """Server and token to use. A token is never sent to another server than the one it was saved for."""
        server = self.flag("server", "LADING_SERVER")
        org = self.flag("org", "LADING_ORG")
        chosen = self._chosen(server, org)
        context = config.Context(
            server=server or chosen.server,
            token=os.environ.get("LADING_TOKEN") or chosen.token,
            org=chosen.org,
            ca=self.flag("ca", default=chosen.ca),
        )
        actual = claims.organization(context.token)
        if org and actual and org != actual:
            raise click.UsageError(
                f"The token is for the organization {actual}, not {org}. Sign in there: lading login --context {org}"
            )
        return context

    def _chosen(self, server: str | None, org: str | None) -> config.Context:
        known = self.saved.contexts
        name = self.flag("context")
        if name is not None:
            if name not in known:
                raise click.UsageError(f"There is no context {name}. Contexts: {', '.join(known) or 'none'}.")
            if server and server != known[name].server:
                raise click.UsageError(f"The context {name} is for {known[name].server}, not {server}.")
            return known[name]
        mine = {self.saved.current: known[self.saved.current]} if self.saved.current in known else {}
        candidates: list[config.Context] = [*mine.values(), *(known.values() if server or org else ())]
        for context in candidates:
            if server in (None, context.server) and org in (None, context.org):
                return context
        return config.Context(server or DEFAULT_SERVER)

    @cached_property
    def org(self) -> str:
        """Organization of the token, as it says itself."""
        return claims.organization(self.context.token) or self.context.org

    @cached_property
    def correlation_id(self) -> str:
        """Goes with every call of this run, so that the log can show them together."""
        return str(self.flag("correlation_id", default=f"cli-{secrets.token_hex(6)}"))

    def timeout(self, default: float = 30.0) -> float:
        """Seconds."""
        return float(self.flag("timeout", default=default))

    @cached_property
    def client(self) -> Client:
        # gRPC's own log lines would stand between ours.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from lading_client.client import Client

        context = self.context
        try:
            return Client(
                context.server,
                token=context.token or None,
                ca=context.ca or None,
                source="cli",
                correlation_id=self.correlation_id,
                timeout=self.timeout(),
            )
        except (ValueError, OSError) as error:
            raise click.UsageError(str(error)) from None

    @property
    def format(self) -> str:
        chosen = str(self.flag("output", "LADING_OUTPUT", "table"))
        if chosen not in FORMATS:
            raise click.UsageError(f"There is no format {chosen}. Formats: {', '.join(FORMATS)}.")
        return chosen

    @property
    def quiet(self) -> bool:
        return bool(self.flags.get("quiet"))

    @property
    def verbose(self) -> bool:
        return bool(self.flags.get("verbose"))

    @property
    def reason(self) -> str:
        return str(self.flags.get("reason", ""))

    @property
    def yes(self) -> bool:
        return bool(self.flags.get("yes"))

    @property
    def human(self) -> bool:
        """Whether a person reads the output: a table on a terminal."""
        return sys.stdout.isatty() and self.format in ("table", "wide")

    def say(self, text: str) -> None:
        """A message, to stderr; `-q` silences it."""
        if not self.quiet:
            click.echo(text, err=True)


def _remember(context: click.Context, option: click.Parameter, value: Any) -> Any:
    if option.name == "no_color":
        if value:
            context.find_root().color = context.color = False
    elif context.get_parameter_source(str(option.name)) is not click.core.ParameterSource.DEFAULT:
        current(context).flags[str(option.name)] = value
    return value


def current(context: click.Context | None = None) -> Invocation:
    """The invocation that the running command belongs to."""
    return (context or click.get_current_context()).find_root().ensure_object(Invocation)


def _options(hidden: bool) -> list[click.Parameter]:
    def option(*names: str, **settings: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_remember, hidden=hidden, **settings)

    return [
        option(
            "--server",
            metavar="HOST:PORT[,…]",
            help=f"Server, or the IP addresses of several with one database. [LADING_SERVER; {DEFAULT_SERVER}]",
        ),
        option("--context", metavar="NAME", help="Context of the config file to use."),
        option("--org", metavar="ORG", help="Refuse to act in another organization than this. [LADING_ORG]"),
        option("-o", "--output", type=click.Choice(FORMATS), help="Format. [LADING_OUTPUT; table]"),
        option("-q", "--quiet", is_flag=True, help="No messages; only ids where a table would be."),
        option("-v", "--verbose", is_flag=True, help="Say more about failures."),
        option("--no-color", is_flag=True, help="No colours. [NO_COLOR]"),
        option("--timeout", type=SPAN, help="How long a call may take. [30s; 60s for changes]"),
        option("--reason", metavar="TEXT", help="Why; recorded in the audit log."),
        option("--correlation-id", metavar="ID", help="Id under which the log shows the calls of this run together."),
        option("-y", "--yes", is_flag=True, help="Do not ask."),
        option("--ca", type=click.Path(dir_okay=False), help="Certificates (PEM) that may sign the server's."),
    ]


class Command(click.Command):
    """A command that takes the options of every command, and shows its examples first."""

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples
        own = {option for parameter in self.params for option in parameter.opts}
        for parameter in self.params:
            if isinstance(parameter.type, click.IntRange):
                parameter.metavar = parameter.metavar or "N"
        self.params += [option for option in _options(hidden=True) if not own.intersection(option.opts)]

    def get_short_help_str(self, limit: int = 0) -> str:
        """The whole first sentence: a list of commands wraps it."""
        return super().get_short_help_str(limit=500)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                write_examples(formatter, self.examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("\nOptions of every command: lading --help\n")


class Group(click.Group):
    """A group of such commands, which are shown in the order in which they were made: the ones used most come first."""

    command_class = Command
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def write_examples(formatter: click.HelpFormatter, examples: str) -> None:
    """One on each line; what a command does is below it where there is no room beside all of them."""
    lines = [line.strip() for line in examples.strip().splitlines()]
    narrow = any("  " in line and len(line) + 2 > formatter.width for line in lines)
    for line in lines:
        formatter.write(f"  {re.sub(r' {2,}', chr(10) + ' ' * 6, line) if narrow else line}\n")


def global_options() -> Sequence[click.Parameter]:
    return _options(hidden=False)


def pass_invocation(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command the invocation as its first argument, and close its client at the end."""

    def run(*args: Any, **options: Any) -> Any:
        with current() as invocation:
            return command(invocation, *args, **options)

    return update_wrapper(run, command)
