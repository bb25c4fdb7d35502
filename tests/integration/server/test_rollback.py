"""A database that went back is refused: at the start, while a server runs, and until somebody says why it may go on."""

import asyncio
import pathlib
import sqlite3
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from grpc.aio import AioRpcError

from lading.transparency import note
from lading.v1 import access_pb2, audit_log_pb2
from lading_server import bootstrap, cli, errors, signer
from lading_server.event import SYSTEM
from lading_server.settings import Settings
from tests.integration.server.backups import Backup
from tests.integration.server.ledgers import book, event
from tests.integration.server.running import ORGANIZATION, Running, info, read_events, running
from tests.trees import check_trees


async def checkpoint(server: Running) -> Any:
    return await server.stubs.audit_log.GetCheckpoint(audit_log_pb2.GetCheckpointRequest(), metadata=server.me)


async def whoami(server: Running) -> Any:
    return await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=server.me)


async def gone_back(settings: Settings, folder: pathlib.Path) -> tuple[int, int]:
    """A database that was restored after a server had signed more: size of the log acme now, and as signed."""
    async with running(settings) as server:
        await whoami(server)
    backup = Backup(settings, folder)
    async with running(settings) as server:
        for _ in range(5):
            await whoami(server)
        await checkpoint(server)
    signed = len(read_events(settings))
    backup.restore()
    return len(read_events(settings)), signed


async def accept(settings: Settings, organization: str, reason: str = "disk died") -> tuple[int, int]:
    return await asyncio.to_thread(bootstrap.accept_rollback, settings, organization, reason)


async def command(*arguments: str) -> Any:
    """How `lading server` with these arguments ends."""
    return await asyncio.to_thread(CliRunner().invoke, cli.server, arguments)


async def test_database_that_went_back_is_refused_at_the_start(any_settings: Settings, tmp_path: pathlib.Path) -> None:
    now, signed = await gone_back(any_settings, tmp_path)
    with pytest.raises(signer.RolledBack) as refusal:
        await Running(any_settings).__aenter__()
    assert f"the log of acme has {now} entries and does not extend the {signed} that were signed" in str(refusal.value)
    assert "the log of system has" in refusal.value.message
    assert "lading server accept-rollback --org acme --reason" in refusal.value.message
    assert len(read_events(any_settings)) == now


async def test_command_says_so_and_serves_nothing(settings: Settings, tmp_path: pathlib.Path) -> None:
    await gone_back(settings, tmp_path)
    port_file = tmp_path / "port"
    where = ("--data", str(settings.data), "--listen", "127.0.0.1:0", "--port-file", str(port_file))
    done = await command("run", *where)
    assert done.exit_code == 1
    assert "accept-rollback --org acme" in done.stderr
    assert not port_file.exists()


async def test_running_server_refuses_the_log_and_goes_on_with_others(
    any_settings: Settings, tmp_path: pathlib.Path
) -> None:
    async with running(any_settings) as server:
        backup = Backup(any_settings, tmp_path)
        await whoami(server)
        await checkpoint(server)
        backup.restore()
        with pytest.raises(AioRpcError) as refusal:
            await whoami(server)
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
        assert info(refusal.value).reason == "ROLLED_BACK"
        assert info(refusal.value).metadata["organization"] == ORGANIZATION
        with pytest.raises(AioRpcError):
            await checkpoint(server)
        # Nothing of the other logs was lost: their last ends are still there.
        await server.server._ledger.record([event("globex")])
        assert len(read_events(any_settings, "globex")) == 1
    assert [one.action for one in read_events(any_settings, SYSTEM)][-1] == "server.stop"


async def test_batch_over_two_logs_commits_what_is_of_the_other_one(
    any_settings: Settings, tmp_path: pathlib.Path
) -> None:
    async with running(any_settings) as server:
        backup = Backup(any_settings, tmp_path)
        await whoami(server)
        await checkpoint(server)
    backup.restore()
    async with book(any_settings) as made:
        answers = await made.together(
            made.record(event()),
            made.record(event("globex")),
            made.record(event(), event("globex")),
            made.record(event()),
        )
    assert [type(answer) for answer in answers] == [signer.RolledBack, list, signer.RolledBack, signer.RolledBack]
    assert [len(read_events(any_settings, name, action="task.update")) for name in ("acme", "globex")] == [0, 1]


async def test_accepted_rollback_goes_on_and_is_recorded_in_both_logs(
    any_settings: Settings, tmp_path: pathlib.Path
) -> None:
    now, signed = await gone_back(any_settings, tmp_path)
    with pytest.raises(signer.RolledBack, match="system"):
        await accept(any_settings, ORGANIZATION)
    await accept(any_settings, SYSTEM)
    assert await accept(any_settings, ORGANIZATION, "backup of 03:00") == (now, signed)
    (mine,) = read_events(any_settings, action="log.rollback.accept")
    _, copied = read_events(any_settings, SYSTEM, action="log.rollback.accept")
    assert (mine.index, mine.reason, copied.parent) == (now, "backup of 03:00", mine.operation)
    (patch,) = mine.details["diff"]
    assert (patch["was"]["size"], patch["value"]["size"]) == (signed, now)
    assert copied.details["diff"] == mine.details["diff"]
    async with running(any_settings) as server:
        await whoami(server)
        answer = await checkpoint(server)
        assert note.open_checkpoint(answer.checkpoint, note.parse_key(answer.log_key)).size == answer.size
    check_trees(any_settings.database_url)


