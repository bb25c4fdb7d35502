"""A program of the bench: a process of its own on a core of its own, spoken with by lines."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from bench import machine

ANSWER_SECONDS = 240.0


class Program:
    """`python -m MODULE ARGUMENTS`, which says what it has to say on its standard output."""

    def __init__(self, module: str, arguments: Sequence[str], core: int | str) -> None:
        """`core`: one, or several as `taskset` has them."""
        self._name = module
        self._process = subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        self._said = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_seconds(self) -> float:
        return machine.cpu_seconds(self.pid)

    @property
    def resident_bytes(self) -> int:
        return machine.resident_bytes(self.pid)

    def read_line(self, seconds: float = ANSWER_SECONDS) -> str:
        """The next line that it says. Raises TimeoutError, and RuntimeError when it has ended."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while b"\n" not in self._said:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise TimeoutError(f"{self._name} said nothing for {seconds:g} s")
                piece = os.read(self._out, 65536)
                if not piece:
                    raise RuntimeError(f"{self._name} ended with {self._process.wait(10)}")
                self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to one that does not end by it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def started(module: str, *arguments: str, core: int = machine.SERVER_CORE) -> Iterator[Program]:
    """A program, until the block is left."""
    program = Program(module, arguments, core)
    try:
        yield program
    finally:
        program.stop()
