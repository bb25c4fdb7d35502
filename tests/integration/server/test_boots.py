"""The log says when a server began, when it stopped, and what it left open when it was killed."""

import asyncio
from typing import Any

import pytest

from lading.v1 import access_pb2
from lading_server import boots
from lading_server.clock import new_id, now
from lading_server.event import SYSTEM, Outcome, Stage
from lading_server.settings import Settings
from lading_server.store import boots as store
from lading_server.store import commands, database
from tests.integration.server.ledgers import book, event
from tests.integration.server.running import ORGANIZATION, Recorded, Running, read_events, running
from tests.process import wait_until
from tests.trees import check_trees

START, STOP, CRASH = "server.start", "server.stop", "server.crash"


def lives(settings: Settings, *actions: str) -> list[Recorded]:
    wanted = actions or (START, STOP, CRASH)
    return [one for one in read_events(settings, SYSTEM) if one.action in wanted]


async def test_start_and_clean_stop_are_recorded(any_settings: Settings) -> None:
    async with running(any_settings) as server:
        await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=server.me)
        (start,) = lives(any_settings)
    start, stop = lives(any_settings)
    assert (start.action, start.stage, start.sequence) == (START, Stage.STARTED, 1)
    assert (stop.action, stop.stage, stop.outcome) == (STOP, Stage.COMPLETED, Outcome.SUCCESS)
    assert start.operation == stop.operation == start.boot_id == stop.boot_id
    assert stop.details["data"]["version"] == boots.VERSION
    assert stop.details["data"]["boot_id"] == stop.boot_id
    assert start.superseded_by == stop.index


async def test_stop_names_the_last_number_of_each_log_and_comes_last(any_settings: Settings) -> None:
    async with running(any_settings) as server:
        for _ in range(5):
            await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=server.me)
    (stop,) = lives(any_settings, STOP)
    mine = {
        organization: [one for one in read_events(any_settings, organization) if one.boot_id == stop.boot_id]
        for organization in (SYSTEM, ORGANIZATION)
    }
    assert stop.details["data"]["sequences"] == {name: found[-1].sequence for name, found in mine.items()}
    assert mine[SYSTEM][-1] == stop
    check_trees(any_settings.database_url)


async def die(settings: Settings, *, streams: int = 3, seen: int = 0) -> str:
    """A process that was killed with this many open streams, and one that had ended; its boot id."""
    async with book(settings) as dead:
        boot = boots.Boot(dead.ledger, None, alone=True)  # type: ignore[arg-type]
        boot._bury = nothing  # type: ignore[method-assign]
        await boot.begin()
        details = {"method": "/lading.v1.AuditLog/TailEvents", "peer": "ipv4:1"}
        open_streams = [
            event(stage=Stage.STARTED, outcome=Outcome.PENDING, action="audit.tail", details=details)
            for _ in range(streams)
        ]
        ended = event(stage=Stage.STARTED, outcome=Outcome.PENDING, action="audit.tail")
        await dead.record(*open_streams, ended)
        await dead.record(event(operation=ended.operation, follows=True, action="audit.tail"))
        command = event(stage=Stage.STARTED, outcome=Outcome.PENDING, action="container.start")
        await dead.commit(lambda transaction: add_command(transaction.connection, command.operation))
        await dead.record(command)
        if seen:
            await dead.commit(lambda unit: store.renew(unit.connection, dead.ledger.boot_id, seen))
    return dead.ledger.boot_id


async def nothing() -> None:
    pass


def add_command(connection: Any, id: str) -> None:
    texts = ("agent", "container", "action", "actor", "parent", "container_id", "request_id", "reason", "actor_email")
    more = ("source", "correlation", "error", "evidence")
    numbers = ("verb", "epoch", "actor_type", "created_at", "deliver_by", "execute_within", "code", "event_index")
    blobs = ("envelope", "arguments_shown", "fingerprint", "precondition")
    values = {**dict.fromkeys((*texts, *more), ""), **dict.fromkeys(numbers, 1), **dict.fromkeys(blobs, b"")}
    commands.insert(connection, {"id": id, "organization": "acme", "state": 3, **values, "deliver_by": 2**60})


