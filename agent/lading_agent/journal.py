"""The agent's durable memory of commands: SQLite, one writer thread, every write on disk before its caller goes on.

Stages of a command, each committed before what it announces happens:

    received    the runtime was not touched; after a crash it is settled as CANCELLED
    executing   the runtime may have been touched; after a crash evidence decides
    ended       the result is known; it is sent until the server says that it is recorded

A row is kept for 7 days after that receipt, so that a late duplicate is answered and not executed.
"""

import asyncio
import fcntl
import os
import pathlib
import sqlite3
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from lading.v1.agent_link_pb2 import Envelope, HeldCommand, Result
from lading.v1.containers_pb2 import Container
from lading_agent.errors import JournalError

Answer = TypeVar("Answer")

KEEP_US = 7 * 24 * 3600 * 1_000_000
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE commands (
    id TEXT PRIMARY KEY,
    envelope BLOB NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('received', 'executing', 'ended')),
    before BLOB,
    result BLOB,
    received_at INTEGER NOT NULL,
    executing_at INTEGER,
    ended_at INTEGER,
    receipted_at INTEGER
);
CREATE INDEX commands_held ON commands (received_at) WHERE receipted_at IS NULL;
CREATE INDEX commands_receipted ON commands (receipted_at) WHERE receipted_at IS NOT NULL;
CREATE TABLE refusals (command TEXT NOT NULL, envelope BLOB NOT NULL, reason TEXT NOT NULL, at INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """One command as journalled. `before` is None where there was no container; times in microseconds since 1970."""

    envelope: Envelope
    stage: str
    before: Container | None
    result: Result | None
    executing_at: int | None


class Journal:
    """The journal in one folder; `open` first. Every method raises JournalError when the disk refuses."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.id = ""
        self.epoch = 0
        # Receipts wait for the next write: one that a crash loses is asked for again by the next Hello.
        self._receipts: list[tuple[int, str]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None

    async def open(self) -> None:
        """Make or open it; raises JournalError when another agent has it, or a newer version wrote it."""
        await self._run(self._open)

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown()

    async def receive(self, envelope: Envelope) -> Entry | None:
        """Journal a command. Of one that is known already nothing changes, and the answer is what is known."""
        data = envelope.SerializeToString(deterministic=True)

        def receive(connection: sqlite3.Connection) -> Entry | None:
            row = connection.execute(f"{SELECT_ENTRY} WHERE id = ?", (envelope.command,)).fetchone()
            if row:
                return _entry(row)
            connection.execute(
                "INSERT INTO commands (id, envelope, stage, received_at) VALUES (?, ?, 'received', ?)",
                (envelope.command, data, _now_us()),
            )
            return None

        return await self._write(receive)

    async def find(self, command: str) -> Entry | None:
        """What is known of a command."""
        sql = f"{SELECT_ENTRY} WHERE id = ?"
        row = await self._write(lambda connection: connection.execute(sql, (command,)).fetchone())
        return _entry(row) if row else None

    async def begin(self, command: str, before: Container | None) -> None:
        """From here on the runtime may be touched."""
        data = before.SerializeToString() if before is not None else None
        await self._write(
            lambda connection: connection.execute(
                "UPDATE commands SET stage = 'executing', before = ?, executing_at = ? WHERE id = ?",
                (data, _now_us(), command),
            )
        )

    async def end(self, result: Result) -> None:
        """The first end stays: a later one changes nothing."""
        await self._write(
            lambda connection: connection.execute(
                "UPDATE commands SET stage = 'ended', result = ?, ended_at = ? WHERE id = ? AND stage != 'ended'",
                (result.SerializeToString(), _now_us(), result.command),
            )
        )

    def receipt(self, command: str) -> None:
        """The server has recorded the end; durable with the next write."""
        self._receipts.append((_now_us(), command))

    async def refuse(self, envelope: Envelope, reason: str) -> None:
        """Keep what was refused, and why."""
        await self._write(
            lambda connection: connection.execute(
                "INSERT INTO refusals VALUES (?, ?, ?, ?)",
                (envelope.command, envelope.SerializeToString(deterministic=True), reason, _now_us()),
            )
        )

    async def held(self) -> list[HeldCommand]:
        """Commands without a receipt, oldest first, with their results where there are."""
        sql = "SELECT id, result FROM commands WHERE receipted_at IS NULL ORDER BY received_at"
        rows = await self._write(lambda connection: connection.execute(sql).fetchall())
        return [HeldCommand(command=id, result=Result.FromString(data) if data else None) for id, data in rows]

    async def unfinished(self) -> list[Entry]:
        """Commands without a result, oldest first."""
        sql = f"{SELECT_ENTRY} WHERE receipted_at IS NULL AND stage != 'ended' ORDER BY received_at"
        return [_entry(row) for row in await self._write(lambda connection: connection.execute(sql).fetchall())]

    async def depth(self) -> int:
        """How many commands have no receipt."""
        sql = "SELECT count(*) FROM commands WHERE receipted_at IS NULL"
        return int(await self._write(lambda connection: connection.execute(sql).fetchone()[0]))

    async def raise_epoch(self, epoch: int) -> None:
        """Keep the highest epoch ever seen."""
        self.epoch = max(self.epoch, epoch)
        await self._write(
            lambda connection: connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (self.epoch,))
        )

    async def purge(self) -> None:
        """Forget what got its receipt more than 7 days ago."""
        await self._write(
            lambda connection: connection.execute("DELETE FROM commands WHERE receipted_at < ?", (_now_us() - KEEP_US,))
        )

    async def _run(self, work: Callable[[], Answer]) -> Answer:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"the journal in {self.folder} cannot be written ({error}); nothing was done") from error

    async def _write(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Run it in one transaction, with the receipts that wait; committed and synced when this returns."""
        receipts, self._receipts = self._receipts, []

        def transact() -> Answer:
            assert self._connection is not None, "open() first"
            with self._connection as connection:
                connection.executemany("UPDATE commands SET receipted_at = ? WHERE id = ?", receipts)
                return work(connection)

        try:
            return await self._run(transact)
        except BaseException:
            self._receipts = receipts + self._receipts
            raise

    def _open(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"another agent runs on {self.folder}: give each one its own --data folder") from None
        path = self.folder / "journal.db"
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, check_same_thread=False)
        self._connection = connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            # One transaction: a crash in here leaves an empty file, which the next start fills.
            connection.executescript(
                f"BEGIN; {SCHEMA} INSERT INTO meta VALUES ('journal_id', '{uuid.uuid4()}'), ('epoch', 0);"
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise JournalError(
                f"the journal in {self.folder} has version {version}, this agent knows {SCHEMA_VERSION}: "
                "update the agent, or give it a new --data folder"
            )
        meta: dict[str, Any] = dict(connection.execute("SELECT key, value FROM meta"))
        self.id, self.epoch = meta["journal_id"], meta["epoch"]

    def _close(self) -> None:
        if self._connection is not None:
            with self._connection as connection:
                connection.executemany("UPDATE commands SET receipted_at = ? WHERE id = ?", self._receipts)
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


SELECT_ENTRY = "SELECT envelope, stage, before, result, executing_at FROM commands"


def _entry(row: tuple[bytes, str, bytes | None, bytes | None, int | None]) -> Entry:
    envelope, stage, before, result, executing_at = row
    return Entry(
        Envelope.FromString(envelope),
        stage,
        Container.FromString(before) if before is not None else None,
        Result.FromString(result) if result is not None else None,
        executing_at,
    )


def _now_us() -> int:
    return time.time_ns() // 1000
