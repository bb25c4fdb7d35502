"""The log of an engine's container, with positions at which a later reader can go on.

The engine gives each entry with its time, and the entries since a time in the order of the file. A position is
therefore a time and how many entries since then were read: the same file gives the same ones again. Entries with equal
times (pieces of one long line have the time of its begin), and those of two sources in the wrong order of their times,
need nothing more, so long as that time is old enough that no entry before it can still come.
"""

import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from grpc import StatusCode

from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT, LogSource
from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes import LogPiece

# A clock set back by no more than this loses nothing; and so much of a log is read again to go on with it.
SETTLED_NS = 10_000_000_000
STEP_NS = 2_000_000_000
MARKS_MAX = 16
# The engine cuts lines there.
ENTRY_BYTES_MAX = 16 * 1024
STAMP_BYTES_MAX = 40
STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
# As Docker itself writes it, and always at this length.
FULL_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ")


class LogEntry(NamedTuple):
    """What the engine logged at once: a line, or a piece of one without its line break. `stamp` is its time as text,
    with the space behind."""

    source: LogSource.ValueType
    at_ns: int
    stamp: bytes
    data: bytes


class Bookmark:
    """Where a reader stands in the log of the container with this id."""

    def __init__(self, container: str, since_ns: int = 0) -> None:
        self.since_ns = since_ns
        self.newest_ns = 0
        self._container = container[:12]
        # Time, and how many entries since; the first one is in use, the others are too new for that.
        self._first = [since_ns, 0]
        self._marks = deque([self._first])
        # Time of a line that is not at its end yet, by source.
        self._open: dict[int, int] = {}

    def pass_by(self, entry: LogEntry) -> None:
        """This entry has been read."""
        at_ns, marks = entry.at_ns, self._marks
        if marks[0] is not self._first:
            if at_ns < marks[0][0]:
                # The clock was set back: what the marks leave out can still come.
                marks.clear()
                marks.append(self._first)
            elif at_ns >= self.since_ns:
                self._first[1] += 1
        for mark in marks:
            if at_ns >= mark[0]:
                mark[1] += 1
        if entry.data.endswith(b"\n"):
            self._open.pop(entry.source, None)
        else:
            self._open[entry.source] = at_ns
        if at_ns > self.newest_ns:
            self.newest_ns = at_ns
            if at_ns >= marks[-1][0] + STEP_NS and len(marks) < MARKS_MAX:
                marks.append([at_ns + 1, 0])
            while len(marks) > 1 and at_ns >= marks[1][0] + SETTLED_NS and self._settled(marks[1][0]):
                marks.popleft()

    def _settled(self, time_ns: int) -> bool:
        return all(at_ns >= time_ns for at_ns in self._open.values())

    def __str__(self) -> str:
        since_ns, count = self._marks[0]
        return f"{self._container}.{since_ns}.{count}.{self.newest_ns}"


class Place(NamedTuple):
    """A position: go on after the first `passed` entries since `since_ns`, none of them newer than `newest_ns`."""

    since_ns: int
    passed: int
    newest_ns: int


def read_position(text: str, container: str) -> Place:
    """Raises RuntimeFailure for one that is none, or is of another container."""
    id, *numbers = text.split(".")
    if len(numbers) != 3 or not all(number.isdigit() and len(number) < 20 for number in numbers):
        raise RuntimeFailure(f"{text[:64]!r} is not a position in this log", StatusCode.INVALID_ARGUMENT)
    if id != container[:12]:
        words = "another container has this name now: its log begins anew, ask for it without a position"
        raise RuntimeFailure(words, StatusCode.FAILED_PRECONDITION)
    return Place(*map(int, numbers))


async def pieces_of(
    batches: AsyncIterator[list[LogEntry]], bookmark: Bookmark, skip: int, newest_ns: int | None, stamps: bool
) -> AsyncGenerator[LogPiece, None]:
    """The entries after the first `skip` ones, neighbours put together.

    `newest_ns`: none of those that are left out was newer; if one is, raises RuntimeFailure with OUT_OF_RANGE.
    """
    async for batch in batches:
        pieces: list[LogPiece] = []
        source, parts = LogSource.LOG_SOURCE_UNSPECIFIED, list[bytes]()
        for entry in batch:
            if skip:
                if newest_ns is not None and entry.at_ns > newest_ns:
                    raise forgotten()
                skip -= 1
                bookmark.pass_by(entry)
                continue
            if parts and source != entry.source:
                pieces.append(LogPiece(source, b"".join(parts), str(bookmark)))
                parts = []
            bookmark.pass_by(entry)
            source = entry.source
            if stamps:
                parts.append(entry.stamp)
            parts.append(entry.data)
        if parts:
            pieces.append(LogPiece(source, b"".join(parts), str(bookmark)))
        for piece in pieces:
            yield piece
    if skip and newest_ns is not None:
        raise forgotten()


