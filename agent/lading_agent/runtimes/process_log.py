"""The log of a process, which it writes itself, into a file that is only ever appended to.

So an offset in the file is a position for ever. Its size on disk is bounded all the same: the oldest part is given back
to the file system (a hole, fallocate(2)), and what is behind it keeps its place.
"""

import ctypes
import errno
import logging
import os
import pathlib

from grpc import StatusCode

from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes import LogQuery

log = logging.getLogger(__name__)

LOG_PIECE_BYTES = 64 * 1024
LOG_BYTES_MAX = 16 << 20
# What is left of a log that has grown beyond that.
KEPT_BYTES = 8 << 20
BLOCK_BYTES = 4096
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def position_of(container: str, offset: int) -> str:
    """Of what begins at this offset, in the log of the container with this id."""
    return f"{container[:12]}.{offset}"


def find_start(file: int, container: str, query: LogQuery) -> int:
    """Offset at which a query begins; raises RuntimeFailure for a position that is not in this log."""
    if not query.after:
        return find_tail(file, query.tail) if query.tail else find_begin(file)
    id, _, offset = query.after.partition(".")
    if not offset.isdigit() or len(offset) > 18:
        raise RuntimeFailure(f"{query.after[:64]!r} is not a position in this log", StatusCode.INVALID_ARGUMENT)
    if id != container[:12]:
        words = "another container has this name now: its log begins anew, ask for it without a position"
        raise RuntimeFailure(words, StatusCode.FAILED_PRECONDITION)
    if int(offset) > os.fstat(file).st_size:
        raise RuntimeFailure("the log is shorter than this position", StatusCode.OUT_OF_RANGE)
    if int(offset) < find_begin(file):
        raise _thrown_away()
    return int(offset)


def find_begin(file: int) -> int:
    """Where the first whole line begins that is still there."""
    try:
        begin = os.lseek(file, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            # Nothing in it.
            return os.fstat(file).st_size
        return 0
    if begin == 0:
        return 0
    for start in range(begin - 1, os.fstat(file).st_size, LOG_PIECE_BYTES):
        block = os.pread(file, LOG_PIECE_BYTES, start)
        if (end := block.find(b"\n")) >= 0:
            return start + end + 1
    return begin


def find_tail(file: int, lines: int) -> int:
    """Where the last so many lines begin."""
    begin = find_begin(file)
    position = size = os.fstat(file).st_size
    wanted = lines
    while position > begin:
        start = max(begin, position - LOG_PIECE_BYTES)
        block = os.pread(file, position - start, start)
        end = len(block) - 1 if position == size and block.endswith(b"\n") else len(block)
        while (end := block.rfind(b"\n", 0, end)) >= 0:
            wanted -= 1
            if wanted == 0:
                return start + end + 1
        position = start
    return begin


def read(file: int, offset: int) -> bytes:
    """What is there, at most 64 KB; raises RuntimeFailure when it was thrown away before it was read."""
    data = os.pread(file, LOG_PIECE_BYTES, offset)
    if data and os.lseek(file, offset, os.SEEK_DATA) != offset:
        raise _thrown_away()
    return data


def _thrown_away() -> RuntimeFailure:
    words = f"what came next in this log is thrown away: of each one the last {KEPT_BYTES >> 20} MB are kept"
    return RuntimeFailure(words, StatusCode.OUT_OF_RANGE)


def trim(path: pathlib.Path) -> None:
    """Give back the oldest part of a log that is too large on disk. The process goes on writing meanwhile."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return
    try:
        status = os.fstat(file)
        if status.st_blocks * 512 <= LOG_BYTES_MAX:
            return
        length = (status.st_size - KEPT_BYTES) // BLOCK_BYTES * BLOCK_BYTES
        if _libc.fallocate(file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, length):
            log.warning("%s is larger than %d bytes: %s", path, LOG_BYTES_MAX, os.strerror(ctypes.get_errno()))
    finally:
        os.close(file)
