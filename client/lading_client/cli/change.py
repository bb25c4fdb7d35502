"""One change asked of many containers: with progress for people, one document for programs, honest exit codes."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from lading_client.cli import output

if TYPE_CHECKING:
    from lading.v1.commands_pb2 import Command
    from lading_client.cli.invocation import Invocation
    from lading_client.client import Client
    from lading_client.errors import LadingError

TIMEOUT = 60.0  # seconds
SOME_FAILED = 3
INTERRUPTED = 130


@dataclass(frozen=True)
class Verb:
    """`done`: what people read when it is. `already`: the states of a container in which there is nothing to do.

    From `asks` targets on, a person is asked first.
    """

    name: str
    done: str
    already: frozenset[str] = frozenset()
    asks: int = 2


START = Verb("start", "started", frozenset({"running"}))
STOP = Verb("stop", "stopped", frozenset({"exited", "created", "dead"}))
RESTART = Verb("restart", "restarted")
KILL = Verb("kill", "killed", asks=1)
PAUSE = Verb("pause", "paused", frozenset({"paused"}))
UNPAUSE = Verb("unpause", "unpaused", frozenset({"running"}))
REMOVE = Verb("remove", "removed", asks=1)
CREATE = Verb("create", "created")
PULL = Verb("pull", "pulled", asks=sys.maxsize)

# Asks for one change: client, target, and what every lifecycle request says. Answers with the command.
Ask = Callable[..., "Command"]


@dataclass(frozen=True)
class Plan:
    """How the change is made."""

    detach: bool = False
    max_parallel: int = 10
    fail_fast: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Result:
    """What became of one target. `status` as in the log; `duration_ms` as the caller saw it."""

    target: str
    status: str
    word: str
    command: str = ""
    error: LadingError | None = None
    duration_ms: int = 0

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "target": self.target,
            "status": self.status,
            "command": self.command,
            "duration_ms": self.duration_ms,
        }
        if self.error:
            document |= {"code": self.error.code, "reason": self.error.reason, "error": str(self.error)}
        return document


def run(
    invocation: Invocation, verb: Verb, chosen: Sequence[str], ask: Ask, plan: Plan, *, dry_run: bool = False
) -> int:
    """Ask it of each target, print what became of it, and return the exit code."""
    if not chosen:
        invocation.say("Nothing matches: nothing to do.")
        if invocation.format in ("json", "jsonl", "yaml"):
            output.show_document(invocation, {"correlation_id": invocation.correlation_id, "results": []})
        return 0
    if dry_run:
        output.emit(f"{target} would be {verb.done}" for target in chosen)
        return 0
    if len(chosen) >= verb.asks:
        confirm(invocation, verb, chosen)
    going = Run(invocation, verb, ask, plan)
    results: list[Result] = []
    with progress(invocation, verb, chosen) as tell:
        try:
            for result in going.results(chosen):
                results.append(result)
                tell(result)
        except KeyboardInterrupt:
            return going.interrupted(chosen, results)
    if invocation.format in ("json", "jsonl", "yaml"):
        documents = [one.document for one in sorted(results, key=lambda one: chosen.index(one.target))]
        output.show_document(invocation, {"correlation_id": invocation.correlation_id, "results": documents})
    return conclude(invocation, verb, results)


def confirm(invocation: Invocation, verb: Verb, chosen: Sequence[str]) -> None:
    """Have a person type the organization's name; click.UsageError where there is no person and no --yes."""
    if invocation.yes:
        return
    agents = len({target.partition("/")[0] for target in chosen})
    what = f"{verb.name.capitalize()} {output.plural(len(chosen), 'container')} on {output.plural(agents, 'agent')}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}: without a terminal this needs --yes.")
    for target in chosen[:10]:
        click.echo(f"  {target}", err=True)
    if len(chosen) > 10:
        click.echo(f"  and {len(chosen) - 10} more", err=True)
    if click.prompt(f"{what}? Type the org name", err=True) != invocation.org:
        raise click.UsageError(f"The organization is {invocation.org or 'not known'}. Nothing was changed.")


