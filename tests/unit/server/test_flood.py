"""A flood of refused calls is counted in full, and fills no log."""

import asyncio

import pytest

from lading_server import errors
from lading_server.errors import Code
from lading_server.event import ANONYMOUS, SYSTEM, Event, Outcome, Stage
from lading_server.interceptors import flood
from lading_server.interceptors.flood import Flood


def refused(action: str = "agent.list", code: int = Code.UNAUTHENTICATED) -> Event:
    return Event(
        "id", SYSTEM, "op", Stage.COMPLETED, 0, ANONYMOUS, action, Outcome.DENIED, code, details={"peer": "here"}
    )


class Log:
    """What was recorded; `failure` is raised instead."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failure: Exception | None = None

    async def record(self, events: list[Event]) -> None:
        if self.failure is not None:
            raise self.failure
        self.events += events


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def refusals(log: Log, monkeypatch: pytest.MonkeyPatch) -> Flood:
    """Its buckets do not fill again, and its windows are short."""
    monkeypatch.setattr(flood, "WINDOW_SECONDS", 0.01)
    return Flood(log.record, clock=lambda: 0.0)


async def test_few_refused_calls_leave_an_event_each(log: Log, refusals: Flood) -> None:
    for _ in range(flood.BURST):
        await refusals.record("10.0.0.1", refused())
    assert [event.count for event in log.events] == [1] * flood.BURST


async def test_events_of_a_flood_count_every_call(log: Log, refusals: Flood) -> None:
    await asyncio.gather(*(refusals.record("10.0.0.1", refused()) for _ in range(1000)))
    assert sum(event.count for event in log.events) == 1000
    assert len(log.events) == flood.BURST + 1
    assert log.events[-1].details == {"peer": "here", "aggregated": True}


async def test_no_call_of_a_flood_is_answered_before_its_event(log: Log, refusals: Flood) -> None:
    for _ in range(flood.BURST):
        await refusals.record("10.0.0.1", refused())
    await refusals.record("10.0.0.1", refused())
    assert len(log.events) == flood.BURST + 1
    log.failure = errors.LedgerUnavailable()
    waiting = [asyncio.ensure_future(refusals.record("10.0.0.1", refused())) for _ in range(3)]
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [errors.LedgerUnavailable] * 3


async def test_calls_of_other_kinds_are_counted_apart(log: Log, refusals: Flood) -> None:
    for _ in range(flood.BURST):
        await refusals.record("10.0.0.1", refused())
    kinds = [("agent.list", Code.UNAUTHENTICATED), ("agent.get", Code.UNAUTHENTICATED), ("agent.get", Code.NOT_FOUND)]
    await asyncio.gather(*(refusals.record("10.0.0.1", refused(*kind)) for kind in kinds for _ in range(5)))
    assert sorted((event.action, event.code, event.count) for event in log.events[flood.BURST :]) == sorted(
        (action, int(code), 5) for action, code in kinds
    )


async def test_flood_from_one_source_disturbs_no_other(
    log: Log, refusals: Flood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flood, "WINDOW_SECONDS", 1.0)
    loud = [asyncio.ensure_future(refusals.record("10.0.0.1", refused())) for _ in range(flood.BURST + 5)]
    await refusals.record("10.0.0.2", refused("role.list"))
    assert log.events[-1].action == "role.list"
    assert not loud[-1].done()
    await asyncio.gather(*loud)


async def test_bucket_fills_again_with_time(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "WINDOW_SECONDS", 0.01)
    at = 0.0
    refusals = Flood(log.record, clock=lambda: at)
    await asyncio.gather(*(refusals.record("10.0.0.1", refused()) for _ in range(flood.BURST + 10)))
    at = 2 / flood.PER_SECOND
    before = len(log.events)
    await asyncio.gather(*(refusals.record("10.0.0.1", refused()) for _ in range(5)))
    assert [event.count for event in log.events[before:]] == [1, 1, 3]


async def test_caller_that_goes_away_is_counted_all_the_same(log: Log, refusals: Flood) -> None:
    for _ in range(flood.BURST):
        await refusals.record("10.0.0.1", refused())
    gone = asyncio.ensure_future(refusals.record("10.0.0.1", refused()))
    await asyncio.sleep(0)
    gone.cancel()
    await refusals.drained()
    assert log.events[-1].count == 1
    assert len(log.events) == flood.BURST + 1


async def test_memory_is_bounded_whatever_the_number_of_sources(log: Log, refusals: Flood) -> None:
    for number in range(flood.SOURCES_MAX + 10):
        await refusals.record(str(number), refused())
    assert len(refusals._buckets) <= flood.SOURCES_MAX
