"""Logs and exec sessions, on a channel of their own, so that their bytes never delay a command."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

import grpc

from lading.v1.agent_link_pb2 import OpenBulk
from lading.v1.agent_link_pb2_grpc import AgentLinkStub
from lading_agent.carrier import Call, Carrier
from lading_agent.errors import AgentError, NobodyReads
from lading_agent.link import identity, open_channel
from lading_agent.runtimes import LogPiece, LogQuery, Runtime
from lading_agent.settings import Settings

log = logging.getLogger(__name__)


class Bulk:
    """All sessions of the agent that carry bytes; the channel is there while one of them is."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime
        self._channel: grpc.aio.Channel | None = None
        self._carried = 0
        self._tasks: dict[asyncio.Task[None], Carrier | None] = {}

    def open(self, ask: OpenBulk) -> None:
        """Begin to carry a log; it ends by itself."""
        self._start(self._carry_log(ask))

    def carry(self, session: str) -> Carrier:
        """Begin to carry what is given to it: until it was told the end, or nobody reads, or `drop`."""
        carrier = Carrier(session, self._connect)
        self._start(self._run(carrier), carrier)
        return carrier

    def drop(self, carrier: Carrier) -> None:
        """It will not be told an end any more."""
        if not carrier.ended:
            for task, carried in self._tasks.items():
                if carried is carrier:
                    task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None], carrier: Carrier | None = None) -> None:
        task = asyncio.create_task(work)
        self._tasks[task] = carrier
        task.add_done_callback(self._tasks.pop)

    async def _run(self, carrier: Carrier) -> None:
        self._carried += 1
        try:
            await carrier.run()
        finally:
            self._carried -= 1
            if not self._carried and self._channel is not None:
                channel, self._channel = self._channel, None
                await channel.close()

    def _connect(self) -> Call:
        if self._channel is None:
            self._channel = open_channel(self._settings)
        return AgentLinkStub(self._channel).Bulk(metadata=identity(self._settings))

    async def _carry_log(self, ask: OpenBulk) -> None:
        query = LogQuery(ask.follow, ask.tail, ask.since.ToNanoseconds(), ask.timestamps, ask.after)
        carrier = self.carry(ask.session)
        reading = asyncio.create_task(self._read_log(carrier, self._runtime.logs(ask.container, query)))
        # A log that is silent for hours must not be read for nobody.
        leaving = asyncio.create_task(carrier.receive())
        try:
            await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, leaving):
                task.cancel()
            await asyncio.gather(reading, leaving, return_exceptions=True)
            self.drop(carrier)

    async def _read_log(self, carrier: Carrier, pieces: AsyncGenerator[LogPiece, None]) -> None:
        """Reading waits for sending, and sending for the server: nothing piles up here."""
        code, error = grpc.StatusCode.OK, ""
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    await carrier.send(piece.data, piece.source, piece.position)
        except NobodyReads:
            return
        except AgentError as failure:
            code, error = failure.code, str(failure)
        except Exception as failure:
            log.exception("a log: a fault of the agent")
            code, error = grpc.StatusCode.INTERNAL, f"a fault of the agent: {failure!r}"
        await carrier.end(code.value[0], error)
