"""What the agent must not forget: commands, and the log that they come from. Every write is on disk before its caller
goes on.

Stages of a command, each committed before what it announces happens:

    received    the runtime was not touched; after a crash it is settled as CANCELLED
    executing   the runtime may have been touched; after a crash evidence decides
    ended       the result is known; it is sent until the server says that it is recorded

A row is kept for 7 days after that receipt, so that a late duplicate is answered and not executed. Of what is forgotten
then, one time stays: a command that was issued before it, and is not known, may be one of the forgotten and is refused.
"""

import pathlib
import sqlite3
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from grpc import StatusCode

from lading.transparency import note
from lading.v1.agent_link_pb2 import ConnectResponse, Dispatch, Envelope, HeldCommand, Result
from lading.v1.containers_pb2 import Container
from lading_agent.disk import Disk
from lading_agent.errors import JournalError, Refused

Answer = TypeVar("Answer")

KEEP_US = 7 * 24 * 3600 * 1_000_000
# Evidence: so many refusals of each kind, the newest, and so much of each frame.
REFUSALS_MAX = 256
FRAME_BYTES_MAX = 256 * 1024
SCHEMA_VERSION = 3
REFUSALS = """
CREATE TABLE refusals (
    kind TEXT NOT NULL CHECK (kind IN ('command', 'log')),
    command TEXT NOT NULL,
    reason TEXT NOT NULL,
    frame BLOB NOT NULL,
    checkpoint TEXT NOT NULL,
    at INTEGER NOT NULL
);
"""
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE commands (
    id TEXT PRIMARY KEY,
    envelope BLOB NOT NULL,
    issued_at INTEGER NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('received', 'executing', 'ended')),
    before BLOB,
    result BLOB,
    received_at INTEGER NOT NULL,
    executing_at INTEGER,
    ended_at INTEGER,
    receipted_at INTEGER,
    handle TEXT
);
CREATE INDEX commands_held ON commands (received_at) WHERE receipted_at IS NULL;
CREATE INDEX commands_receipted ON commands (receipted_at) WHERE receipted_at IS NOT NULL;
{REFUSALS}"""
UPGRADES = {
    1: f"""
