"""What the ledger does when the database fails, hangs, or commits without saying so."""

import asyncio
import threading
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from lading_server import errors
from lading_server.ledger import ledger as ledger_module
from lading_server.ledger.transaction import Transaction
from lading_server.settings import Settings
from lading_server.store import schema
from tests.integration.server.conftest import own_limits
from tests.integration.server.ledgers import Book, book, event, hang, locked, on_commit, prompt
from tests.integration.server.running import Recorded, read_events


def recorded(settings: Settings) -> list[Recorded]:
    return read_events(settings, action="task.update")


def begin_organization(transaction: Transaction, name: str) -> None:
    transaction.connection.execute(sa.insert(schema.organizations).values(name=name, created_at=0))
    transaction.append(event(reason=name))


def organizations(made: Book) -> set[str]:
    with made.engine.connect() as connection:
        return set(connection.scalars(sa.select(schema.organizations.c.name))) - {"system", "acme", "globex"}


def lost(statement: str) -> sa.exc.OperationalError:
    return sa.exc.OperationalError(statement, None, Exception("the connection is gone"))


async def test_commit_whose_answer_was_lost_is_found(any_settings: Settings) -> None:
    def commit_and_lose(commit: Any) -> None:
        commit()
        raise lost("COMMIT")

    async with book(any_settings) as made:
        await made.record(event())
        on_commit(made, commit_and_lose, number=2)
        found = await made.together(
            *(made.record(event()) for _ in range(3)), made.commit(lambda tx: begin_organization(tx, "umbrella"))
        )
        assert [type(one) for one in found] == [list, list, list, type(None)]
        assert await made.record(event()) == [8]
        assert organizations(made) == {"umbrella"}
    assert [one.sequence for one in recorded(any_settings)] == list(range(1, 7))


async def test_commit_that_did_not_happen_is_told_to_every_caller(any_settings: Settings) -> None:
    def lose(_commit: Any) -> None:
        raise lost("COMMIT")

    async with book(any_settings) as made:
        await made.record(event())
        on_commit(made, lose, number=2)
        found = await made.together(
            *(made.record(event()) for _ in range(3)), made.commit(lambda tx: begin_organization(tx, "umbrella"))
        )
        assert {type(one) for one in found} == {errors.LedgerUnavailable}
        assert organizations(made) == set()
        assert await made.record(event()) == [4], "and it goes on"
    assert [one.sequence for one in recorded(any_settings)] == [1, 2]


async def test_commit_that_is_found_only_after_the_outage_is_told_to_who_must_undo_it(any_settings: Settings) -> None:
    """COMMIT takes effect, its answer is lost, and so is the connection that would look it up."""
    away = True

    def commit_and_lose(commit: Any) -> None:
        commit()
        raise lost("COMMIT")

    async with book(any_settings) as made:
        await made.record(event())
        on_commit(made, commit_and_lose)

        def refuse(*_: object) -> None:
            if away:
                raise lost("connect")

        sa.event.listen(made.engine, "engine_connect", refuse)
        late: list[str] = []
        with pytest.raises(errors.LedgerUnavailable):
            await made.ledger.commit(
                ("acme",), lambda tx: begin_organization(tx, "umbrella") or "umbrella", late=late.append
            )
        with pytest.raises(errors.LedgerUnavailable):
            await made.record(event())
        assert late == []
        away = False
        await made.record(event())
        assert late == ["umbrella"]
    found = recorded(any_settings)
    assert [one.index for one in found] == [3, 4, 5]
    assert [one.sequence for one in found] == [1, 2, 3]


async def test_commit_that_the_database_is_still_at_is_waited_for(settings_on_postgresql: Settings) -> None:
    """COMMIT is on its way when its connection is lost, and takes effect while it is looked up."""
    async with book(settings_on_postgresql) as made:
        await made.record(event())
        held: list[Any] = []

        def lose(commit: Any) -> None:
            # What the pool would close stays open, as in the database.
            assert made.ledger._connection is not None
            connection = made.ledger._connection.connection
            held.append(connection.driver_connection)
            connection.detach()
            threading.Timer(0.3, held[0].commit).start()
            made.ledger._connection = None
            raise lost("COMMIT")

        on_commit(made, lose)
        assert await made.record(event()) == [4]
        held[0].close()
        assert await made.record(event()) == [5]
    assert [one.sequence for one in recorded(settings_on_postgresql)] == [1, 2, 3]


