"""`lading exec`: a program in a container, on this terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from lading_client.cli import targets
from lading_client.cli.completion import complete_targets
from lading_client.cli.invocation import Command, Invocation, pass_invocation
from lading_client.cli.values import PAIR, SPAN

if TYPE_CHECKING:
    from lading_client.exec_session import ExecSession

INPUT_BYTES = 64 * 1024


class ExecCommand(Command):
    """Options may stand anywhere before `--`; without one, all behind the target is the program's, as in docker."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = "--" in args
        return super().parse_args(ctx, args)


@click.command(
    cls=ExecCommand,
    name="exec",
    examples="""
    lading exec dock-1/web -- df -h                            what it writes, and its exit code
    lading exec -it dock-1/web -- sh                           a shell; Ctrl-C and Ctrl-D go to it
    lading exec -i db -- psql -f - < fix.sql                   standard input from a file
    lading exec -e MODE=fast -w /srv web --reason "INC-527" -- ./job""",
)
@click.argument("target", shell_complete=complete_targets)
@click.argument("program", nargs=-1, required=True, metavar="[--] CMD...")
@click.option("-i", "--interactive", is_flag=True, help="Give it this standard input.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give it a terminal; Ctrl-C goes to the program.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="As whom. [the container's own user]")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Where. [the container's own folder]")
@click.option("-e", "--env", type=PAIR, multiple=True, help="Environment, beside the container's; never recorded.")
@click.option("--within", type=SPAN, help="How long it may take, counted by the agent. [1h]")
@pass_invocation
def exec_(
    invocation: Invocation,
    target: str,
    program: Sequence[str],
    interactive: bool,
    terminal: bool,
    user: str,
    workdir: str,
    env: Sequence[tuple[str, str]],
    within: float | None,
) -> int:
    """Run a program in a container that runs, and end with the program's exit code.

    It is a command like any other: recorded before it begins, with who, why and the command line; and at its end with
    its exit code, how many bytes went in and out, and the SHA-256 of what it wrote. What is typed is not recorded.

    When this end hangs up, a program on a terminal is interrupted and told so, others see the end of their input. One
    that minds neither goes on: an engine cannot end it.
    """
    from lading_client import errors

    if terminal and interactive and not sys.stdin.isatty():
        raise click.UsageError("Standard input is no terminal: leave out -t.")
    client = invocation.client
    how: dict[str, Any] = {"reason": invocation.reason, "user": user, "working_dir": workdir, "env": dict(env)}
    how |= {"tty": terminal, "input": interactive}
    if within is not None:
        how["execute_within"] = within
    if terminal:
        how["size"] = size()
    name = targets.resolve(client, target)
    try:
        with client.exec(name, program, **how) as session, raw_terminal(terminal and interactive):
            if interactive:
                threading.Thread(target=feed, args=(session,), daemon=True).start()
            with watch_size(session, terminal):
                show(session)
    except KeyboardInterrupt:
        invocation.say("\nHung up. What became of it: lading commands ls, lading audit ls action:container.exec")
        raise
    except errors.LadingError as failure:
        code = failure.metadata.get("exit_code", "")
        if not code.isdigit():
            raise
        # The program could not be run, or was cut short: shells have a code for that.
        from lading_client.cli.failure import sentences

        for line in sentences(failure, invocation.verbose):
            invocation.say(line)
        return int(code) % 256
    return (session.exit_code or 0) % 256


def show(session: ExecSession) -> None:
    from lading.v1 import containers_pb2

    for piece in session:
        stream = sys.stderr if piece.source == containers_pb2.LOG_SOURCE_STDERR else sys.stdout
        stream.buffer.write(piece.data)
        stream.buffer.flush()


def feed(session: ExecSession) -> None:
    """What comes on standard input, until its end. Runs in a thread that nobody waits for."""
    with contextlib.suppress(OSError):
        while data := os.read(sys.stdin.fileno(), INPUT_BYTES):
            session.write(data)
    session.end_input()


def size() -> tuple[int, int]:
    """Lines and columns of this terminal."""
    found = shutil.get_terminal_size()
    return found.lines, found.columns


@contextlib.contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """Every key goes to the program as it is; afterwards the terminal is as it was, also when this is told to end."""
    if not wanted:
        yield
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    handlers = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        # Not flushed: what was typed ahead is for the program.
        tty.setraw(file, termios.TCSADRAIN)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(file, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def leave(number: int, frame: object) -> None:
    """End as shells say it of a signal, by the way that puts all in order."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def watch_size(session: ExecSession, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    before = signal.signal(signal.SIGWINCH, lambda *_: session.resize(*size()))
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
