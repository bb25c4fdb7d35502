import asyncio
import pathlib
import shutil
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lading.v1.agent_link_pb2 import ConnectResponse, Envelope, Result
from lading.v1.commands_pb2 import COMMAND_STATE_FAILED, COMMAND_STATE_SUCCEEDED, VERB_START
from lading.v1.containers_pb2 import Container
from lading_agent.disk import Disk
from lading_agent.errors import JournalError, Refused
from lading_agent.journal import KEEP_US, Journal, Start


@asynccontextmanager
async def open_journal(folder: pathlib.Path) -> AsyncIterator[Journal]:
    journal = Journal(folder)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


def start(container: str = "web") -> Envelope:
    return Envelope(command=str(uuid.uuid4()), agent="a", container=container, verb=VERB_START)


def succeeded(envelope: Envelope) -> Result:
    return Result(command=envelope.command, state=COMMAND_STATE_SUCCEEDED, evidence="executed")


async def test_every_stage_survives_a_new_start(tmp_path: pathlib.Path) -> None:
    received, executing, ended = start("one"), start("two"), start("three")
    async with open_journal(tmp_path) as journal:
        identity = journal.id
        for envelope in (received, executing, ended):
            assert await journal.receive(envelope) is None
        await journal.begin(executing.command, Start(Container(id="x", state="exited")))
        await journal.begin(ended.command, Start(None))
        await journal.end(succeeded(ended))
    async with open_journal(tmp_path) as journal:
        assert journal.id == identity
        assert [(entry.envelope, entry.stage) for entry in await journal.unfinished()] == [
            (received, "received"),
            (executing, "executing"),
        ]
        found = await journal.find(executing)
        assert found is not None
        assert found.before == Container(id="x", state="exited")
        held = {each.command: each for each in await journal.held()}
        assert held[ended.command].result == succeeded(ended)
        assert not held[received.command].HasField("result")


async def test_a_duplicate_changes_nothing_and_tells_what_is_known(tmp_path: pathlib.Path) -> None:
    async with open_journal(tmp_path) as journal:
        envelope = start()
        await journal.receive(envelope)
        await journal.end(succeeded(envelope))
        other = Envelope()
        other.CopyFrom(envelope)
        other.container = "another"
        known = await journal.receive(other)
        assert known is not None
        assert known.envelope == envelope
        assert known.result == succeeded(envelope)


async def test_the_first_end_stays(tmp_path: pathlib.Path) -> None:
    async with open_journal(tmp_path) as journal:
        envelope = start()
        await journal.receive(envelope)
        await journal.end(succeeded(envelope))
        await journal.end(Result(command=envelope.command, state=COMMAND_STATE_FAILED))
        (held,) = await journal.held()
        assert held.result.state == COMMAND_STATE_SUCCEEDED


async def test_a_receipt_takes_it_out_of_hello_but_not_out_of_memory(tmp_path: pathlib.Path) -> None:
    envelope = start()
    async with open_journal(tmp_path) as journal:
        await journal.receive(envelope)
        await journal.end(succeeded(envelope))
        journal.receipt(envelope.command)
        assert await journal.depth() == 0
        assert await journal.held() == []
    async with open_journal(tmp_path) as journal:
        assert await journal.held() == []
        known = await journal.receive(envelope)
        assert known is not None
        assert known.result == succeeded(envelope)


async def test_a_receipt_is_kept_when_the_journal_closes(tmp_path: pathlib.Path) -> None:
    envelope = start()
    async with open_journal(tmp_path) as journal:
        await journal.receive(envelope)
        await journal.end(succeeded(envelope))
        journal.receipt(envelope.command)
    async with open_journal(tmp_path) as journal:
        assert await journal.held() == []


async def test_purge_forgets_only_what_got_its_receipt_seven_days_ago(tmp_path: pathlib.Path) -> None:
    old, fresh, held = start(), start(), start()
    async with open_journal(tmp_path) as journal:
        for envelope in (old, fresh, held):
            await journal.receive(envelope)
            await journal.end(succeeded(envelope))
        journal.receipt(old.command)
        journal.receipt(fresh.command)
        await journal.purge()
        with sqlite3.connect(tmp_path / "journal.db") as beside:
            beside.execute("UPDATE commands SET receipted_at = receipted_at - ? WHERE id = ?", (KEEP_US, old.command))
        beside.close()
        await journal.purge()
        assert await journal.find(old) is None
        assert await journal.find(fresh) is not None
        assert await journal.find(held) is not None


async def test_a_replay_of_what_was_forgotten_is_refused_even_after_a_new_start(tmp_path: pathlib.Path) -> None:
    forgotten, older, newer = start(), start(), start()
    for at, envelope in ((20, forgotten), (10, older), (30, newer)):
        envelope.issued_at.FromMicroseconds(at)
    async with open_journal(tmp_path) as journal:
        await journal.receive(forgotten)
        await journal.end(succeeded(forgotten))
        journal.receipt(forgotten.command)
        await journal.purge()
        with sqlite3.connect(tmp_path / "journal.db") as beside:
            beside.execute("UPDATE commands SET receipted_at = 1")
        beside.close()
        assert await journal.receive(forgotten) is not None
        await journal.purge()
        with pytest.raises(Refused, match="a replay"):
            await journal.receive(forgotten)
    async with open_journal(tmp_path) as journal:
        for envelope in (forgotten, older):
            with pytest.raises(Refused, match="a replay"):
                await journal.receive(envelope)
        assert await journal.receive(newer) is None
        assert await journal.depth() == 1


