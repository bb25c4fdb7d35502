"""Carries logs on a channel of their own, so that their bytes never delay a command."""

import asyncio
import logging
from contextlib import aclosing

import grpc

from lading.v1.agent_link_pb2 import BulkEnd, BulkRequest, BulkResponse, OpenBulk
from lading.v1.agent_link_pb2_grpc import AgentLinkStub
from lading_agent.errors import AgentError
from lading_agent.link import identity, open_channel
from lading_agent.runtimes import LogQuery, Runtime
from lading_agent.settings import Settings

log = logging.getLogger(__name__)

PIECE_BYTES_MAX = 64 * 1024

Call = grpc.aio.StreamStreamCall[BulkRequest, BulkResponse]


class Bulk:
    """All Bulk streams of the agent; the channel is there while one of them is."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime
        self._channel: grpc.aio.Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, ask: OpenBulk) -> None:
        """Begin one; it ends by itself."""
        task = asyncio.create_task(self._serve(ask), name=f"bulk {ask.session}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, ask: OpenBulk) -> None:
        try:
            if self._channel is None:
                self._channel = open_channel(self._settings)
            call: Call = AgentLinkStub(self._channel).Bulk(metadata=identity(self._settings))
            pump = asyncio.create_task(self._pump(call, ask))
            try:
                while isinstance(response := await call.read(), BulkResponse) and not response.stop:
                    pass
            finally:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
                call.cancel()
        except (grpc.aio.AioRpcError, AgentError) as error:
            words = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
            log.warning("log of %s: %s", ask.container, words)
        finally:
            if self._tasks == {asyncio.current_task()} and self._channel is not None:
                channel, self._channel = self._channel, None
                await channel.close()

    async def _pump(self, call: Call, ask: OpenBulk) -> None:
        """Writes wait for the server, and reading the log waits for the writes: nothing piles up here."""
        await call.write(BulkRequest(session=ask.session))
        query = LogQuery(ask.follow, ask.tail, ask.since.ToNanoseconds(), ask.timestamps)
        end = BulkEnd()
        try:
            async with aclosing(self._runtime.logs(ask.container, query)) as pieces:
                async for piece in pieces:
                    for start in range(0, len(piece.data), PIECE_BYTES_MAX):
                        data = piece.data[start : start + PIECE_BYTES_MAX]
                        await call.write(BulkRequest(data=data, source=piece.source))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The call is over, and who reads it knows why.
            return
        except AgentError as error:
            end = BulkEnd(code=error.code.value[0], error=str(error))
        except Exception as error:
            log.exception("log of %s: a fault of the agent", ask.container)
            end = BulkEnd(code=grpc.StatusCode.INTERNAL.value[0], error=f"a fault of the agent: {error!r}")
        await call.write(BulkRequest(end=end))
        await call.done_writing()
