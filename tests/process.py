"""Processes that tests run: started with a log, signalled, waited for within a bound."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

PORTS = range(10_000, 30_000)
WORKERS_MAX = 8
PATIENCE_SECONDS = 60.0
"""How long a machine that is busy may take for what takes it a second otherwise."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now.

    Not one of those that the kernel hands out: while a server is down, a client that tries again and again would in the
    end be given its port, and the server could not come back.
    """
    ports = PORTS
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        # Each process of a test run has its own: another one could take this one before it is used.
        ports = PORTS[int(worker.removeprefix("gw")) % WORKERS_MAX :: WORKERS_MAX]
    for port in random.sample(ports, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port among 100 of {ports}")


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Ask until `condition()` is true; TimeoutError, naming `what`, when that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def children(parent: int) -> list[int]:
    """Process ids of the direct children of `parent`."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (name) state ppid …; the name may hold anything, parentheses too
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[1]) == parent:
            found.append(int(entry.parent.name))
    return found


def kill_those_with(variable: str, value: str) -> None:
    """SIGKILL to each process that was started with this environment variable, and to what it started."""
    wanted = f"{variable}={value}".encode()
    for environment in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours to see
            if wanted in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def state(pid: int) -> str:
    """The letter of /proc/PID/stat: R, S, D, T (stopped), Z (ended, not waited for), … and X when there is none."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


class Process:
    """One program in a process group of its own. What it writes goes to `log`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | pathlib.Path],
        log: pathlib.Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """As `wait_until`, but RuntimeError with the log's end as soon as the process has ended."""

        def check() -> object:
            done = condition()
            if not done and not self.is_running:
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")
            return done

        try:
            wait_until(check, what, seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.tail()}") from None

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)

    def terminate(self, seconds: float = PATIENCE_SECONDS) -> int:
        """SIGTERM; its exit code. One that does not end in time is killed, and TimeoutError raised."""
        if self.is_running:
            self.resume()
            self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"{self.name} did not end within {seconds:g} s of SIGTERM:\n{self.tail()}") from None

    def tail(self, lines: int = 60) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
