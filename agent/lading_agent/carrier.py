"""Carries one session's bytes to the server, over as many Bulk streams as it takes."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

import grpc
from grpc import StatusCode

from lading.v1.agent_link_pb2 import BulkEnd, BulkRequest, BulkResponse
from lading.v1.containers_pb2 import LogSource
from lading_agent.backoff import Backoff
from lading_agent.errors import AgentError, NobodyReads

log = logging.getLogger(__name__)

PIECE_BYTES_MAX = 64 * 1024
# What the server has not taken may have to be sent again: so much is kept, and then its source waits.
KEPT_BYTES_MAX = 512 * 1024
INPUT_ACK_BYTES = 64 * 1024
# A stream that breaks is opened again; after so many seconds without one nobody can be reading any more.
REOPEN_WITHIN = 60.0
CLOSE_WITHIN = 5.0
PASSING = frozenset({StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.UNKNOWN, StatusCode.INTERNAL})

Call = grpc.aio.StreamStreamCall[BulkRequest, BulkResponse]


class Carrier:
    """`run` it in a task; `send` and `end` from one other, `receive` from one other. `connect` opens a stream."""

    def __init__(self, session: str, connect: Callable[[], Call]) -> None:
        self._session = session
        self._connect = connect
        # Pieces that the server has not taken, and how many of them are on their way on this stream.
        self._kept: deque[BulkRequest] = deque()
        self._on_way = 0
        self._given = self._taken = 0
        self._ended = False
        self._input: deque[BulkResponse] = deque()
        self._input_taken = self._input_told = 0
        self._changed = asyncio.Condition()
        self._attached = asyncio.Event()
        self._gone: str | None = None
        # This stream was heard.
        self._lived = False

    @property
    def gone(self) -> str | None:
        """Why nobody reads any more; None while somebody does."""
        return self._gone

    @property
    def ended(self) -> bool:
        """It was told the end."""
        return self._ended

    async def attached(self, within: float) -> None:
        """Wait until the server has opened the session; raises NobodyReads."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._attached.wait()
        if self._gone is not None or not self._attached.is_set():
            raise NobodyReads(self._gone or f"the server did not open it within {within:g} s")

    async def send(self, data: bytes, source: LogSource.ValueType, position: str = "") -> None:
        """Hand on a piece; waits while the server is slow to take what came before. Raises NobodyReads."""
        for start in range(0, len(data), PIECE_BYTES_MAX):
            part = data[start : start + PIECE_BYTES_MAX]
            last = start + len(part) == len(data)
            async with self._changed:
                await self._changed.wait_for(self._has_room)
                if self._gone is not None:
                    raise NobodyReads(self._gone)
                piece = BulkRequest(data=part, source=source, offset=self._given, position=position if last else "")
                self._kept.append(piece)
                self._given += len(part)
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._gone is not None or self._given - self._taken < KEPT_BYTES_MAX

    async def end(self, code: int = 0, error: str = "") -> None:
        """Nothing more comes; returns at once, and `run` ends when the server knows."""
        async with self._changed:
            self._kept.append(BulkRequest(offset=self._given, end=BulkEnd(code=code, error=error)))
            self._ended = True
            self._changed.notify_all()

    async def receive(self) -> BulkResponse | None:
        """What comes for the program, in order; None when nobody is there any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._input or self._gone is not None)
            if not self._input:
                return None
            response = self._input.popleft()
            # From here on it is the caller's: another stream must not bring it once more.
            self._input_taken += len(response.input)
            if self._has_news():
                self._changed.notify_all()
            return response

    async def run(self) -> None:
        """Until the server knows the end, or nobody reads any more."""
        backoff, give_up_at = Backoff(), 0.0
        try:
            while self._gone is None:
                try:
                    await self._converse()
                    return
                except AgentError as error:
                    await self._leave(str(error))
                except grpc.aio.AioRpcError as error:
                    words = error.details() or error.code().name
                    if error.code() not in PASSING:
                        await self._leave(words)
                        return
                    if self._lived or not give_up_at:
                        backoff.reset()
                        give_up_at = time.monotonic() + REOPEN_WITHIN
                    if time.monotonic() > give_up_at:
                        await self._leave(f"the server cannot be reached: {words}")
                    log.info("session %s: its stream broke (%s), opening it again", self._session, words)
                    await asyncio.sleep(backoff.next())
        finally:
            await self._leave("the session is over")

    async def _converse(self) -> None:
        """One stream; returns when all is said, and raises AioRpcError when it broke before."""
        self._lived = False
        call = self._connect()
        writing = None
        try:
            async with self._changed:
                self._on_way, self._input_told = 0, self._input_taken
                self._input.clear()
                first = BulkRequest(session=self._session, offset=self._taken, input_received=self._input_taken)
            await _write(call, first)
            writing = asyncio.create_task(self._write(call))
            while isinstance(response := await call.read(), BulkResponse):
                self._lived = True
                if response.stop:
                    await self._leave("its caller went away")
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
                    with contextlib.suppress(TimeoutError, asyncio.InvalidStateError):
                        async with asyncio.timeout(CLOSE_WITHIN):
                            await call.done_writing()
                            await call.code()
                    return
                await self._take(response)
            if not self._ended:
                await self._leave("the server ended the session")
        finally:
            if writing is not None:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
            call.cancel()

    async def _take(self, response: BulkResponse) -> None:
        async with self._changed:
            while self._kept and self._kept[0].data and _end_of(self._kept[0]) <= response.received:
                self._taken = _end_of(self._kept.popleft())
                self._on_way = max(0, self._on_way - 1)
            if response.input or response.input_end or response.HasField("resize"):
                self._input.append(response)
            self._changed.notify_all()
        self._attached.set()

    async def _write(self, call: Call) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._on_way < len(self._kept) or self._has_news())
                told = self._input_taken
                if self._on_way < len(self._kept):
                    piece = BulkRequest()
                    piece.CopyFrom(self._kept[self._on_way])
                    self._on_way += 1
                else:
                    piece = BulkRequest(offset=self._given)
                piece.input_received = self._input_told = told
            await _write(call, piece)
            if piece.HasField("end"):
                await call.done_writing()
                return

    def _has_news(self) -> bool:
        return self._input_taken - self._input_told >= INPUT_ACK_BYTES

    async def _leave(self, why: str) -> None:
        async with self._changed:
            self._gone = self._gone or why
            self._changed.notify_all()
        self._attached.set()


def _end_of(piece: BulkRequest) -> int:
    return piece.offset + len(piece.data)


async def _write(call: Call, message: BulkRequest) -> None:
    # A call that is over refuses to write; reading it says why it is.
    with contextlib.suppress(asyncio.InvalidStateError):
        await call.write(message)