async def test_command_says_once_what_to_accept_first(settings: Settings, tmp_path: pathlib.Path) -> None:
    await gone_back(settings, tmp_path)
    where = ("accept-rollback", "--data", str(settings.data), "--reason", "disk died")
    done = await command(*where, "--org", "acme")
    assert done.exit_code == 1
    (first, *commands) = done.stderr.splitlines()
    assert "the log of system went back too" in first
    assert [line.strip() for line in commands] == [
        "lading server accept-rollback --org system --reason TEXT",
        "lading server accept-rollback --org acme --reason TEXT",
    ]
    for organization in (SYSTEM, "acme"):
        done = await command(*where, "--org", organization)
        assert done.exit_code == 0, done.stderr
    assert "lading audit forget-log" in done.stderr


async def test_accepting_is_for_what_went_back_alone(any_settings: Settings) -> None:
    async with running(any_settings) as server:
        await checkpoint(server)
    for organization in (ORGANIZATION, "nowhere"):
        with pytest.raises(bootstrap.NothingToAccept):
            await accept(any_settings, organization)
    assert read_events(any_settings, action="log.rollback.accept") == []


class Crash(BaseException):
    """The process ends here."""


async def test_crash_before_the_state_is_written_leaves_the_refusal(
    any_settings: Settings, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gone_back(any_settings, tmp_path)
    await accept(any_settings, SYSTEM)

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(signer.Signer, "keep", crash)
        with pytest.raises(Crash):
            await accept(any_settings, ORGANIZATION)
    with pytest.raises(signer.RolledBack):
        await Running(any_settings).__aenter__()
    await accept(any_settings, ORGANIZATION)
    async with running(any_settings):
        pass


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE logs SET edge = zeroblob(length(edge)) WHERE organization = 'acme'",
        "UPDATE logs SET size = size - 1 WHERE organization = 'acme'",
        "UPDATE logs SET edge = x'' WHERE organization = 'acme'",
        "DELETE FROM logs WHERE organization = 'acme'",
    ],
)
async def test_head_that_was_changed_is_refused(settings: Settings, change: str) -> None:
    async with running(settings) as server:
        await checkpoint(server)
        await server.stop(0)
        server.write(change)
    with pytest.raises(signer.RolledBack, match="the log of acme"):
        await Running(settings).__aenter__()
    if "DELETE" not in change:
        with pytest.raises(errors.Damaged, match="the log of acme cannot be accepted"):
            await accept(settings, ORGANIZATION)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("UPDATE tiles SET hashes = zeroblob(8192)", "tile 0 of level 0"),
        ("UPDATE tiles SET hashes = zeroblob(32) WHERE level = 1", "tile 0 of level 1"),
        ("INSERT INTO tiles VALUES ('acme', 0, 1, x'')", "tiles of entries that it does not have"),
        ("UPDATE events SET entry = x'7b7d' WHERE organization = 'acme' AND \"index\" = 2", "tile 0 of level 0"),
        ("UPDATE events SET entry = x'7b7d' WHERE organization = 'acme' AND \"index\" = 300", "root of its head"),
        ("DELETE FROM events WHERE organization = 'acme' AND \"index\" = 2", "some are missing"),
        ("UPDATE logs SET size = size - 1 WHERE organization = 'acme'", "are not the edge|root of its head"),
    ],
)
async def test_log_that_is_not_whole_cannot_be_accepted(
    settings: Settings, tmp_path: pathlib.Path, change: str, what: str
) -> None:
    async with book(settings) as made:
        await made.record(*(event() for _ in range(300)))
    now, _signed = await gone_back(settings, tmp_path)
    assert now > 300
    await accept(settings, SYSTEM)
    with sqlite3.connect(settings.data / "lading.db") as database:
        database.execute(change)
    database.close()
    with pytest.raises(errors.Damaged, match=what):
        await accept(settings, ORGANIZATION)


async def test_state_of_an_empty_log_with_a_root_is_refused(settings: Settings) -> None:
    async with running(settings) as server:
        await checkpoint(server)
    state = settings.data / signer.STATE_FOLDER / "acme.json"
    signed = signer.read_state(state.read_text())
    state.write_bytes(signer.slot_of(signer.Signed(0, signed.root)))
    with pytest.raises(signer.RolledBack, match="the log of acme"):
        await Running(settings).__aenter__()


async def test_state_that_cannot_be_read_is_refused(settings: Settings) -> None:
    async with running(settings) as server:
        await checkpoint(server)
    (settings.data / signer.STATE_FOLDER / "acme.json").write_text("{")
    with pytest.raises(signer.RolledBack, match=r"acme\.json cannot be read"):
        await Running(settings).__aenter__()


async def test_stop_signs_what_grew_though_nobody_asked_for_it(any_settings: Settings, tmp_path: pathlib.Path) -> None:
    backup = Backup(any_settings, tmp_path)
    async with running(any_settings) as server:
        await whoami(server)
    backup.restore()
    with pytest.raises(signer.RolledBack, match="the log of acme"):
        await Running(any_settings).__aenter__()


async def test_command_needs_a_reason(settings: Settings) -> None:
    where = ("accept-rollback", "--data", str(settings.data), "--org", "acme")
    for reason in ("", "  ", "x" * 1001):
        assert (await command(*where, "--reason", reason)).exit_code == 2
    done = await command(*where, "--reason", "none")
    assert (done.exit_code, "nothing to accept" in done.stderr) == (1, True)
