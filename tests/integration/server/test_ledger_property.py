"""Whatever units come in whatever company: the log holds the events of those that succeeded, and only theirs."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lading_server import errors
from lading_server.clock import new_id
from lading_server.event import Event
from lading_server.ledger.transaction import Transaction
from lading_server.settings import Settings
from tests.integration.server.ledgers import Book, book, event
from tests.integration.server.running import read_events

LOGS = ("left", "right")
ID = new_id()


@dataclass(frozen=True)
class Work:
    """A unit: how many events it appends to which log, and how it ends."""

    log: str
    events: int
    ends: str
    pause: bool

    @property
    def is_good(self) -> bool:
        return self.ends in ("record", "commit")


WORK = st.builds(
    Work,
    log=st.sampled_from(LOGS),
    events=st.integers(1, 3),
    ends=st.sampled_from(["record", "commit", "commit", "raise", "duplicate", "overflow"]),
    pause=st.booleans(),
)


@pytest.fixture
def loop_and_book(settings: Settings) -> Iterator[tuple[asyncio.Runner, Book]]:
    with asyncio.Runner() as runner:
        running = book(settings)
        made = runner.run(running.__aenter__())
        runner.run(made.commit(lambda transaction: transaction.append(event("acme", id=ID))))
        yield runner, made
        runner.run(running.__aexit__(None, None, None))


NUMBERS = itertools.count()


@given(st.lists(WORK, max_size=12))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_log_is_dense_and_holds_exactly_the_events_of_units_that_succeeded(
    loop_and_book: tuple[asyncio.Runner, Book], settings: Settings, units: list[Work]
) -> None:
    runner, made = loop_and_book
    number = next(NUMBERS)
    names = {log: f"{log}-{number}" for log in LOGS}
    written: dict[str, list[str]] = {name: [] for name in names.values()}

    async def run(work: Work) -> None:
        log = names[work.log]
        events: list[Event] = [event(log) for _ in range(work.events)]

        def apply(transaction: Transaction) -> None:
            for one in events:
                transaction.append(one)
            if work.ends == "raise":
                raise errors.NotFound
            if work.ends == "duplicate":
                transaction.append(event(log, id=ID))
            if work.ends == "overflow":
                transaction.append(event(log, occurred_at=2**70))

        done: Any = made.ledger.record(events) if work.ends == "record" else made.ledger.commit((log,), apply)
        try:
            await done
        except errors.Error:
            assert not work.is_good
        else:
            assert work.is_good
            written[log] += [one.id for one in events]

    async def run_all() -> None:
        async with asyncio.TaskGroup() as group:
            for work in units:
                group.create_task(run(work))
                if work.pause:
                    await asyncio.sleep(0)

    runner.run(run_all())
    for name, ids in written.items():
        found = read_events(settings, name)
        assert sorted(one.id for one in found) == sorted(ids)
        assert [one.index for one in found] == list(range(len(ids)))
        assert [one.sequence for one in found] == list(range(1, len(ids) + 1))
