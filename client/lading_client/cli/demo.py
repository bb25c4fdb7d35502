"""`lading demo`: all of it on this machine, at work."""

from __future__ import annotations

import pathlib
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from lading_client.cli.invocation import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from types import FrameType

    from lading_client.demo.stage import Stage

LOOK_AGAIN_AFTER = 0.5  # seconds


@click.command(cls=Command, examples="lading demo\nlading demo --data demo-data\nlading demo --smoke")
@click.option("--smoke", is_flag=True, help="Do it, check it, and end: 0 when all is as it should be, else 1.")
@click.option(
    "--data", type=click.Path(file_okay=False), metavar="DIR", help="Keep everything there. [a temporary one]"
)
@pass_invocation
def demo(invocation: Invocation, smoke: bool, data: str | None) -> int:
    """Run server, agents and viewer here, do real work with them, and let you look around.

    With a container engine (Docker or Podman) one agent runs real containers; without, plain processes.
    """
    from lading_client.demo.children import ChildFailed
    from lading_client.demo.engine import EngineFailed
    from lading_client.demo.script import WrongEnd
    from lading_client.errors import LadingError

    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    with _folder(data) as folder:
        try:
            return _play(invocation, folder, smoke)
        except (ChildFailed, WrongEnd, EngineFailed, LadingError) as error:
            click.echo(str(error), err=True)
            return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _folder(data: str | None) -> Iterator[pathlib.Path]:
    if data is not None:
        yield pathlib.Path(data).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="lading-demo-", ignore_cleanup_errors=True) as folder:
        yield pathlib.Path(folder)


def _play(invocation: Invocation, folder: pathlib.Path, smoke: bool) -> int:
    from lading_client.demo import checks, script, stage

    began = time.monotonic()
    invocation.say("Starting server, agents and viewer.")
    complaints: list[str] = []
    with stage.build(folder) as built:
        try:
            invocation.say(built.engine_note)
            performed = list(script.perform(built))
            stage.await_viewer(built)
            invocation.say(f"{len(performed)} operations performed. Ready after {time.monotonic() - began:.1f} s.")
            if smoke:
                complaints += checks.complaints(built, performed)
            else:
                for line in _lines(built):
                    click.echo(line)
                _wait(built)
        except KeyboardInterrupt:
            invocation.say("\nStopping.")
        finally:
            complaints += script.clear(built)
            for complaint in complaints:
                click.echo(complaint, err=True)
        built.children.check()
    if smoke and not complaints:
        click.echo("The log, the runtimes and the viewer are as they should be.")
    return 1 if complaints else 0


def _lines(built: Stage) -> Iterator[str]:
    from lading_client.demo.stage import OPERATOR

    command = "lading" if shutil.which("lading") else shlex.quote(str(pathlib.Path(sys.argv[0]).absolute()))
    who = f'LADING_SERVER={built.server} LADING_TOKEN="$(cat {shlex.quote(str(built.token_file(OPERATOR)))})"'
    yield f"Viewer  http://{built.viewer}/signin?code={built.code}   (signs you in once)"
    yield f"Try     {who} {command} stop {built.target('web')} --reason 'to see it'"
    yield "Stop    Ctrl-C"


def _wait(built: Stage) -> None:
    """Until Ctrl-C, or until a process of the demo dies."""
    while True:
        built.children.check()
        time.sleep(LOOK_AGAIN_AFTER)
