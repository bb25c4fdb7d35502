"""The log of a terminal in Podman: bytes without frames, of which a position counts how many came before."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator

from grpc import StatusCode

from lading.v1.containers_pb2 import LOG_SOURCE_STDOUT
from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes import LogPiece
from lading_agent.runtimes.docker_log import forgotten, read_position


def read_raw_position(text: str, container: str, *, stamps: bool) -> tuple[int, int]:
    """Since when, and after how many bytes; raises RuntimeFailure for one that is none."""
    since_ns, skip, mode = read_position(text, container)
    if mode != stamps:
        words = "this position is of the log with times, or without them: ask as it was asked before"
        raise RuntimeFailure(words, StatusCode.INVALID_ARGUMENT)
    return since_ns, skip


async def raw_pieces(
    chunks: AsyncIterator[bytes], container: str, since_ns: int, skip: int, *, stamps: bool
) -> AsyncGenerator[LogPiece, None]:
    """What comes after the first `skip` bytes."""
    read = 0
    async for chunk in chunks:
        data = chunk[max(0, skip - read) :]
        read += len(chunk)
        if data:
            yield LogPiece(LOG_SOURCE_STDOUT, data, f"{container[:12]}.{since_ns}.{read}.{int(stamps)}")
    if read < skip:
        raise forgotten()


async def bytes_to_tail(chunks: AsyncIterator[bytes], lines: int) -> int:
    """How many bytes come before the last lines."""
    begins, read, fresh = deque[int](maxlen=lines), 0, True
    async for chunk in chunks:
        at = 0
        while at < len(chunk):
            if fresh:
                begins.append(read + at)
            end = chunk.find(b"\n", at)
            fresh = end >= 0
            at = end + 1 if fresh else len(chunk)
        read += len(chunk)
    return begins[0] if begins else 0