@dataclass
class Run:
    """One verb on its way over the targets. `request_ids` finds the commands again when the waiting is cut short."""

    invocation: Invocation
    verb: Verb
    ask: Ask
    plan: Plan
    request_ids: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def results(self, chosen: Sequence[str]) -> Iterator[Result]:
        """Of each target, as they come."""
        client = self.invocation.client
        pool = ThreadPoolExecutor(self.plan.max_parallel)
        try:
            waiting = [pool.submit(self._one, client, target) for target in chosen]
            for done in as_completed(waiting):
                yield done.result()
        finally:
            # On Ctrl-C: the calls that wait end with the channel, so that no thread holds the process.
            pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, client: Client, target: str) -> Result:
        from lading_client import errors, names
        from lading_client.labels import SETTLED

        if self.failed and self.plan.fail_fast:
            return Result(target, "SKIPPED", "not begun")
        self.request_ids[target] = request_id = str(uuid.uuid4())
        began = time.monotonic()
        how = {"reason": self.invocation.reason, "request_id": request_id, "detach": self.plan.detach}
        try:
            command = self.ask(client, target, timeout=self.invocation.timeout(TIMEOUT), **how)
        except errors.LadingError as error:
            if isinstance(error, errors.FailedPrecondition) and not self.plan.strict and self._already(client, target):
                return Result(target, "SUCCESS", f"already {self.verb.done}", error.command, None, _since(began))
            self.failed = True
            return Result(target, outcome(error), error.code, error.command, error, _since(began))
        settled = command.state in SETTLED
        word = self.verb.done if settled else f"recorded: lading commands wait {names.short(command.name)}"
        return Result(target, "SUCCESS" if settled else "PENDING", word, command.name, None, _since(began))

    def _already(self, client: Client, target: str) -> bool:
        """Whether the container is where the verb leads: then the refusal says that there is nothing to do."""
        from lading.v1 import containers_pb2
        from lading_client import errors, names

        if not self.verb.already:
            return False
        try:
            request = containers_pb2.GetContainerRequest(name=names.container(target))
            container = client.containers.GetContainer(request)
        except errors.LadingError:
            return False
        return container.current and container.state in self.verb.already

    def interrupted(self, chosen: Sequence[str], results: Sequence[Result]) -> int:
        """Say that the commands go on, and how to find them."""
        from lading_client import names

        ended = {result.target for result in results}
        commands = [command for target in chosen if target not in ended and (command := self._find(target)) is not None]
        ids = " ".join(names.short(command.name) for command in commands)
        if ids:
            noun, goes = ("command", "goes") if len(commands) == 1 else ("commands", "go")
            click.echo(f"\nStopped waiting. The {noun} {goes} on: lading commands wait {ids}", err=True)
        else:
            click.echo("\nStopped waiting. Nothing of it is under way.", err=True)
        return INTERRUPTED

    def _find(self, target: str) -> Command | None:
        """The command that our request became, if it is not settled."""
        from lading.v1 import commands_pb2
        from lading_client import errors, names
        from lading_client.labels import SETTLED

        request = commands_pb2.ListCommandsRequest(page_size=20)
        if "/" in target:
            request.container = names.container(target)
        else:
            request.agent = names.agent(target)
        try:
            found = self.invocation.client.commands.ListCommands(request, timeout=2).commands
        except errors.LadingError:
            return None
        mine = self.request_ids.get(target)
        return next((one for one in found if one.request_id == mine and one.state not in SETTLED), None)


def outcome(error: LadingError) -> str:
    """The status under which people read the failure."""
    return {"PERMISSION_DENIED": "DENIED", "UNAUTHENTICATED": "DENIED", "DEADLINE_EXCEEDED": "UNKNOWN"}.get(
        error.code, "FAILURE"
    )


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


@contextmanager
def progress(invocation: Invocation, verb: Verb, chosen: Sequence[str]) -> Iterator[Callable[[Result], None]]:
    """Tells of each result as it comes: a line for people, the name for -o name and -q, nothing for documents."""
    width = max(len(target) for target in chosen)
    if invocation.format == "name" or (invocation.quiet and invocation.format in ("table", "wide")):
        # What is only recorded is known by its command: `lading commands wait $(lading stop … --detach -q)`.
        yield lambda result: click.echo(_name(result)) if result.error is None else None
        return
    if invocation.format not in ("table", "wide"):
        yield lambda result: None
        return
    if len(chosen) > 1:
        click.echo(f"{verb.name} {len(chosen)} targets, {invocation.correlation_id}")
    waiting: Any = nullcontext()
    write: Callable[[str], None] = click.echo
    if invocation.human:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, no_color=True)
        waiting = console.status(f"{verb.name} {chosen[0]}" if len(chosen) == 1 else f"{verb.name}: waiting")
        console.no_color = click.get_current_context().color is False

        def write(line: str) -> None:
            console.print(Text.from_ansi(line), soft_wrap=True)

    with waiting:
        yield lambda result: write(_line(verb, result, width, indent="  " if len(chosen) > 1 else ""))


def _name(result: Result) -> str:
    from lading_client import names

    return names.short(result.command) if result.status == "PENDING" else result.target


def _line(verb: Verb, result: Result, width: int, indent: str) -> str:
    from lading_client.labels import span

    cell = output.action(verb.name.upper()) if result.status == "SUCCESS" else output.status(result.status)
    icon = click.style(cell.text.split(" ")[0], fg=cell.color)
    took = f"{span(result.duration_ms / 1000):>8}" if result.status != "SKIPPED" else ""
    why = f"  {output.printable(' '.join(str(result.error).split()))}" if result.error else ""
    return f"{indent}{icon} {result.target:<{width}}  {result.word:<18} {took}{why}".rstrip()


def conclude(invocation: Invocation, verb: Verb, results: Sequence[Result]) -> int:
    """Say, to stderr, what to look at; the exit code."""
    from lading_client import errors, names
    from lading_client.cli.failure import COMMAND_FAILED, sentences

    bad = [result for result in results if result.error is not None]
    skipped = sum(result.status == "SKIPPED" for result in results)
    if len(results) == 1 and bad and bad[0].error:
        shown = invocation.format in ("table", "wide") and not invocation.quiet
        # The line of the target has said code and message already.
        for line in list(sentences(bad[0].error, invocation.verbose))[1 if shown else 0 :]:
            click.echo(line, err=True)
        return bad[0].error.exit_code
    if not bad:
        return 0
    left = f" {skipped} not begun." if skipped else ""
    invocation.say(
        f"{len(results) - len(bad) - skipped} of {len(results)} {verb.done}.{left}"
        f" Show: lading audit ls corr:{invocation.correlation_id}"
    )
    late = [
        names.short(one.command)
        for one in bad
        if isinstance(one.error, errors.DeadlineExceeded) and one.command and one.error.reason != COMMAND_FAILED
    ]
    if late:
        invocation.say(f"Some may still finish: lading commands wait {' '.join(late)}")
    codes = {result.error.exit_code for result in bad if result.error}
    return codes.pop() if len(codes) == 1 and len(bad) == len(results) else SOME_FAILED
