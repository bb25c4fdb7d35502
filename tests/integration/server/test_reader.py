"""Reads of the database: of one state, without effect, and never for long."""

import asyncio
import threading
from collections.abc import AsyncIterator

import grpc
import pytest
import sqlalchemy as sa

from lading.v1 import agents_pb2
from lading_server import errors
from lading_server.event import Outcome
from lading_server.settings import Settings
from lading_server.store import database, reader
from lading_server.store.reader import Reader
from lading_server.store.schema import organizations
from tests.integration.server.conftest import own_limits
from tests.integration.server.ledgers import prompt
from tests.integration.server.running import running
from tests.postgres import Cluster

pytestmark = pytest.mark.usefixtures("patient")
FOREVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[sa.Engine]:
    made = database.open_engine(database_url)
    database.migrate(made)
    yield made
    made.dispose()


def names(connection: sa.Connection) -> list[str]:
    return list(connection.scalars(sa.select(organizations.c.name)))


def insert(connection: sa.Connection, name: str) -> None:
    connection.execute(sa.insert(organizations).values(name=name, created_at=1))


async def test_a_read_leaves_nothing_behind(engine: sa.Engine) -> None:
    reading = Reader(engine)
    if engine.dialect.name == "postgresql":
        with pytest.raises((errors.StoreUnavailable, sa.exc.DBAPIError)):
            await reading.read(insert, "acme")
    else:
        await reading.read(insert, "acme")
    assert await reading.read(names) == []
    reading.close()


async def test_a_read_sees_one_state(engine: sa.Engine) -> None:
    def twice(connection: sa.Connection) -> tuple[list[str], list[str]]:
        before = names(connection)
        with engine.connect().execution_options(lading_writes=True) as other, other.begin():
            insert(other, "meanwhile")
        return before, names(connection)

    reading = Reader(engine)
    assert await reading.read(twice) == ([], [])
    assert await reading.read(names) == ["meanwhile"]
    reading.close()


async def test_a_read_that_takes_too_long_is_given_up_and_frees_its_thread(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forever(connection: sa.Connection) -> object:
        return connection.exec_driver_sql(FOREVER).scalar()

    monkeypatch.setattr(reader, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(reader, "_SETTINGS", "SET LOCAL statement_timeout = 200")
    reading = Reader(engine)
    answers = await asyncio.gather(*(reading.read(forever) for _ in range(20)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {errors.StoreUnavailable}
    monkeypatch.setattr(reader, "ANSWER_SECONDS", 30)
    together = threading.Barrier(database.READERS_MAX)
    await asyncio.gather(*(reading.read(lambda _: together.wait()) for _ in range(database.READERS_MAX)))
    reading.close()


async def test_a_read_that_is_given_up_before_its_statement_begins_frees_its_thread(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_SETTINGS", "SET LOCAL statement_timeout = 200")
    reading = Reader(engine)
    given_up, ready = threading.Event(), threading.Event()

    def late(connection: sa.Connection) -> object:
        ready.set()
        given_up.wait()
        return connection.exec_driver_sql(FOREVER).scalar()

    task = asyncio.create_task(reading.read(late))
    await asyncio.to_thread(ready.wait)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    given_up.set()
    await asyncio.to_thread(reading.close)


async def test_an_error_of_the_function_is_the_callers(engine: sa.Engine) -> None:
    def fail(_connection: sa.Connection) -> None:
        raise errors.NotFound

    reading = Reader(engine)
    with pytest.raises(errors.NotFound):
        await reading.read(fail)
    reading.close()


async def test_a_database_that_hangs_is_unavailable_within_two_seconds(own_postgres: Cluster) -> None:
    made = database.open_engine(own_postgres.fresh_database())
    await asyncio.to_thread(database.migrate, made)
    reading = Reader(made)
    assert await reading.read(names) == []
    own_postgres.pause()
    try:
        with own_limits(), prompt(2.0), pytest.raises(errors.StoreUnavailable):
            await reading.read(names)
    finally:
        own_postgres.resume()
    assert await reading.read(names) == []
    reading.close()
    made.dispose()


async def test_reads_go_on_after_a_restart_of_the_database(own_postgres: Cluster) -> None:
    made = database.open_engine(own_postgres.fresh_database())
    await asyncio.to_thread(database.migrate, made)
    reading = Reader(made)
    assert await reading.read(names) == []
    own_postgres.kill()
    with pytest.raises(errors.StoreUnavailable):
        await reading.read(names)
    await asyncio.to_thread(own_postgres.start)
    assert await reading.read(names) == []
    reading.close()
    made.dispose()


async def test_postgresql_plans_for_the_values_that_are_asked_for(postgres_url: str) -> None:
    made = database.open_engine(postgres_url)
    reading = Reader(made)
    shown = await reading.read(lambda connection: connection.exec_driver_sql("SHOW plan_cache_mode").scalar())
    assert shown == "force_custom_plan"
    reading.close()
    made.dispose()


async def test_call_that_is_refused_because_too_many_read_is_recorded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings) as server:
        with monkeypatch.context() as patch:
            patch.setattr(reader, "WAITING_MAX", 0)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await server.stubs.agents.ListAgents(agents_pb2.ListAgentsRequest(), metadata=server.me)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        recorded = await server.event(action="agent.list")
        assert (recorded.outcome, recorded.code) == (Outcome.FAILURE, errors.Code.RESOURCE_EXHAUSTED)
