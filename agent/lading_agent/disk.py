"""The journal's file: SQLite, one thread that writes, and everything that waits in one commit.

What an agent has in hand must be able to end though the disk is full: a reserve, a file of nothing, is held for that.
It is given up when the disk refuses what must be written, and while it is not there nothing new is begun.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import pathlib
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from lading_agent.errors import AgentError, DiskFull, JournalError

Answer = TypeVar("Answer")
Work = Callable[[sqlite3.Connection], Answer]

FILE = "journal.db"
RESERVE_FILE = "journal.reserve"
# Results of some thousand commands; less than a log line takes in a day.
RESERVE_BYTES = 4 << 20
# Of a disk with less than this, an error is for want of room, by whatever name.
SMALL_BYTES = 64 << 10
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(eq=False)
class Unit:
    """Statements that are committed together."""

    work: Work[Any]
    after: Callable[[], None] | None
    answer: "asyncio.Future[Any]"


class Disk:
    """One journal's folder; `open` first. What it does raises JournalError when the disk refuses, DiskFull when it is
    full."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._waiting: list[Unit] = []
        self._writing = False
        self._lock: int | None = None
        self._room = False

    async def open(self, build: Work[None]) -> None:
        """Make or open it, and have `build` see to its tables; raises JournalError when another agent has it."""
        await self._run(lambda: self._open(build))

    async def close(self, last: Work[None]) -> None:
        """Commit what waits, then `last`, and let go of it."""
        await self._run(lambda: self._close(last))
        self._thread.shutdown()

    async def write(self, work: Work[Answer], after: Callable[[], None] | None = None) -> Answer:
        """What `work` returns, once all it wrote is on disk. Work that raises must not have written before.

        Everything that waits is one transaction: one sync for all. Work may be run again. `after` is called in the
        thread, once it is on disk, whether or not anybody still waits.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(Unit(work, after, answer))
        if not self._writing:
            self._write_waiting()
        return await answer

    def require_room(self) -> None:
        """For work that begins something new: raises DiskFull when there is room only for what was begun before."""
        if not self._room:
            raise DiskFull(f"{self._full()}; nothing was done")

    def _write_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        self._writing = True
        loop = asyncio.get_running_loop()
        try:
            done = self._thread.submit(self._commit, batch)
        except RuntimeError:
            self._writing = False
            for unit in batch:
                unit.answer.set_exception(JournalError(f"the journal in {self.folder} is closed"))
            return

        def tell(done: "Future[list[tuple[Any, Exception | None]]]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and so are they that wait
                loop.call_soon_threadsafe(self._tell, batch, done)

        done.add_done_callback(tell)

    def _tell(self, batch: Sequence[Unit], done: "Future[list[tuple[Any, Exception | None]]]") -> None:
        self._writing = False
        if self._waiting:
            self._write_waiting()
        fault = done.exception()
        answers = done.result() if fault is None else [(None, self._failure(fault))] * len(batch)
        for unit, (answer, failure) in zip(batch, answers, strict=True):
            if unit.answer.done():
                continue
            if failure is None:
                unit.answer.set_result(answer)
            else:
                unit.answer.set_exception(failure)

    def _commit(self, batch: Sequence[Unit]) -> list[tuple[Any, Exception | None]]:
        """In the thread: all of it, or each alone when that fails."""
        self._room = self._hold_reserve()
        try:
            return self._transact(batch)
        except Exception as error:
            if len(batch) > 1:
                return [answer for unit in batch for answer in self._commit([unit])]
            if not isinstance(error, sqlite3.Error | OSError):
                return [(None, error)]
            if not self._is_full(error):
                return [(None, self._failure(error))]
            if not self._give_up_reserve():
                return [(None, DiskFull(self._full()))]
        self._room = False
        try:
            return self._transact(batch)
        except (sqlite3.Error, OSError):
            return [(None, DiskFull(self._full()))]

    def _transact(self, batch: Sequence[Unit]) -> list[tuple[Any, Exception | None]]:
        assert self.connection is not None, "open() first"
        answers: list[tuple[Any, Exception | None]] = []
        with self.connection as connection:
            for unit in batch:
                try:
                    answers.append((unit.work(connection), None))
                except AgentError as error:
                    answers.append((None, error))
        for unit, (_answer, failure) in zip(batch, answers, strict=True):
            if unit.after is not None and failure is None:
                unit.after()
        return answers

    async def _run(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> JournalError:
        return JournalError(f"the journal in {self.folder} cannot be written ({error}); nothing was done")

    def _full(self) -> str:
        return f"the journal's disk is full, nothing new is begun: free some space for {self.folder}"

    def _open(self, build: Work[None]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(
                f"another agent runs on {self.folder}: stop it, or give each one its own --data folder"
            ) from None
        path = self.folder / FILE
        path.touch(mode=0o600)
        self.connection = sqlite3.connect(path, check_same_thread=False)
        try:
            self._build(build)
        except sqlite3.Error as error:
            # An agent that comes back to a full disk must be able to say so, and to end what it had in hand.
            if not self._is_full(error) or not self._give_up_reserve():
                raise
            self._build(build)
        self._hold_reserve()

    def _build(self, build: Work[None]) -> None:
        assert self.connection is not None
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        build(self.connection)

    def _close(self, last: Work[None]) -> None:
        if self.connection is not None:
            with contextlib.suppress(sqlite3.Error), self.connection as connection:
                last(connection)
            self.connection.close()
            self.connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hold_reserve(self) -> bool:
        """Whether there is one; made when there is room for it."""
        path = self.folder / RESERVE_FILE
        try:
            if path.stat().st_size == RESERVE_BYTES:
                return True
        except OSError:
            pass
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(file, 0, RESERVE_BYTES)
            finally:
                os.close(file)
        except OSError:
            self._give_up_reserve()
            return False
        return True

    def _give_up_reserve(self) -> bool:
        """Whether there was one."""
        try:
            (self.folder / RESERVE_FILE).unlink()
        except OSError:
            return False
        return True

    def _is_full(self, error: Exception) -> bool:
        """Whether there is no room, rather than something broken."""
        if not isinstance(error, sqlite3.Error):
            return isinstance(error, OSError) and error.errno in FULL
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code != sqlite3.SQLITE_IOERR:
            return code == sqlite3.SQLITE_FULL
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize < SMALL_BYTES