ALTER TABLE commands ADD COLUMN issued_at INTEGER NOT NULL DEFAULT 0;
UPDATE commands SET issued_at = issued_at_of(envelope);
ALTER TABLE refusals RENAME TO refusals_before;
{REFUSALS}INSERT INTO refusals SELECT 'command', command, reason, frame_of(envelope), '', at FROM refusals_before;
DROP TABLE refusals_before;
""",
    2: "ALTER TABLE commands ADD COLUMN handle TEXT;",
}


@dataclass(frozen=True)
class Entry:
    """One command as journalled. `before` is None where there was no container; times in microseconds since 1970;
    `handle` is by what the runtime knows the program of an exec, empty before there is one."""

    envelope: Envelope
    stage: str
    before: Container | None
    result: Result | None
    executing_at: int | None
    handle: str = ""


@dataclass(frozen=True)
class Start:
    """What is known just before a command begins: the container, None where there is none, and when."""

    before: Container | None
    at_ns: int = field(default_factory=time.time_ns)


@dataclass(frozen=True)
class Act:
    """When a command acted on a container, in microseconds since 1970; `ended_at` is None while it does."""

    container: str
    verb: int
    begun_at: int
    ended_at: int | None


@dataclass(frozen=True)
class View:
    """The log as the agent saw it last: the key that it pinned, the signed checkpoint, and the tree that this names."""

    log_key: note.Key
    checkpoint: str
    tree: note.Checkpoint


class Journal:
    """The journal in one folder; `open` first. Every method raises JournalError when the disk refuses."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.id = ""
        self.epoch = 0
        self.owner = ""
        # Always what is on disk. None before first contact.
        self.view: View | None = None
        self._forgotten_until = -1
        # Until when the server knows what happened in the runtime, nanoseconds since 1970; None at first.
        self.seen_ns: int | None = None
        # Receipts wait for the next write: one that a crash loses is asked for again by the next Hello.
        self._receipts: list[tuple[int, str]] = []
        self._disk = Disk(folder)

    async def open(self) -> None:
        """Make or open it; raises JournalError when another agent has it, or a newer version wrote it."""
        await self._disk.open(self._open)

    async def close(self) -> None:
        """Write what waits, and let go of it."""
        await self._disk.close(partial(_put_receipts, receipts=self._receipts))

    async def claim(self, owner: str) -> None:
        """Make it the journal of this agent (`organization/agent`) alone; raises JournalError when it is another's."""
        if self.owner not in ("", owner):
            raise JournalError(
                f"the journal in {self.folder} is that of the agent {self.owner}, this is {owner}: "
                "give each one its own --data folder"
            )
        await self._write(lambda connection: _put(connection, owner=owner))
        self.owner = owner

    async def keep(self, view: View) -> None:
        """Persist what was seen of the log."""
        await self._write(lambda connection: None, view)

    async def receive(self, envelope: Envelope, view: View | None = None, start: Start | None = None) -> Entry | None:
        """Journal a command, and what was seen of the log with it; with `start` it is executing at once, as by `begin`.
        Of one that is known already nothing changes, and the answer is what is known. Raises Refused when it may be
        one of those that were forgotten."""
        data = envelope.SerializeToString(deterministic=True)
        issued_at = issued_at_of(envelope)

        def receive(connection: sqlite3.Connection) -> Entry | None:
            row = connection.execute(f"{SELECT_ENTRY} WHERE id = ?", (envelope.command,)).fetchone()
            if row:
                return _entry(row)
            self._disk.require_room()
            if issued_at <= self._forgotten_until:
                raise Refused(
                    "a replay, it seems: it was issued before commands that this agent has done and forgotten, and it "
                    "may be one of them",
                    StatusCode.ALREADY_EXISTS,
                )
            connection.execute(
                "INSERT INTO commands (id, envelope, issued_at, stage, received_at) VALUES (?, ?, ?, 'received', ?)",
                (envelope.command, data, issued_at, _now_us()),
            )
            if start is not None:
                _begin(connection, envelope.command, start)
            return None

        return await self._write(receive, view)

    async def find(self, envelope: Envelope, view: View | None = None) -> Entry | None:
        """What is known of a command; what was seen of the log with it is kept."""
        sql = f"{SELECT_ENTRY} WHERE id = ?"
        row = await self._write(lambda connection: connection.execute(sql, (envelope.command,)).fetchone(), view)
        return _entry(row) if row else None

    async def begin(self, command: str, start: Start) -> None:
        """From here on the runtime may be touched."""
        await self._write(lambda connection: _begin(connection, command, start))

    async def keep_handle(self, command: str, handle: str) -> None:
        """By what the runtime will know the program of an exec; it does not run yet."""
        sql = "UPDATE commands SET handle = ? WHERE id = ?"
        await self._write(lambda connection: connection.execute(sql, (handle, command)))

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

    async def refuse(self, kind: str, command: str, reason: str, frame: bytes, view: View | None = None) -> None:
        """Keep the evidence of what was refused: the server's frame, why, and the checkpoint that the agent had then.
        `kind`: `command` or `log`; `view`: what was seen of the log with it and holds."""
        checkpoint = self.view.checkpoint if self.view is not None else ""

        def refuse(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO refusals VALUES (?, ?, ?, ?, ?, ?)",
                (kind, command, reason, frame[:FRAME_BYTES_MAX], checkpoint, _now_us()),
            )
            connection.execute(
                "DELETE FROM refusals WHERE kind = ? AND rowid <= "
                "(SELECT rowid FROM refusals WHERE kind = ? ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                (kind, kind, REFUSALS_MAX),
            )

        await self._write(refuse, view)

    async def held(self) -> list[HeldCommand]:
        """Commands without a receipt, oldest first, with their results where there are."""
        sql = "SELECT id, result FROM commands WHERE receipted_at IS NULL ORDER BY received_at"
        receipted = {command for _, command in self._receipts}
        rows = await self._disk.write(lambda connection: connection.execute(sql).fetchall())
        return [
            HeldCommand(command=id, result=Result.FromString(data) if data else None)
            for id, data in rows
            if id not in receipted
        ]

    async def unfinished(self) -> list[Entry]:
        """Commands without a result, oldest first."""
        sql = f"{SELECT_ENTRY} WHERE receipted_at IS NULL AND stage != 'ended' ORDER BY received_at"
        return [_entry(row) for row in await self._disk.write(lambda connection: connection.execute(sql).fetchall())]

    async def depth(self) -> int:
        """How many commands have no receipt."""
        sql = "SELECT count(*) FROM commands WHERE receipted_at IS NULL"
        receipted = len(self._receipts)
        return int(await self._disk.write(lambda connection: connection.execute(sql).fetchone()[0])) - receipted

    async def raise_epoch(self, epoch: int) -> None:
        """Keep the highest epoch ever seen."""
        self.epoch = max(self.epoch, epoch)
        await self._write(lambda connection: _put(connection, epoch=self.epoch))

    async def see(self, at_ns: int) -> None:
        """The server knows what happened in the runtime until then."""
        await self._write(lambda connection: _put(connection, seen_ns=at_ns))
        self.seen_ns = at_ns

    async def acts(self, since_ns: int) -> list[Act]:
        """What commands did since then, in nanoseconds since 1970."""
        # A receipt comes after its end; each half has its index.
        sql = (
            "SELECT envelope, executing_at, ended_at FROM commands "
            "WHERE receipted_at IS NULL AND executing_at IS NOT NULL AND (ended_at IS NULL OR ended_at >= :since) "
            "UNION ALL SELECT envelope, executing_at, ended_at FROM commands "
            "WHERE receipted_at IS NOT NULL AND receipted_at >= :since AND ended_at >= :since "
            "AND executing_at IS NOT NULL"
        )
        since = {"since": since_ns // 1000}
        rows = await self._disk.write(lambda connection: connection.execute(sql, since).fetchall())
        found = ((Envelope.FromString(data), begun_at, ended_at) for data, begun_at, ended_at in rows)
        return [Act(envelope.container, envelope.verb, *times) for envelope, *times in found]

    async def purge(self) -> None:
        """Forget what got its receipt more than 7 days ago, and remember until when that was issued."""
        until = _now_us() - KEEP_US

        def purge(connection: sqlite3.Connection) -> None:
            sql = "SELECT max(issued_at) FROM commands WHERE receipted_at < ?"
            (issued_at,) = connection.execute(sql, (until,)).fetchone()
            if issued_at is not None:
                self._forgotten_until = max(self._forgotten_until, issued_at)
                _put(connection, forgotten_until=self._forgotten_until)
                connection.execute("DELETE FROM commands WHERE receipted_at < ?", (until,))

        await self._write(purge)

    async def forget_log(self) -> View | None:
        """Forget the pinned log, so that the next one that the server shows is believed; what was known is kept as
        evidence, and returned."""
        view = self.view
        if view is not None:
            await self.refuse("log", "", f"forgotten by hand: {view.log_key}", b"")
            sql = "DELETE FROM meta WHERE key IN ('log_key', 'checkpoint')"
            await self._write(lambda connection: connection.execute(sql))
            self.view = None
        return view

    async def _write(self, work: Callable[[sqlite3.Connection], Answer], view: View | None = None) -> Answer:
        """Run it in one transaction, with the receipts that wait and what was seen of the log; committed and synced
        when this returns."""
        receipts, self._receipts = self._receipts, []

        def transact(connection: sqlite3.Connection) -> Answer:
            answer = work(connection)
            _put_receipts(connection, receipts)
            if view is not None:
                _put(connection, log_key=str(view.log_key), checkpoint=view.checkpoint)
            return answer

        def see() -> None:
            self.view = view or self.view

        try:
            return await self._disk.write(transact, see)
        except BaseException:
            self._receipts = receipts + self._receipts
            raise

    def _open(self, connection: sqlite3.Connection) -> None:
        self._build(connection)
        meta: dict[str, Any] = dict(connection.execute("SELECT key, value FROM meta"))
        self.id, self.epoch, self.owner = meta["journal_id"], meta["epoch"], meta.get("owner", "")
        self._forgotten_until = meta.get("forgotten_until", -1)
        self.seen_ns = meta.get("seen_ns")
        if meta.get("checkpoint") is not None:
            try:
                key = note.parse_key(meta["log_key"])
                self.view = View(key, meta["checkpoint"], note.open_checkpoint(meta["checkpoint"], key))
            except note.InvalidNote as error:
                raise JournalError(
                    f"the journal in {self.folder} is damaged, its checkpoint does not hold: {error}"
                ) from None

    def _build(self, connection: sqlite3.Connection) -> None:
        """Make the tables, or bring those of an older agent up to date; a crash in here leaves what was before."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise JournalError(
                f"the journal in {self.folder} has version {version}, this agent knows {SCHEMA_VERSION}: "
                "update the agent, or give it a new --data folder"
            )
        steps = [f"{SCHEMA} INSERT INTO meta VALUES ('journal_id', '{uuid.uuid4()}'), ('epoch', 0);"]
        if version > 0:
            steps = [UPGRADES[each] for each in range(version, SCHEMA_VERSION)]
            connection.create_function("issued_at_of", 1, lambda data: issued_at_of(Envelope.FromString(data)))
            connection.create_function("frame_of", 1, _frame_of)
        if version < SCHEMA_VERSION:
            connection.executescript(f"BEGIN; {''.join(steps)} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


SELECT_ENTRY = "SELECT envelope, stage, before, result, executing_at, handle FROM commands"


def _entry(row: tuple[bytes, str, bytes | None, bytes | None, int | None, str | None]) -> Entry:
    envelope, stage, before, result, executing_at, handle = row
    return Entry(
        Envelope.FromString(envelope),
        stage,
        Container.FromString(before) if before is not None else None,
        Result.FromString(result) if result is not None else None,
        executing_at,
        handle or "",
    )


def _put_receipts(connection: sqlite3.Connection, receipts: list[tuple[int, str]]) -> None:
    connection.executemany("UPDATE commands SET receipted_at = ? WHERE id = ?", receipts)


def _begin(connection: sqlite3.Connection, command: str, start: Start) -> None:
    data = start.before.SerializeToString() if start.before is not None else None
    connection.execute(
        "UPDATE commands SET stage = 'executing', before = ?, executing_at = ? WHERE id = ?",
        (data, start.at_ns // 1000, command),
    )


def issued_at_of(envelope: Envelope) -> int:
    """When the server recorded it, in microseconds since 1970; the log says the same."""
    return envelope.issued_at.seconds * 1_000_000 + envelope.issued_at.nanos // 1000


def _put(connection: sqlite3.Connection, **meta: Any) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))


def _frame_of(envelope: bytes) -> bytes:
    return ConnectResponse(dispatch=Dispatch(envelope=envelope)).SerializeToString()


def _now_us() -> int:
    return time.time_ns() // 1000