async def test_evidence_is_bounded_by_kind_and_the_newest_stays(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lading_agent.journal.REFUSALS_MAX", 3)
    monkeypatch.setattr("lading_agent.journal.FRAME_BYTES_MAX", 10)
    async with open_journal(tmp_path) as journal:
        await journal.refuse("log", "", "the first", bytes(100))
        for number in range(8):
            await journal.refuse("command", "c", str(number), b"frame")
        rows = await journal._write(lambda each: each.execute("SELECT reason, length(frame) FROM refusals").fetchall())
    assert rows == [("the first", 10), ("5", 5), ("6", 5), ("7", 5)]


BEFORE = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE commands (
    id TEXT PRIMARY KEY, envelope BLOB NOT NULL, stage TEXT NOT NULL, before BLOB, result BLOB,
    received_at INTEGER NOT NULL, executing_at INTEGER, ended_at INTEGER, receipted_at INTEGER
);
CREATE TABLE refusals (command TEXT NOT NULL, envelope BLOB NOT NULL, reason TEXT NOT NULL, at INTEGER NOT NULL);
INSERT INTO meta VALUES ('journal_id', 'the-one'), ('epoch', 4);
PRAGMA user_version = 1;
"""


async def test_a_journal_from_before_the_log_goes_on(tmp_path: pathlib.Path) -> None:
    done, refused = start(), start()
    done.issued_at.FromMicroseconds(1_700_000_000_000_000)
    with sqlite3.connect(tmp_path / "journal.db") as beside:
        beside.executescript(BEFORE)
        row = (done.command, done.SerializeToString(), succeeded(done).SerializeToString())
        beside.execute("INSERT INTO commands VALUES (?, ?, 'ended', NULL, ?, 1, 1, 1, 1)", row)
        beside.execute("INSERT INTO refusals VALUES (?, ?, 'no', 5)", (refused.command, refused.SerializeToString()))
    beside.close()
    for _ in range(2):
        async with open_journal(tmp_path) as journal:
            assert (journal.id, journal.epoch, journal.view) == ("the-one", 4, None)
            known = await journal.find(done)
            assert known is not None
            assert known.result == succeeded(done)
            rows = await journal._write(lambda each: each.execute("SELECT reason, frame FROM refusals").fetchall())
            ((reason, frame),) = rows
            assert reason == "no"
            assert Envelope.FromString(ConnectResponse.FromString(frame).dispatch.envelope) == refused
    async with open_journal(tmp_path) as journal:
        await journal.purge()
        with pytest.raises(Refused, match="a replay"):
            await journal.receive(done)


async def test_the_highest_epoch_survives(tmp_path: pathlib.Path) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.raise_epoch(7)
        await journal.raise_epoch(5)
        assert journal.epoch == 7
    async with open_journal(tmp_path) as journal:
        assert journal.epoch == 7


async def test_two_agents_cannot_share_a_folder(tmp_path: pathlib.Path) -> None:
    async with open_journal(tmp_path):
        other = Journal(tmp_path)
        with pytest.raises(JournalError, match="another agent"):
            await other.open()
        await other.close()


async def test_a_journal_of_a_newer_agent_is_refused(tmp_path: pathlib.Path) -> None:
    async with open_journal(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "journal.db") as beside:
        beside.execute("PRAGMA user_version = 99")
    beside.close()
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match="update the agent"):
        await journal.open()
    await journal.close()


async def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: pathlib.Path) -> None:
    async with open_journal(tmp_path) as journal:
        kept = start()
        await journal.receive(kept)
        journal.receipt(kept.command)
        connection = journal._disk.connection
        assert connection is not None
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        large = start("x" * 200_000)
        with pytest.raises(JournalError, match="full"):
            await journal.receive(large)
        connection.execute("PRAGMA max_page_count = 1000000")
        assert await journal.find(large) is None
        assert await journal.depth() == 0


async def test_the_journal_is_synced_at_each_commit(tmp_path: pathlib.Path) -> None:
    async with open_journal(tmp_path) as journal:
        assert journal._disk.connection is not None
        assert journal._disk.connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert journal._disk.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_write_that_fails_does_not_fail_its_neighbours(tmp_path: pathlib.Path) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        raise ZeroDivisionError("oops")

    disk = Disk(tmp_path)
    await disk.open(lambda connection: None)
    writes = (disk.write(lambda connection: 1), disk.write(fail), disk.write(lambda connection: 2))
    first, bad, good = await asyncio.gather(*writes, return_exceptions=True)
    await disk.close(lambda connection: None)
    assert (first, good) == (1, 2)
    assert isinstance(bad, ZeroDivisionError)


async def test_a_folder_that_is_gone_keeps_nobody_waiting(tmp_path: pathlib.Path) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    disk = Disk(tmp_path / "data")
    await disk.open(lambda connection: None)
    shutil.rmtree(disk.folder)
    with pytest.raises(JournalError, match="cannot be written"):
        await asyncio.wait_for(disk.write(fail), 10)
    await disk.close(lambda connection: None)
