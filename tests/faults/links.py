"""A link between two processes that a test can slow down, stop, cut and mend, byte by byte."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

PIECE_BYTES = 64 * 1024
# What an engine is asked to do to a container or image; what only prepares an exec runs nothing.
ACTS = re.compile(
    rb"^(POST|DELETE) /v[0-9.]+/"
    rb"(containers/create|containers/\w+/(start|stop|restart|kill|pause|unpause)\b|containers/\w+[? ]|images/create|"
    rb"exec/\w+/start)"
)


class Link:
    """Passes bytes between whoever connects to `address` and what listens at `upstream`.

    Both are HOST:PORT or unix:///PATH. `delay`: seconds that every piece takes, each way.
    """

    def __init__(self, upstream: str, address: str = "127.0.0.1:0") -> None:
        self._upstream = upstream
        self.address = address
        self.delay = 0.0
        self.held: list[bytes] = []
        """What an engine was asked to do, and its answers are kept back, since `hold_answers`."""
        self._holding = False
        self._down = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Link"]:
        server: asyncio.Server
        if self.address.startswith("unix://"):
            server = await asyncio.start_unix_server(self._serve, self.address.removeprefix("unix://"))
        else:
            host, _, port = self.address.rpartition(":")
            server = await asyncio.start_server(self._serve, host, int(port))
            self.address = "{}:{}".format(*server.sockets[0].getsockname())
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)  # transports that were aborted close in the loop's next round

    def stop(self) -> None:
        """Nothing comes through, and nobody is told: connections stay, as when packets are dropped."""
        self._flowing.clear()

    def go(self) -> None:
        """What was stopped comes through, and new connections do."""
        self._flowing.set()
        self._down = False

    def cut(self) -> None:
        """End every connection, and each new one, until `go`."""
        self._down = True
        for writer in self._writers:
            writer.transport.abort()

    def hold_answers(self) -> None:
        """From here on an engine does what it is asked, and its answer stays on the way."""
        self._holding = True

    def release_answers(self) -> None:
        """What was kept back comes, to whom is still there."""
        self._holding = False
        self._released.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        opened = [writer]
        try:
            if self._down:
                return
            there, back = await self._connect()
            opened.append(back)
            self._writers.add(back)
            held = asyncio.Event()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back, held, up=True))
                both.create_task(self._pass(there, writer, held, up=False))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # asyncio asks such a task for its exception: one that was cancelled would raise
        finally:
            for each in opened:
                each.transport.abort()
            self._writers.difference_update(opened)
            self._tasks.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._upstream.startswith("unix://"):
            return await asyncio.open_unix_connection(self._upstream.removeprefix("unix://"))
        host, _, port = self._upstream.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: asyncio.Event, *, up: bool
    ) -> None:
        """One way; `held` is set once the answers of this connection are kept back."""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(PIECE_BYTES):
                await self._flowing.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                if not up and held.is_set():
                    await self._released.wait()
                keep = up and self._holding and ACTS.match(data)
                if keep:
                    held.set()
                writer.write(data)
                await writer.drain()
                if keep:
                    self.held.append(data.partition(b"\r\n")[0])
        if up and held.is_set():
            return  # whoever asked is gone, and the engine is not to know
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()