async def test_crash_is_recorded_once_and_its_open_streams_are_given_up(
    any_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boots, "DEAD_SECONDS", 0.0)
    monkeypatch.setattr(boots, "STREAMS_MAX", 2)
    boot_id = await die(any_settings, streams=5)
    for _ in range(2):
        async with running(any_settings) as server:
            (crash,) = lives(any_settings, CRASH)
            alive = server.server._ledger.boot_id
    assert (crash.operation, crash.stage, crash.outcome) == (boot_id, Stage.ABANDONED, Outcome.UNKNOWN)
    assert crash.boot_id != boot_id != alive
    last = {name: len(read_events(any_settings, name, boot_id=boot_id)) for name in ("acme", SYSTEM)}
    assert crash.details["data"] == {"boot_id": boot_id, "sequences": last}
    events = read_events(any_settings, action="audit.tail")
    given_up = [one for one in events if one.stage is Stage.ABANDONED]
    assert len(given_up) == 5
    assert {(one.outcome, one.code, one.details["method"]) for one in given_up} == {
        (Outcome.UNKNOWN, 2, "/lading.v1.AuditLog/TailEvents")
    }
    open_ones = {one.operation for one in events if one.stage is Stage.STARTED and one.superseded_by is None}
    assert open_ones == set()
    (command,) = read_events(any_settings, action="container.start")
    assert command.superseded_by is None, "commands are settled by evidence"
    check_trees(any_settings.database_url)


async def test_replica_that_was_seen_lately_is_not_given_up(
    settings_on_postgresql: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id = await die(settings_on_postgresql)
    async with running(settings_on_postgresql):
        assert lives(settings_on_postgresql, CRASH) == []
    await die(settings_on_postgresql, streams=0, seen=now() - int(2 * boots.DEAD_SECONDS * 1_000_000))
    monkeypatch.setattr(boots, "SEEN_SECONDS", 0.05)
    async with running(settings_on_postgresql) as server:
        (crash,) = lives(settings_on_postgresql, CRASH)
        assert crash.operation != boot_id
        mine = server.server._ledger.boot_id

        def seen() -> Any:
            (row,) = server.rows(f"SELECT began_at, seen_at FROM boots WHERE boot_id = '{mine}'")
            return row[1] > row[0]

        await asyncio.to_thread(wait_until, seen, "it says that it lives")


async def test_two_replicas_record_one_crash(settings_on_postgresql: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boots, "DEAD_SECONDS", 45.0)
    await die(settings_on_postgresql, streams=20, seen=1)
    async with running(settings_on_postgresql), running(settings_on_postgresql):
        pass
    assert len(lives(settings_on_postgresql, CRASH)) == 1
    given_up = [one for one in read_events(settings_on_postgresql) if one.stage is Stage.ABANDONED]
    assert len({one.operation for one in given_up}) == len(given_up) == 20


async def test_stream_of_a_paused_server_may_still_end(any_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken for dead: what is UNKNOWN is resolved by its end."""
    monkeypatch.setattr(boots, "DEAD_SECONDS", 0.0)
    await die(any_settings, streams=1)
    async with running(any_settings):
        pass
    (given_up,) = [one for one in read_events(any_settings) if one.stage is Stage.ABANDONED]
    async with book(any_settings) as late:
        await late.record(event(operation=given_up.operation, follows=True, action="audit.tail"))
    (given_up,) = read_events(any_settings, id=given_up.id)
    assert given_up.superseded_by is not None


async def test_operations_of_a_killed_server_are_found_by_an_index(any_settings: Settings) -> None:
    engine = database.open_engine(any_settings.database_url)
    with engine.connect() as connection:
        seen: list[str] = []
        original = connection.execute

        def spy(statement: Any, *rest: Any, **more: Any) -> Any:
            seen.append(str(statement.compile(engine, compile_kwargs={"literal_binds": True})))
            return original(statement, *rest, **more)

        connection.execute = spy  # type: ignore[method-assign]
        store.list_open_streams(connection, new_id(), 10)
        connection.execute = original  # type: ignore[method-assign]
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
            plan = str(connection.exec_driver_sql("EXPLAIN " + seen[0]).all())
        else:
            plan = str(connection.exec_driver_sql("EXPLAIN QUERY PLAN " + seen[0]).all())
    engine.dispose()
    assert "events_open" in plan


async def test_server_that_cannot_begin_leaves_no_open_life(any_settings: Settings) -> None:
    async with running(any_settings) as server:
        taken = Settings(any_settings.data, server.address, any_settings.database)
        with pytest.raises(Exception, match="listen"):
            await Running(taken).__aenter__()
    assert len(lives(any_settings, START)) == 1


async def test_paused_process_that_was_taken_for_dead_says_that_it_is_back(
    settings_on_postgresql: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings_on_postgresql) as paused:
        mine = paused.server._ledger.boot_id
        monkeypatch.setattr(boots, "DEAD_SECONDS", 0.0)
        async with running(settings_on_postgresql):
            pass
        monkeypatch.setattr(boots, "DEAD_SECONDS", 45.0)
        own = boots.Boot(paused.ledger, paused.server._reader, alone=False)
        for _ in range(2):
            await own._look()
    found = [one.action for one in lives(settings_on_postgresql, START, CRASH, "server.resume", STOP)]
    assert [one for one in lives(settings_on_postgresql, CRASH) if one.operation == mine]
    assert found == [START, START, CRASH, STOP, "server.resume", STOP]
