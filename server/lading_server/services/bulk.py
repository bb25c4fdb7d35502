"""Fills a relay from a Bulk stream, and tells the agent at its other end what it must know."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from grpc.aio import EOF

from lading.v1 import agent_link_pb2
from lading_server import errors
from lading_server.relay import Relay
from lading_server.services.results import code_of

PIECE_BYTES_MAX = 64 * 1024
TAKEN_BYTES = 128 * 1024
"""The agent is told this often that what it sent is here, and need not be kept."""


async def fill(
    relay: Relay, first: Any, read: Callable[[], Awaitable[Any]], write: Callable[[Any], Awaitable[None]]
) -> None:
    """Serve one stream of a session, from its first message (a BulkRequest) to its end.

    `read` gives the next BulkRequest or EOF, `write` sends a BulkResponse. When the stream breaks, the relay waits for
    another one.
    """
    stream = relay.attach()
    telling = asyncio.create_task(tell(relay, first.input_received, write))
    try:
        await pump(relay, stream, first, read)
        if not relay.stopped.is_set():
            telling.cancel()
    except BaseException:
        telling.cancel()
        raise
    finally:
        # What it writes must be written before the stream may end.
        await asyncio.gather(telling, return_exceptions=True)
        relay.detach(stream)


async def pump(relay: Relay, stream: int, piece: Any, read: Callable[[], Awaitable[Any]]) -> None:
    """Bring every piece to the reader; when it is slow, read no more, and the agent waits. Raises InvalidArgument."""
    position = piece.offset
    if position > relay.received:
        relay.finish(errors.Damaged(f"agent {relay.agent} left out bytes {relay.received} to {position}"))
        return  # what comes after a gap is not for the reader
    while piece is not EOF and not relay.stopped.is_set() and stream == relay.stream:
        relay.input_taken(piece.input_received)
        if len(piece.data) > PIECE_BYTES_MAX:
            said = f"a piece of {len(piece.data)} bytes, and {PIECE_BYTES_MAX} are the most"
            relay.finish(errors.Damaged(f"agent {relay.agent} sent {said}"))
            raise errors.InvalidArgument(f"data: {said}", violations={"data": f"at most {PIECE_BYTES_MAX} bytes"})
        if piece.data:
            known = relay.received - position
            position += len(piece.data)
            if known > 0:
                piece.data = piece.data[known:]
            if piece.data:
                piece.offset = relay.received
                await relay.put(stream, piece, len(piece.data))
        if piece.HasField("end"):
            code = code_of(piece.end.code)
            relay.finish(errors.CommandFailed(piece.end.error[:1000], code=code) if code else None)
            return
        piece = await read()
    if not relay.stopped.is_set() and stream == relay.stream:
        relay.finish(errors.AgentOffline(f"agent {relay.agent} closed the session without saying why"))


async def tell(relay: Relay, position: int, write: Callable[[Any], Awaitable[None]]) -> None:
    """What goes to the agent on this stream; `position`: bytes of the input that it has already."""
    told, size, ended = -1, None, False
    while True:
        relay.news.clear()
        if relay.stopped.is_set():
            await write(agent_link_pb2.BulkResponse(stop=True))
            return
        if told < 0 or relay.received - told >= TAKEN_BYTES:
            told = relay.received
            await write(agent_link_pb2.BulkResponse(received=told))
        if relay.size is not size:
            size = relay.size
            await write(agent_link_pb2.BulkResponse(resize=size, received=relay.received))
        for data in relay.input_after(position):
            position += len(data)
            await write(agent_link_pb2.BulkResponse(input=data, received=relay.received))
        if relay.input_ended and not ended and not relay.input_after(position):
            ended = True
            await write(agent_link_pb2.BulkResponse(input_end=True, received=relay.received))
        await relay.news.wait()
