"""Several server processes on one address: a parent that starts them, starts anew those that die, and stops them all.

Each worker is a whole server. They share the address (SO_REUSEPORT: the kernel deals out connections), the data
directory and the database, and nothing else. They are spawned, never forked, and a worker whose parent is gone stops by
itself, as its standard input ends. The parent loads neither gRPC nor the database.
"""

import asyncio
import contextlib
import os
import pathlib
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lading_server import errors
from lading_server.settings import InvalidSettings, Settings, write_port

BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 30.0
GOOD_SECONDS = 60.0
"""A worker that lived this long was a good one: its next death is the first again."""
STOP_SECONDS_MAX = 20.0
"""A worker that has not ended so long after SIGTERM is killed."""
LINE_BYTES_MAX = 1 << 20


class CannotBind(errors.Error):
    """The address cannot be listened on."""


@dataclass(eq=False)
class Worker:
    """One life of one process. `serves`: its address, once it serves; empty when it ended before. `told`: to stop."""

    process: asyncio.subprocess.Process
    serves: "asyncio.Future[str]"
    ended: "asyncio.Task[int]"
    began_at: float = field(default_factory=time.monotonic)
    told: bool = False


class Workers:
    """`count` workers, by number from 1. Call `run` once."""

    def __init__(self, settings: Settings, count: int, options: Sequence[str]) -> None:
        """`options`: what `lading server run` was given beside address, database and `--workers`.

        Raises InvalidSettings for a database, or a port, that only one process may have.
        """
        if not settings.database.startswith("postgresql:"):
            raise InvalidSettings(
                "--workers needs PostgreSQL (--database postgresql://USER@HOST/NAME): the embedded database is for one "
                "process"
            )
        if not settings.replica_address.endswith(":0"):
            host = settings.replica_address.rpartition(":")[0]
            raise InvalidSettings(
                f"--replica-listen {settings.replica_address} names one port, and each of the workers needs its own: "
                f"say --replica-listen {host}:0"
            )
        self._settings, self._count, self._options = settings, count, options
        self._current: dict[int, Worker] = {}
        # All that have not ended: those of `_current`, one that is to take a place, one that had it.
        self._living: set[Worker] = set()
        # Whoever puts a worker in a place looks first at who has it, and nobody else may in between.
        self._placing = asyncio.Lock()
        self._deaths: dict[int, int] = {}
        self._begun = False
        self._stopping = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None

    async def run(self, port_file: pathlib.Path | None) -> int:
        """Until SIGTERM or SIGINT; a second one stops at once. SIGHUP replaces one worker after the other, each by one
        that serves before it stops. Returns the exit code: of the first worker if it cannot begin. Raises CannotBind.
        """
        with contextlib.closing(bind(self._settings.listen)) as reserved:
            host = self._settings.listen.rpartition(":")[0]
            self._settings = replace(self._settings, listen=f"{host}:{reserved.getsockname()[1]}")
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop)
            loop.add_signal_handler(signal.SIGHUP, self._roll)
            if not await self._begin():
                return await self._end()
            say(f"{self._count} workers serve on {self._settings.listen}")
            if port_file is not None:
                write_port(port_file, self._settings.listen)
            keepers = [asyncio.create_task(self._keep(number)) for number in self._current]
            self._begun = True
            await self._stopping.wait()
            starting = [*keepers, *([self._rolling] if self._rolling else [])]
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            return await self._end()

    async def _begin(self) -> bool:
        """Start all, the first one alone: what is wrong is said once. Whether they serve."""
        for numbers in (range(1, 2), range(2, self._count + 1)):
            begun = [await self._spawn(number) for number in numbers]
            stop = asyncio.create_task(self._stopping.wait())
            serve = asyncio.gather(*(worker.serves for worker in begun))
            await asyncio.wait((stop, serve), return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if self._stopping.is_set() or not all(serve.result()):
                serve.cancel()
                return False
        return True

    async def _keep(self, number: int) -> None:
        """For ever: when a worker dies, start another one in its place."""
        while True:
            worker = self._current[number]
            code = await asyncio.shield(worker.ended)
            if self._current[number] is not worker:
                continue  # it was replaced
            if time.monotonic() - worker.began_at > GOOD_SECONDS:
                self._deaths[number] = 0
            longest = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** self._deaths.get(number, 0))
            self._deaths[number] = min(self._deaths.get(number, 0) + 1, 16)
            pause = random.uniform(longest / 2, longest)
            say(f"worker {number} {said_of(code)}; starting it anew in {pause:.1f} s")
            await asyncio.sleep(pause)
            async with self._placing:
                if self._current[number] is worker:  # else it was replaced meanwhile
                    await self._spawn(number)

    def _roll(self) -> None:
        """Not while they are replaced already, nor before all have begun, nor once they are to stop."""
        if not self._begun or self._stopping.is_set():
            why = "the server stops" if self._begun else "not all serve yet, ask again then"
            say(f"no worker is replaced: {why}")
            return
        if self._rolling is None or self._rolling.done():
            self._rolling = asyncio.create_task(self._replace_all())

    async def _replace_all(self) -> None:
        """Crash order: whatever dies here is started anew, by its number."""
        for number in range(1, self._count + 1):
            newer = await self._launch(number)
            if not await newer.serves:
                code = await asyncio.shield(newer.ended)
                say(f"the new worker {number} {said_of(code)}: the others are left as they are")
                return
            async with self._placing:
                # Who has the place now: the one that had it before may have died, and been started anew.
                older, self._current[number] = self._current[number], newer
            await terminate(older)
            say(f"worker {number} is replaced")

    def _stop(self) -> None:
        if self._stopping.is_set():
            for worker in self._living:
                signal_to(worker, signal.SIGTERM)  # its second one: it stops at once
        self._stopping.set()

    async def _end(self) -> int:
        """Stop all; 0 when every one of them stopped in order, else the code of one that did not."""
        everyone = dict.fromkeys([*self._current.values(), *self._living])
        codes = await asyncio.gather(*(terminate(worker) for worker in everyone))
        return next((code if code > 0 else 128 - code for code in codes if code), 0)

    async def _spawn(self, number: int) -> Worker:
        worker = self._current[number] = await self._launch(number)
        return worker

    async def _launch(self, number: int) -> Worker:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "lading_server", "run", *self._options),
            *("--listen", self._settings.listen, "--worker", str(number)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # The database's URL may hold a password, and command lines are for everybody to see.
            env={**os.environ, "LADING_DATABASE": self._settings.database},
            limit=LINE_BYTES_MAX,
            process_group=0,  # a terminal's Ctrl-C is for the parent, which tells its workers
        )
        serves: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        worker = Worker(process, serves, asyncio.create_task(self._attend(number, process, serves)))
        self._living.add(worker)
        worker.ended.add_done_callback(lambda _: self._living.discard(worker))
        return worker

    async def _attend(self, number: int, process: asyncio.subprocess.Process, serves: "asyncio.Future[str]") -> int:
        """Pass on what a worker says; its exit code."""
        assert process.stdout is not None
        assert process.stderr is not None
        passing = asyncio.create_task(pass_on(process.stderr, f"worker {number}: "))
        address = (await process.stdout.readline()).decode().strip()
        if not serves.done():
            serves.set_result(address)
        await passing
        return await process.wait()


