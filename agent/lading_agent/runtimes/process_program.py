"""A program that runs beside a process of the process runtime: with its environment and folder, for one caller."""

import asyncio
import contextlib
import fcntl
import os
import pathlib
import signal
import struct
import subprocess
import termios

from lading.v1.commands_pb2 import ExecSpec
from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT, LogSource
from lading_agent.errors import CannotRun
from lading_agent.runtimes import Trace
from lading_agent.runtimes.instance import reap

MARK = "LADING_EXEC"
PIECE_BYTES_MAX = 64 * 1024
HANG_UP_WITHIN = 5.0
# A session leader that opens a terminal has it for its own.
ON_TERMINAL = ["/bin/sh", "-c", 'terminal=$0; exec "$@" <>"$terminal" >&0 2>&0']


def trace(handle: str) -> Trace:
    """What an earlier life of the agent left of it, which is ended: nobody else will."""
    mark = f"{MARK}={handle}".encode()
    ended = 0
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
                ended += 1
    if ended:
        return Trace(True, False, None, "it still ran without its agent, and was killed")
    return Trace(None, False, None, "nothing of it runs any more, and nobody saw how it ended")


def start(spec: ExecSpec, handle: str, cwd: str, env: dict[str, str]) -> "ProcessProgram":
    """Run it; raises CannotRun."""
    env = {**env, **spec.env, MARK: handle}
    if spec.tty:
        return _start_on_terminal(spec, spec.working_dir or cwd, env)
    inputs, outputs, errors = (os.pipe() if spec.input else (-1, -1)), os.pipe(), os.pipe()
    try:
        pid = _spawn(list(spec.command), spec.working_dir or cwd, env, inputs[0], outputs[1], errors[1])
    except CannotRun:
        _close(*inputs, *outputs, *errors)
        raise
    _close(inputs[0], outputs[1], errors[1])
    return ProcessProgram(pid, inputs[1], {outputs[0]: LOG_SOURCE_STDOUT, errors[0]: LOG_SOURCE_STDERR})


def _start_on_terminal(spec: ExecSpec, cwd: str, env: dict[str, str]) -> "ProcessProgram":
    main, terminal = os.openpty()
    try:
        if spec.HasField("size"):
            _set_size(main, spec.size.rows, spec.size.columns)
        command = [*ON_TERMINAL, os.ttyname(terminal), *spec.command]
        pid = _spawn(command, cwd, {"TERM": "xterm", **env}, -1, -1, -1)
    except CannotRun:
        _close(main, terminal)
        raise
    # Until the program has it open, reading it must not say that nobody has.
    return ProcessProgram(pid, main, {main: LOG_SOURCE_STDOUT}, terminal)


def _spawn(command: list[str], cwd: str, env: dict[str, str], stdin: int, stdout: int, stderr: int) -> int:
    def or_null(file: int) -> int:
        return file if file >= 0 else subprocess.DEVNULL

    try:
        process = subprocess.Popen(
            command,
            cwd=cwd or None,
            env=env,
            stdin=or_null(stdin),
            stdout=or_null(stdout),
            stderr=or_null(stderr),
            start_new_session=True,
        )
    except OSError as error:
        words = f"cannot run {command[0]!r}: {error.strerror}"
        raise CannotRun(words, 127 if isinstance(error, FileNotFoundError) else 126) from None
    # It is waited for by its number: Popen must not complain that it is left alone.
    process.returncode = 0
    return process.pid


class ProcessProgram:
    """See `Program`. What it leaves in its process group is killed when it ends."""

    def __init__(self, pid: int, stdin: int, outputs: dict[int, LogSource.ValueType], terminal: int = -1) -> None:
        self._pid, self._stdin, self._outputs, self._terminal = pid, stdin, outputs, terminal
        self._tty = terminal >= 0
        self._code: int | None = None
        self._ended = asyncio.Event()
        self._watched = os.pidfd_open(pid)
        for file in (stdin, *outputs):
            if file >= 0:
                os.set_blocking(file, False)
        asyncio.get_running_loop().add_reader(self._watched, self._end)

    async def read(self) -> tuple[LogSource.ValueType, bytes] | None:
        while self._outputs:
            # Before reading: what it wrote until its end is then read, too.
            over = self._ended.is_set()
            for file, source in list(self._outputs.items()):
                try:
                    data = os.read(file, PIECE_BYTES_MAX)
                except BlockingIOError:
                    continue
                except OSError:
                    # How a terminal says that nobody has it open any more.
                    data = b""
                if data:
                    return source, data
                del self._outputs[file]
                if file != self._stdin:
                    _close(file)
            if over:
                return None
            await self._ready(list(self._outputs))
        return None

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and self._stdin >= 0 and not self._ended.is_set():
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                await self._ready([self._stdin], writing=True)
            except OSError:
                return

    async def end_input(self) -> None:
        if self._tty:
            await self.write(b"\x04")
        else:
            _close(self._stdin)
            self._stdin = -1

    async def resize(self, rows: int, columns: int) -> None:
        with contextlib.suppress(OSError):
            if self._tty:
                _set_size(self._stdin, rows, columns)

    async def hang_up(self) -> None:
        """SIGHUP to its group, and SIGKILL after 5 s."""
        self._signal(signal.SIGHUP)
        self._signal(signal.SIGCONT)
        asyncio.get_running_loop().call_later(HANG_UP_WITHIN, self._signal, signal.SIGKILL)

    async def end(self) -> int:
        await self._ended.wait()
        assert self._code is not None
        return self._code

    async def close(self) -> None:
        self._signal(signal.SIGKILL)
        await self._ended.wait()
        _close(self._stdin, *(file for file in self._outputs if file != self._stdin))
        self._stdin, self._outputs = -1, {}

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watched)
        _close(self._watched, self._terminal)
        self._terminal = -1
        self._code = reap(self._pid)
        self._ended.set()

    async def _ready(self, files: list[int], writing: bool = False) -> None:
        """Wait until one of them can be read or written, or the program has ended."""
        loop = asyncio.get_running_loop()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        ready = asyncio.Event()
        waits = [asyncio.ensure_future(event.wait()) for event in (ready, self._ended)]
        for file in files:
            add(file, ready.set)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            for file in files:
                remove(file)


def _set_size(terminal: int, rows: int, columns: int) -> None:
    size = struct.pack("HHHH", min(rows, 65535), min(columns, 65535), 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


def _close(*files: int) -> None:
    for file in files:
        if file >= 0:
            os.close(file)
