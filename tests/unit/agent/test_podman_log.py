"""Logs that Podman gives otherwise than Docker: without frames for a terminal, and with a tail of its own making."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from lading.v1.containers_pb2 import LOG_SOURCE_STDOUT
from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes.docker_log import LogEntry, count_to_tail
from lading_agent.runtimes.podman_log import bytes_to_tail, raw_pieces, read_raw_position

ID = "0123456789abcdef"
CHUNKS = st.lists(st.sampled_from([b"a", b"\n", b"bc\nd", b"\n\n", b"e" * 9]), max_size=12)


async def each(chunks: list[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk


@given(chunks=CHUNKS, lines=st.integers(min_value=1, max_value=6))
def test_the_tail_is_the_last_lines(chunks: list[bytes], lines: int) -> None:
    whole = b"".join(chunks)
    found = asyncio.run(bytes_to_tail(each(chunks), lines))
    assert whole[found:] == b"".join(whole.splitlines(keepends=True)[-lines:])


@given(chunks=CHUNKS, lines=st.integers(min_value=1, max_value=6))
def test_the_tail_of_pieces_is_the_last_lines(chunks: list[bytes], lines: int) -> None:
    # A piece ends with its line, as the engine writes it.
    whole = [line for chunk in chunks for line in chunk.splitlines(keepends=True)]

    async def batches() -> AsyncGenerator[list[LogEntry], None]:
        for data in whole:
            yield [LogEntry(LOG_SOURCE_STDOUT, 0, b"", data)]

    found = asyncio.run(count_to_tail(batches(), lines))
    assert b"".join(whole[found:]) == b"".join(b"".join(whole).splitlines(keepends=True)[-lines:])


@given(before=CHUNKS, after=CHUNKS, cut=st.integers(min_value=1, max_value=4))
def test_a_reader_goes_on_where_it_was(before: list[bytes], after: list[bytes], cut: int) -> None:
    async def run() -> None:
        got, position = b"", f"{ID[:12]}.0.0.1"
        async for piece in raw_pieces(each(before), ID, 0, 0, stamps=True):
            got, position, cut_left = got + piece.data, piece.position, cut - 1
            if not cut_left:
                break
        _, skip = read_raw_position(position, ID, stamps=True)
        got += b"".join([piece.data async for piece in raw_pieces(each(before + after), ID, 0, skip, stamps=True)])
        assert got == b"".join(before + after)

    asyncio.run(run())


def test_a_position_of_the_log_with_times_is_none_of_the_log_without() -> None:
    with pytest.raises(RuntimeFailure) as failure:
        read_raw_position(f"{ID[:12]}.0.7.1", ID, stamps=False)
    assert failure.value.code == StatusCode.INVALID_ARGUMENT


async def test_what_the_engine_has_thrown_away_is_said() -> None:
    with pytest.raises(RuntimeFailure) as failure:
        assert [piece async for piece in raw_pieces(each([b"abc"]), ID, 0, 4, stamps=False)] == []
    assert failure.value.code == StatusCode.OUT_OF_RANGE
