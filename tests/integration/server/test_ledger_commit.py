"""Group commit: units that come together commit together, and what fails, fails alone."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from google.rpc import error_details_pb2, status_pb2

from lading_server import errors
from lading_server.clock import new_id
from lading_server.event import Stage
from lading_server.interceptors.status import status_of
from lading_server.ledger import ledger as ledger_module
from lading_server.ledger import rows
from lading_server.ledger.transaction import Transaction
from lading_server.settings import Settings
from lading_server.store import agents, schema
from tests.integration.server.ledgers import Book, book, busy, event
from tests.integration.server.running import Recorded, read_events


def recorded(settings: Settings, organization: str = "acme") -> list[Recorded]:
    """What was recorded since the database was born."""
    return read_events(settings, organization, action="task.update")


def begin_agent(transaction: Transaction, name: str) -> None:
    agents.connect(
        transaction.connection,
        "acme",
        name,
        at=0,
        version="",
        runtime="",
        labels={},
        replica="",
        boot_id="",
        journal_id="",
        seen_epoch=0,
        lease_until=0,
    )


def agent_names(made: Book) -> set[str]:
    with made.engine.connect() as connection:
        return set(connection.scalars(sa.select(schema.agents.c.name)))


async def test_hundred_callers_share_one_commit(any_settings: Settings) -> None:
    async with book(any_settings) as made:
        await made.record(event())
        before = made.commits
        indexes = await made.together(*(made.record(event()) for _ in range(100)))
        assert made.commits == before + 2, "one for the unit that kept the ledger busy, one for all the others"
    assert sorted(index for (index,) in indexes) == list(range(4, 104))
    assert len(recorded(any_settings)) == 101


async def test_events_have_the_order_in_which_they_were_handed_in(any_settings: Settings) -> None:
    events = [event() for _ in range(50)]
    async with book(any_settings) as made:
        await made.together(*(made.record(one) for one in events))
    assert [one.id for one in recorded(any_settings)] == [one.id for one in events]


async def test_unit_that_raises_is_undone_alone(any_settings: Settings) -> None:
    def work(name: str, failure: Exception | None = None) -> Any:
        def apply(transaction: Transaction) -> str:
            begin_agent(transaction, name)
            transaction.append(event(reason=name))
            if failure is not None:
                raise failure
            return name

        return apply

    async with book(any_settings) as made:
        one, failed, other = await made.together(
            made.commit(work("one")),
            made.commit(work("failed", errors.FailedPrecondition("not now"))),
            made.commit(work("other")),
        )
        assert (one, str(failed), other) == ("one", "not now", "other")
        assert agent_names(made) == {"one", "other"}
        # From here on units have savepoints, for a while.
        failed, third = await made.together(
            made.commit(work("failed", errors.FailedPrecondition("not now"))), made.commit(work("third"))
        )
        assert (str(failed), third) == ("not now", "third")
        assert agent_names(made) == {"one", "other", "third"}
    assert [one.reason for one in recorded(any_settings)] == ["one", "other", "third"]


async def test_units_of_a_batch_have_savepoints_only_after_one_that_failed(
    any_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks: list[sa.Connection] = []
    mark = rows.mark

    def count(connection: sa.Connection) -> None:
        marks.append(connection)
        mark(connection)

    def refuse(_transaction: Transaction) -> None:
        raise errors.FailedPrecondition("not now")

    monkeypatch.setattr(rows, "mark", count)
    monkeypatch.setattr("lading_server.ledger.ledger.CAREFUL_BATCHES", 1)
    async with book(any_settings) as made:
        seen = []
        for failing in (False, True, False, False):
            units = [lambda _transaction: None, refuse if failing else lambda _transaction: None]
            await made.together(*(made.commit(unit) for unit in units))
            seen.append(len(marks))
            marks.clear()
    # The one that failed went again with them, and so did the next batch; then all is well again.
    assert seen == [0, 2, 2, 0]


ID = new_id()
POISON = {
    "id that is there": {"id": ID},
    "number that is too large": {"occurred_at": 2**70},
    "text that is none": {"actor": None},
}


@pytest.mark.parametrize("values", POISON.values(), ids=POISON)
async def test_row_that_the_database_refuses_fails_alone(any_settings: Settings, values: dict[str, Any]) -> None:
    def poison(transaction: Transaction) -> None:
        begin_agent(transaction, "poisoned")
        spoilt = event(**{name: value for name, value in values.items() if name != "actor"})
        transaction.append(spoilt)
        if "actor" in values:
            transaction.rows[-1] = tuple("\ud800" if value == "ada" else value for value in transaction.rows[-1])

    async with book(any_settings) as made:
        await made.record(event(id=ID))
        *good, failed = await made.together(
            *(made.record(event()) for _ in range(5)),
            made.commit(lambda transaction: begin_agent(transaction, "fine")),
            made.commit(poison),
        )
        assert [one for one in good if isinstance(one, Exception)] == []
        assert isinstance(failed, errors.Error)
        assert failed.code == errors.Code.INTERNAL
        assert agent_names(made) == {"fine"}
        await made.record(event())
    found = recorded(any_settings)
    assert [one.index for one in found] == list(range(3, 10))
    assert [one.sequence for one in found] == list(range(1, 8))


async def test_event_of_the_same_id_elsewhere_is_not_taken_for_the_one_in_doubt(any_settings: Settings) -> None:
    async with book(any_settings) as made:
        one = event()
        (index,) = await made.record(one)
        with made.engine.connect() as connection:
            assert rows.has_event(connection, rows.encode(one, index, 0, "boot", 1))
            assert not rows.has_event(connection, rows.encode(one, index + 1, 0, "boot", 1))


async def test_unit_for_a_log_that_it_did_not_name_fails_alone(any_settings: Settings) -> None:
    async with book(any_settings) as made:
        (index,), failed = await made.together(
            made.record(event()), made.commit(lambda transaction: transaction.append(event("globex")))
        )
        assert index == 3
        assert isinstance(failed, Exception)
        await made.record(event())
    assert len(recorded(any_settings)) == 2


async def test_sequence_of_a_process_is_dense_also_after_units_that_failed(any_settings: Settings) -> None:
    def fail(transaction: Transaction) -> None:
        transaction.append(event())
        raise errors.NotFound

    async with book(any_settings) as made:
        for _ in range(3):
            await made.together(made.record(event()), made.commit(fail), made.record(event("globex")))
    both = recorded(any_settings) + recorded(any_settings, "globex")
    assert [one.sequence for one in both] == [1, 2, 3] * 2
    assert {one.boot_id for one in both} == {made.ledger.boot_id}


async def test_queue_is_bounded_and_says_when_to_try_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "QUEUE_MAX", 10)
    async with book(settings) as made:
        answers = await made.together(*(made.record(event()) for _ in range(12)))
        assert [type(answer) for answer in answers] == [list] * 10 + [errors.LedgerOverloaded] * 2
        assert await made.record(event()) == [13]
    status: status_pb2.Status = status_of(answers[-1], "operation")
    retry = error_details_pb2.RetryInfo()
    assert any(one.Unpack(retry) for one in status.details)
    assert retry.retry_delay.ToSeconds() == 1


async def test_time_of_recording_never_falls_when_the_clock_does(any_settings: Settings) -> None:
    times = iter([3_000_000_000_000_000, 1_000, 3_000_000_000_000_001, 2])
    async with book(any_settings, clock=lambda: next(times)) as made:
        for organization in ("acme", "acme", "acme", "globex"):
            await made.record(event(organization))
    assert [one.recorded_at for one in recorded(any_settings)] == [3_000_000_000_000_000] * 2 + [3_000_000_000_000_001]
    assert [one.recorded_at for one in recorded(any_settings, "globex")] == [2], "each log has a time of its own"


async def test_time_of_recording_never_falls_after_a_restart(any_settings: Settings) -> None:
    async with book(any_settings, clock=lambda: 4_000_000_000_000_000) as made:
        await made.record(event())
    async with book(any_settings, clock=lambda: 5) as made:
        await made.record(event())
    assert [one.recorded_at for one in recorded(any_settings)] == [4_000_000_000_000_000] * 2


async def test_event_that_says_more_supersedes_those_before_it(any_settings: Settings) -> None:
    operation = new_id()
    stages = [
        event(operation=operation, stage=Stage.RECEIVED),
        event(operation=operation, stage=Stage.STARTED, follows=True),
        event(operation=operation, stage=Stage.COMPLETED, follows=True),
    ]
    async with book(any_settings) as made:
        await made.record(stages[0], event())
        assert [one.superseded_by for one in recorded(any_settings)] == [None, None]
        await made.together(made.record(stages[1]), made.record(event()))
        await made.record(stages[2])
        await made.record(event("globex", operation=operation, follows=True))
    assert [(one.stage, one.superseded_by) for one in recorded(any_settings)] == [
        (Stage.RECEIVED, 5),
        (Stage.COMPLETED, None),
        (Stage.STARTED, 7),
        (Stage.COMPLETED, None),
        (Stage.COMPLETED, None),
    ]


async def test_two_stages_in_one_batch_supersede_each_other(any_settings: Settings) -> None:
    operation = new_id()
    async with book(any_settings) as made:
        await made.together(
            made.record(event(operation=operation, stage=Stage.STARTED)),
            made.record(event(operation=operation, follows=True)),
        )
    assert [one.superseded_by for one in recorded(any_settings)] == [4, None]


async def test_caller_that_goes_away_does_not_take_its_unit_along(any_settings: Settings) -> None:
    async with book(any_settings) as made:
        async with busy(made.ledger):
            gone = asyncio.ensure_future(made.record(event(reason="gone")))
            stayed = asyncio.ensure_future(made.record(event(reason="stayed")))
            await asyncio.sleep(0)
            gone.cancel()
        await stayed
    assert [one.reason for one in recorded(any_settings)] == ["gone", "stayed"]


async def test_close_commits_what_waits_and_then_takes_no_more(any_settings: Settings) -> None:
    async with book(any_settings) as made:
        async with busy(made.ledger):
            waiting = [asyncio.ensure_future(made.record(event())) for _ in range(20)]
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(made.ledger.close())
            await asyncio.sleep(0)
            with pytest.raises(errors.Stopping):
                await made.record(event())
        await closing
        assert len(await asyncio.gather(*waiting)) == 20
    assert len(recorded(any_settings)) == 20


async def test_listener_is_told_the_new_size_of_each_log_that_grew(any_settings: Settings) -> None:
    told: list[dict[str, int]] = []
    async with book(any_settings) as made:
        made.ledger.on_commit(told.append)
        await made.record(event(), event("globex"))
        await made.commit(lambda _transaction: None)
        await made.record(event())
    assert told == [{"acme": 4, "globex": 1}, {"acme": 5}]
