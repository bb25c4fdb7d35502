"""The processes of a demo: started in order, watched, stopped in the opposite order."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

STOP_WITHIN = 20.0  # seconds; then SIGKILL
TAIL = 15  # lines of the log of a child that died
LOOK_AGAIN_AFTER = 0.05  # seconds


class ChildFailed(Exception):
    """A process of the demo ended by itself, or did not get ready."""


@dataclass(frozen=True)
class Child:
    """One `lading` process; what it writes is in `log`."""

    name: str
    process: subprocess.Popen[bytes]
    log: pathlib.Path

    def check(self) -> None:
        """Raise ChildFailed, with the end of its log, if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise ChildFailed(f"The {self.name} ended with exit code {code}.\n{self.tail()}")

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in lines)])


@dataclass
class Children:
    """All of them; leaving the `with` block stops them. `folder` gets their logs."""

    folder: pathlib.Path
    running: list[Child] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Run `lading ARGUMENTS`."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                lading(arguments),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment(),
                # Ctrl-C is ours to pass on, in order: agents first, then the server they speak with.
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.running.append(child)
        return child

    def check(self) -> None:
        for child in self.running:
            child.check()

    def wait_for_file(self, child: Child, path: pathlib.Path, within: float) -> str:
        """The text of a file that the child writes when it is ready. ChildFailed when it does not."""
        deadline = time.monotonic() + within
        while not (path.exists() and (text := path.read_text().strip())):
            child.check()
            if time.monotonic() > deadline:
                raise ChildFailed(f"The {child.name} was not ready within {within:.0f} s.\n{child.tail()}")
            time.sleep(LOOK_AGAIN_AFTER)
        return text

    def stop(self) -> None:
        """SIGTERM and wait, the last one started first."""
        while self.running:
            child = self.running.pop()
            child.process.terminate()
            try:
                child.process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def run(arguments: Sequence[str]) -> str:
    """Run `lading ARGUMENTS` to its end; what it prints. ChildFailed when its exit code is not 0."""
    done = subprocess.run(
        lading(arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment()
    )
    if done.returncode:
        raise ChildFailed(f"lading {' '.join(arguments)} ended with exit code {done.returncode}.\n{done.stderr}")
    return done.stdout


def lading(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "lading_client.cli", *arguments]


def environment() -> Mapping[str, str]:
    """Ours without the settings of another installation."""
    return {key: value for key, value in os.environ.items() if not key.startswith("LADING_")}