async def test_connection_killed_in_a_transaction_leaves_nothing_and_the_next_one_works(
    settings_on_postgresql: Settings,
) -> None:
    def die(transaction: Transaction) -> None:
        begin_organization(transaction, "umbrella")
        pid = transaction.connection.scalar(sa.text("SELECT pg_backend_pid()"))
        with psycopg.connect(settings_on_postgresql.database_url) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    async with book(settings_on_postgresql) as made:
        found = await made.together(made.record(event()), made.commit(die))
        assert {type(one) for one in found} == {errors.LedgerUnavailable}
        assert organizations(made) == set()
        assert await made.record(event()) == [3]
    assert [one.sequence for one in recorded(settings_on_postgresql)] == [1]


async def test_caller_of_a_database_that_hangs_is_told_within_two_seconds_and_nothing_happens(
    any_settings: Settings,
) -> None:
    async with book(any_settings) as made:
        await made.record(event())
        with locked(any_settings) as release:
            with own_limits():
                with prompt(2.0), pytest.raises(errors.LedgerUnavailable):
                    await made.commit(lambda tx: begin_organization(tx, "umbrella"))
                with pytest.raises(errors.LedgerUnavailable):
                    await made.record(event())
            release()
        while True:
            try:
                await made.record(event())
                break
            except errors.LedgerUnavailable:
                await asyncio.sleep(0.01)
        assert organizations(made) == set()
    assert len(recorded(any_settings)) == 2


async def test_caller_is_answered_although_its_doubt_is_cleared_before_the_loop_can_tell_it(
    any_settings: Settings,
) -> None:
    committing, leave, cleared = threading.Event(), threading.Event(), threading.Event()
    refused: list[object] = []

    def commit_and_lose(commit: Any) -> None:
        committing.set()
        assert leave.wait(30)
        commit()
        raise lost("COMMIT")

    def refuse_once(*_: object) -> None:
        if not refused:
            refused.append(1)
            raise lost("connect")

    async with book(any_settings) as made:
        await made.record(event())
        on_commit(made, commit_and_lose)
        sa.event.listen(made.engine, "engine_connect", refuse_once)
        late: list[str] = []
        first = made.ledger.commit(
            ("acme",), lambda tx: begin_organization(tx, "umbrella") or "umbrella", late=late.append
        )
        assert committing.wait(30)  # here and below the loop stands still: it has other things to do
        second = made.ledger.commit(("acme",), lambda _: cleared.set())
        leave.set()
        assert cleared.wait(30)
        with pytest.raises(errors.LedgerUnavailable):
            await asyncio.wait_for(first, 30)
        await second
        assert late == ["umbrella"]


async def test_unit_that_commits_after_its_caller_was_told_is_handed_to_who_must_undo_it(
    any_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = threading.Event()
    async with book(any_settings) as made:
        await made.record(event())
        on_commit(made, hang(leave, monkeypatch))
        late: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        with pytest.raises(errors.LedgerUnavailable):
            await made.ledger.commit(
                ("acme",), lambda tx: begin_organization(tx, "umbrella") or "umbrella", late=late.set_result
            )
        with pytest.raises(errors.LedgerUnavailable):
            await made.record(event())
        leave.set()
        assert await late == "umbrella"
        assert organizations(made) == {"umbrella"}
    assert [one.reason for one in recorded(any_settings)] == ["", "umbrella"]


async def test_unit_whose_caller_was_told_before_the_commit_is_taken_back(
    any_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = threading.Event()
    late: list[Any] = []

    def slow(transaction: Transaction) -> None:
        begin_organization(transaction, "umbrella")
        assert leave.wait(30)

    async with book(any_settings) as made:
        await made.commit(lambda _transaction: None)
        monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 0.2)
        with pytest.raises(errors.LedgerUnavailable):
            await made.ledger.commit(("acme",), slow, late=late.append)
        leave.set()
        await made.ledger.close()
        assert organizations(made) == set()
    assert (late, recorded(any_settings)) == ([], [])
