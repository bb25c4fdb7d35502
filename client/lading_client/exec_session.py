"""A program that runs in a container, for its caller: what it writes is iterated, what it reads is written."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from lading.v1 import commands_pb2, containers_pb2
from lading_client import errors

if TYPE_CHECKING:
    from lading.v1.containers_pb2_grpc import ContainersAsyncStub, ContainersStub

INPUT_BYTES = 64 * 1024
# Messages that wait to be sent; then `write` waits.
WAITING_MAX = 16

Request = containers_pb2.ExecContainerRequest
Output = containers_pb2.StreamContainerLogsResponse


class ExecSession:
    """Blocking. Iterate it to its end, then `exit_code` is known; the rest may be called from other threads.

    `command` is the name of the command that it is, once it has begun. Leaving it, or `close`, hangs up.
    """

    def __init__(self, stub: ContainersStub, start: containers_pb2.ExecStart) -> None:
        self.command = ""
        self.exit_code: int | None = None
        self._requests: SimpleQueue[Request | None] = SimpleQueue()
        self._room = threading.Semaphore(WAITING_MAX)
        self._closed = threading.Event()
        self._requests.put(Request(start=start))
        self._answers = stub.ExecContainer(self._send())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Output]:
        """What it writes, as it comes. Raises LadingError when the session fails; its own exit code is no failure."""
        for answer in self._answers:
            kind = answer.WhichOneof("frame")
            if kind == "command":
                self.command = answer.command
            elif kind == "output":
                yield answer.output
            elif kind == "exit_code":
                self.exit_code = answer.exit_code
        self._requests.put(None)
        if self.exit_code is None:
            raise errors.Unavailable(f"the session ended without an exit code: {self.command}")

    def write(self, data: bytes) -> None:
        """To its standard input; waits while what was written before has not left."""
        for start in range(0, len(data), INPUT_BYTES):
            while not self._room.acquire(timeout=0.5):
                if self._closed.is_set():
                    return
            self._requests.put(Request(input=data[start : start + INPUT_BYTES]))

    def end_input(self) -> None:
        self._requests.put(Request(input_end=True))

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size. May be called from a signal handler."""
        self._requests.put(Request(resize=commands_pb2.TerminalSize(rows=rows, columns=columns)))

    def close(self) -> None:
        self._closed.set()
        self._requests.put(None)
        self._answers.cancel()

    def _send(self) -> Iterator[Request]:
        while (request := self._requests.get()) is not None:
            yield request
            if request.WhichOneof("frame") == "input":
                self._room.release()


class AsyncExecSession:
    """The same for asyncio; see `ExecSession`."""

    def __init__(self, stub: ContainersAsyncStub, start: containers_pb2.ExecStart) -> None:
        self.command = ""
        self.exit_code: int | None = None
        self._start = start
        self._call = stub.ExecContainer()

    async def __aenter__(self) -> Self:
        await self._call.write(Request(start=self._start))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[Output]:
        async for answer in self._call:
            kind = answer.WhichOneof("frame")
            if kind == "command":
                self.command = answer.command
            elif kind == "output":
                yield answer.output
            elif kind == "exit_code":
                self.exit_code = answer.exit_code
        if self.exit_code is None:
            raise errors.Unavailable(f"the session ended without an exit code: {self.command}")

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), INPUT_BYTES):
            await self._call.write(Request(input=data[start : start + INPUT_BYTES]))

    async def end_input(self) -> None:
        await self._call.write(Request(input_end=True))

    async def resize(self, rows: int, columns: int) -> None:
        await self._call.write(Request(resize=commands_pb2.TerminalSize(rows=rows, columns=columns)))
