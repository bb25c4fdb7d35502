"""A program that runs in an engine's container: Docker's exec, over a connection that was taken over."""

import asyncio
import contextlib
from typing import Any

from grpc import StatusCode

from lading.v1.commands_pb2 import ExecSpec
from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT, LogSource
from lading_agent.errors import CannotRun, InDoubt, RuntimeFailure
from lading_agent.runtimes import Trace
from lading_agent.runtimes.engine import Engine

PIECE_BYTES_MAX = 64 * 1024
LOOK_AGAIN_AFTER = 0.01
LOOK_AGAIN_AFTER_MAX = 1.0
RESIZE_TRIES = 5
# Exit codes of a program that is not there, or is none.
CANNOT_RUN = (126, 127)
# What a person at the terminal would type, with time between: a shell takes the end of its input only once it is asked
# for the next line.
INTERRUPT, END_OF_INPUT = b"\x03", b"\x04"
TYPE_AFTER = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


async def prepare(engine: Engine, id: str, spec: ExecSpec) -> str:
    """The engine's id of the exec; nothing runs yet."""
    body: dict[str, Any] = {
        "Cmd": list(spec.command),
        "Env": [f"{key}={value}" for key, value in spec.env.items()],
        "AttachStdin": spec.input,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": spec.tty,
    }
    if spec.user:
        body["User"] = spec.user
    if spec.working_dir:
        body["WorkingDir"] = spec.working_dir
    made = await engine.act("POST", f"/containers/{id}/exec", None, body)
    return str(made["Id"])


async def start(engine: Engine, exec: str, spec: ExecSpec) -> "DockerProgram":
    """Run it; raises InDoubt when the engine did not say whether it does."""
    reader, writer = await engine.converse(f"/exec/{exec}/start", {"Detach": False, "Tty": spec.tty})
    program = DockerProgram(engine, exec, spec.tty, reader, writer)
    if spec.tty and spec.HasField("size"):
        program.set_size(spec.size.rows, spec.size.columns)
    return program


async def trace(engine: Engine, exec: str) -> Trace:
    """What the engine knows of it."""
    try:
        found = await engine.ask(f"/exec/{exec}/json")
    except RuntimeFailure as error:
        if error.code == StatusCode.NOT_FOUND:
            return Trace(None, False, None, f"the engine has forgotten exec {exec[:12]}, and how it ended")
        raise
    if found["Running"]:
        return Trace(True, True, None, f"exec {exec[:12]} still runs; the engine has no way to end it")
    if not _ended(engine, found):
        return Trace(False, False, None, f"exec {exec[:12]} was never begun")
    return Trace(True, False, int(found["ExitCode"]), f"the engine says that exec {exec[:12]} ended")


def _ended(engine: Engine, found: dict[str, Any]) -> bool:
    """Docker has no exit code before; Podman has 0 from the beginning."""
    return not found["Running"] and bool(found["CanRemove"] if engine.is_podman else found["ExitCode"] is not None)


class DockerProgram:
    """See `Program`."""

    def __init__(
        self, engine: Engine, exec: str, tty: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._engine, self._exec, self._tty = engine, exec, tty
        self._reader, self._writer = reader, writer
        # Of the frame that is being read.
        self._source, self._left = LOG_SOURCE_STDOUT, 0
        self._last_words = b""
        self._typing: asyncio.Task[None] | None = None
        self._sizing: asyncio.Task[None] | None = None
        self._input_ended = False

    async def read(self) -> tuple[LogSource.ValueType, bytes] | None:
        try:
            if not self._tty:
                while self._left == 0:
                    head = await self._reader.readexactly(8)
                    self._source = LOG_SOURCE_STDERR if head[0] == 2 else LOG_SOURCE_STDOUT
                    self._left = int.from_bytes(head[4:])
            data = await self._reader.read(PIECE_BYTES_MAX if self._tty else min(PIECE_BYTES_MAX, self._left))
        except (OSError, asyncio.IncompleteReadError):
            return None
        if not data:
            return None
        self._left -= 0 if self._tty else len(data)
        self._last_words = (self._last_words + data)[-1000:]
        return self._source, data

    def set_size(self, rows: int, columns: int) -> None:
        """The first one. Whoever began it has it at once, to hang it up when the engine hangs; what is written to it
        waits, for that may ask for the size."""
        self._sizing = asyncio.create_task(self._resize(rows, columns))

    async def write(self, data: bytes) -> None:
        if self._sizing is not None:
            await asyncio.wait([self._sizing])
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        if self._input_ended:
            return  # it was hung up while its caller still wrote
        with contextlib.suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    async def end_input(self) -> None:
        if self._tty:
            # To end the connection's own input would end its output too.
            await self.write(END_OF_INPUT)
        elif self._writer.can_write_eof():
            self._input_ended = True
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    async def resize(self, rows: int, columns: int) -> None:
        if self._sizing is not None:
            self._sizing.cancel()
        await self._resize(rows, columns)

    async def _resize(self, rows: int, columns: int) -> None:
        for attempt in range(RESIZE_TRIES):
            try:
                await self._engine.act("POST", f"/exec/{self._exec}/resize", {"h": str(rows), "w": str(columns)})
                return
            except (RuntimeFailure, InDoubt):
                # It may not have begun yet.
                await asyncio.sleep(LOOK_AGAIN_AFTER * 2**attempt)

    async def hang_up(self) -> None:
        if not self._tty:
            await self.end_input()
        elif self._typing is None:
            if self._sizing is not None:
                self._sizing.cancel()
            self._typing = asyncio.create_task(self._type_hang_up())

    async def _type_hang_up(self) -> None:
        for seconds in TYPE_AFTER:
            await self._write(INTERRUPT)
            await asyncio.sleep(seconds)
            await self._write(END_OF_INPUT)
            await asyncio.sleep(seconds)

    async def end(self) -> int:
        pause = LOOK_AGAIN_AFTER
        while True:
            found = await self._engine.ask(f"/exec/{self._exec}/json")
            if _ended(self._engine, found):
                break
            await asyncio.sleep(pause)
            pause = min(LOOK_AGAIN_AFTER_MAX, pause * 2)
        code = int(found["ExitCode"])
        words = self._last_words.decode(errors="replace").strip()
        # Podman knows no process of what has ended: its words are all there is.
        never = "OCI " in words and code in CANNOT_RUN if self._engine.is_podman else not found["Pid"]
        if code and never:
            raise CannotRun(words or "the engine could not run it", code)
        return code

    async def close(self) -> None:
        for task in (self._typing, self._sizing):
            if task is not None:
                task.cancel()
        self._writer.close()