async def pass_on(lines: asyncio.StreamReader, prefix: str) -> None:
    """Each line to standard error, with a prefix."""
    while True:
        try:
            line = await lines.readline()
        except ValueError:
            continue  # longer than the limit: dropped
        if not line:
            return
        sys.stderr.write(prefix + line.decode(errors="replace"))
        sys.stderr.flush()


def signal_to(worker: Worker, number: signal.Signals) -> None:
    """Unless it has ended. (Not by `send_signal`, which may take its exit code from asyncio.)"""
    if worker.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.process.pid, number)


async def terminate(worker: Worker) -> int:
    """Have a worker stop; its exit code. One that the signal kills had not begun to serve: that is in order. One that
    was told already is only waited for: a second signal would have it stop at once."""
    if not worker.told:
        worker.told = True
        signal_to(worker, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            code = await asyncio.shield(worker.ended)
            return 0 if code == -signal.SIGTERM else code
    except TimeoutError:
        signal_to(worker, signal.SIGKILL)
        return await asyncio.shield(worker.ended)


def bind(listen: str) -> socket.socket:
    """A socket that holds HOST:PORT for the workers, and takes no connection itself. Raises CannotBind."""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            # Without SO_REUSEPORT: two servers of different databases must not share an address unnoticed.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        held = socket.socket(family, kind)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError as failure:
        raise CannotBind(f"cannot listen on {listen}: {failure.strerror or failure}") from failure
    return held


def said_of(code: int) -> str:
    """How a process ended."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def say(sentence: str) -> None:
    """To the log of the parent, which is standard error as that of the workers."""
    print(f"workers: {sentence}", file=sys.stderr, flush=True)
