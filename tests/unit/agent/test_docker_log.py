"""Positions in the log of a container: a log that is read in parts is the log."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT
from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes.docker_log import (
    ENTRY_BYTES_MAX,
    SETTLED_NS,
    Bookmark,
    LogEntry,
    count_before,
    mark_tail,
    pieces_of,
    raw_entries,
    read_position,
    read_time,
)

ID = "0123456789abcdef"
START_NS = 1_790_000_000_000_000_000


class Line(NamedTuple):
    """How a log goes on: so much later (or earlier, as two writers may stamp in the wrong order), in so many pieces."""

    step_ns: int
    stderr: bool
    pieces: int


LINES = st.lists(
    st.builds(
        Line,
        step_ns=st.sampled_from([0, 1, 1000, 10**9, SETTLED_NS // 2, SETTLED_NS, -1000]),
        stderr=st.booleans(),
        pieces=st.integers(min_value=1, max_value=3),
    ),
    min_size=1,
    max_size=30,
)


def entries_of(lines: list[Line]) -> list[LogEntry]:
    """What the engine's file holds. The pieces of a long line have the time of its begin, and those of the other source
    come between them."""
    at_ns, found = START_NS, list[LogEntry]()
    open_line: list[LogEntry] = []
    for number, line in enumerate(lines):
        at_ns = max(START_NS, at_ns + line.step_ns)
        source = LOG_SOURCE_STDERR if line.stderr else LOG_SOURCE_STDOUT
        texts = [f"{number}.{piece} ".encode() for piece in range(line.pieces - 1)] + [f"{number}\n".encode()]
        entries = [LogEntry(source, at_ns, b"", text) for text in texts]
        if open_line and open_line[0].source == source:
            found, open_line = found + open_line, []
        found += entries[:1] if len(entries) > 1 else entries
        if len(entries) > 1:
            found, open_line = found + open_line, entries[1:]
    return found + open_line


async def batches(entries: list[LogEntry], size: int = 3) -> AsyncGenerator[list[LogEntry], None]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


async def read(
    log: list[LogEntry], after: str, pieces: int, told: Callable[[LogEntry], LogEntry] = lambda entry: entry
) -> tuple[bytes, str]:
    """So many pieces of a log behind a position, as the engine gives them, and the position of the last one."""
    since_ns, skip, newest_ns = read_position(after, ID) if after else (0, 0, None)
    bookmark = Bookmark(ID, since_ns)
    given = [told(entry) for entry in log if entry.at_ns >= since_ns]
    data, position = b"", after
    async for piece in pieces_of(batches(given), bookmark, skip, newest_ns, False):
        data += piece.data
        position = piece.position
        pieces -= 1
        if pieces == 0:
            break
    return data, position


@settings(max_examples=300)
@given(lines=LINES, cuts=st.lists(st.integers(min_value=1, max_value=6), max_size=8))
def test_a_log_read_in_parts_is_the_log(lines: list[Line], cuts: list[int]) -> None:
    async def run() -> None:
        log = entries_of(lines)
        got, position = b"", ""
        for pieces in itertools.chain(cuts, [10_000]):
            data, position = await read(log, position, pieces)
            got += data
        assert got == b"".join(entry.data for entry in log)

    asyncio.run(run())


@settings(max_examples=100)
@given(lines=LINES, data=st.data())
def test_what_was_written_meanwhile_follows(lines: list[Line], data: st.DataObject) -> None:
    async def run() -> None:
        log = entries_of(lines)
        there = data.draw(st.integers(min_value=1, max_value=len(log)))
        first, position = await read(log[:there], "", 10_000)
        rest, _ = await read(log, position, 10_000)
        assert first + rest == b"".join(entry.data for entry in log)

    asyncio.run(run())


@settings(max_examples=100)
@given(lines=LINES, wanted=st.integers(min_value=1, max_value=35), data=st.data())
def test_the_last_entries_are_those_of_the_file_whatever_their_times(
    lines: list[Line], wanted: int, data: st.DataObject
) -> None:
    async def run() -> None:
        log = entries_of(lines)
        there = data.draw(st.integers(min_value=1, max_value=len(log)))
        since_ns, tail = await mark_tail(batches(log[:there][-wanted:]))
        skip = await count_before(tail, batches([entry for entry in log if entry.at_ns >= since_ns]))
        given = [entry for entry in log if entry.at_ns >= since_ns]
        got = [piece.data async for piece in pieces_of(batches(given), Bookmark(ID, since_ns), skip, None, False)]
        last = [entry.data for entry in log[max(0, there - wanted) :]]
        assert b"".join(got) == b"".join(last), "these, and all that was written since"

    asyncio.run(run())


@settings(max_examples=200)
@given(lines=LINES, cuts=st.lists(st.integers(min_value=1, max_value=6), max_size=8))
def test_a_log_whose_times_are_told_in_whole_seconds_is_the_log_too(lines: list[Line], cuts: list[int]) -> None:
    """As by Podman, which selects by the whole time and tells it without its fraction."""

    async def run() -> None:
        log = [entry._replace(at_ns=entry.at_ns + 123) for entry in entries_of(lines)]
        got, position = b"", ""
        for pieces in itertools.chain(cuts, [10_000]):
            data, position = await read(log, position, pieces, told=at_the_end_of_its_second)
            got += data
        assert got == b"".join(entry.data for entry in log)

    asyncio.run(run())


def at_the_end_of_its_second(entry: LogEntry) -> LogEntry:
    stamp = datetime.fromtimestamp(entry.at_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ ").encode()
    return entry._replace(at_ns=read_time(stamp))


async def test_what_the_engine_has_rotated_away_is_said_and_not_skipped() -> None:
    log = entries_of([Line(10**9, False, 1)] * 40)
    _, position = await read(log, "", 5)
    with pytest.raises(RuntimeFailure) as failure:
        await read(log[25:], position, 10_000)
    assert failure.value.code == StatusCode.OUT_OF_RANGE


@pytest.mark.parametrize("text", ["x", "0123456789ab.1.2", "0123456789ab.1.2.-3", f"0123456789ab.{'9' * 30}.1.1"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(RuntimeFailure) as failure:
        read_position(text, ID)
    assert failure.value.code == StatusCode.INVALID_ARGUMENT


def test_a_position_of_another_container_is_refused() -> None:
    with pytest.raises(RuntimeFailure) as failure:
        read_position(str(Bookmark("f" * 64)), ID)
    assert failure.value.code == StatusCode.FAILED_PRECONDITION


async def one_by_one(text: bytes) -> AsyncGenerator[bytes, None]:
    for byte in text:
        yield bytes([byte])


async def test_a_terminals_log_is_cut_into_its_entries() -> None:
    stamps = [f"2026-11-22T01:02:0{number}.123456789Z ".encode() for number in range(4)]
    long = b"x" * ENTRY_BYTES_MAX
    # A long line; then a program that ended inside a line, and its next run; then the time that one wrote itself.
    text = stamps[0] + long + stamps[0] + b"y\r\n" + stamps[1] + b"prompt $ " + stamps[2] + b"again\r\n"
    text += stamps[3] + b"it is " + stamps[1] + b"\r\n"
    found = [entry async for batch in raw_entries(one_by_one(text)) for entry in batch]
    assert [entry.data for entry in found] == [
        long,
        b"y\r\n",
        b"prompt $ ",
        b"again\r\n",
        b"it is " + stamps[1] + b"\r\n",
    ]
    assert [entry.at_ns for entry in found] == [read_time(stamps[number]) for number in (0, 0, 1, 2, 3)]


def test_times_are_read_to_the_nanosecond_in_any_zone() -> None:
    second = int(datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC).timestamp())
    assert read_time(b"2026-11-22T01:02:03.000000001Z ") == second * 10**9 + 1
    assert read_time(b"2026-11-22T02:02:03.5+01:00 ") == second * 10**9 + 5 * 10**8
    assert read_time(b"2026-11-22T01:02:03Z ") == second * 10**9 + 999_999_999
    assert read_time(b"no time ") == 0