def forgotten() -> RuntimeFailure:
    """Of a position that is there no more."""
    words = "the engine has thrown away what came next in this log (it rotates them): ask again with since"
    return RuntimeFailure(words, StatusCode.OUT_OF_RANGE)


async def mark_tail(batches: AsyncGenerator[list[LogEntry], None]) -> tuple[int, list[int]]:
    """Since when to read so that these entries come and all behind them, and what they are known by; zero and none when
    there are none. The oldest need not be the first, nor older than what is still to come: the engine may write a line
    before one of the other source that has an earlier time."""
    oldest_ns, tail = 0, list[int]()
    async with aclosing(batches):
        async for batch in batches:
            for entry in batch:
                oldest_ns = min(oldest_ns or entry.at_ns, entry.at_ns)
                tail.append(hash(entry))
    return max(0, oldest_ns - SETTLED_NS), tail


async def count_before(tail: list[int], batches: AsyncGenerator[list[LogEntry], None]) -> int:
    """How many entries come before those of the tail; 0 when they are not there any more."""
    sought, window = deque(tail), deque[int](maxlen=len(tail))
    read = found = 0
    async with aclosing(batches):
        async for batch in batches:
            for entry in batch:
                window.append(hash(entry))
                read += 1
                if window == sought:
                    found = read - len(tail)
    return found


async def count_to_tail(batches: AsyncGenerator[list[LogEntry], None], lines: int) -> int:
    """How many entries come before the last lines."""
    begins, read, whole = deque[int](maxlen=lines), 0, True
    async with aclosing(batches):
        async for batch in batches:
            for entry in batch:
                if whole:
                    begins.append(read)
                whole = entry.data.endswith(b"\n")
                read += 1
    return begins[0] if begins else 0


async def framed_entries(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[LogEntry], None]:
    """Entries in the engine's frames (1 byte source, 3 bytes nothing, 4 bytes length, then the bytes)."""
    rest = b""
    async for chunk in chunks:
        rest = rest + chunk if rest else chunk
        position, entries = 0, list[LogEntry]()
        while len(rest) - position >= 8:
            end = position + 8 + int.from_bytes(rest[position + 4 : position + 8])
            if len(rest) < end:
                break
            source = LOG_SOURCE_STDERR if rest[position] == 2 else LOG_SOURCE_STDOUT
            entries.append(_entry(source, rest[position + 8 : end]))
            position = end
        rest = rest[position:]
        if entries:
            yield entries


async def raw_entries(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[LogEntry], None]:
    """Entries of a terminal: without frames, each one ends with its line, or where the engine cuts lines."""
    rest = b""
    async for chunk in chunks:
        rest += chunk
        entries = list[LogEntry]()
        while (end := _end_of_entry(rest)) is not None:
            entries.extend(_cut(rest[:end]))
            rest = rest[end:]
        if entries:
            yield entries
    if rest:
        yield _cut(rest)


def _end_of_entry(text: bytes) -> int | None:
    stamp = STAMP.match(text)
    begin = stamp.end() if stamp else 0
    end = text.find(b"\n", begin, begin + ENTRY_BYTES_MAX)
    if end >= 0:
        return end + 1
    return begin + ENTRY_BYTES_MAX if len(text) >= begin + ENTRY_BYTES_MAX else None


def _cut(text: bytes) -> list[LogEntry]:
    """Mostly one. A program that ended inside a line is followed, on the same line, by the first entry of its next run;
    a time that the program wrote itself is not later than that of its entry."""
    entry = _entry(LOG_SOURCE_STDOUT, text)
    for found in FULL_STAMP.finditer(entry.data):
        if read_time(found.group()) > entry.at_ns:
            head = entry._replace(data=entry.data[: found.start()])
            return [head, *_cut(entry.data[found.start() :])]
    return [entry]


def _entry(source: LogSource.ValueType, text: bytes) -> LogEntry:
    end = text.find(b" ", 0, STAMP_BYTES_MAX) + 1
    stamp = text[:end]
    return LogEntry(source, read_time(stamp), stamp, text[end:]) if end else LogEntry(source, 0, b"", text)


def read_time(stamp: bytes) -> int:
    """Nanoseconds since 1970 of a time as RFC 3339 says it, with a space behind; 0 for what is none."""
    found = STAMP.fullmatch(stamp)
    if found is None:
        return 0
    second, fraction, zone = found.groups()
    # Podman says no fraction, and has it: what was logged in a second counts as logged at its end, so that a position
    # after it is not in the middle of the others.
    return _second(second + zone) * 1_000_000_000 + int((fraction or b"999999999").ljust(9, b"0"))


@lru_cache(maxsize=64)
def _second(text: bytes) -> int:
    return int(datetime.fromisoformat(text.decode()).timestamp())
