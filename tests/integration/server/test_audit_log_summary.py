"""SummarizeEvents: the roll-ups say what the events say."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lading.v1 import audit_log_pb2 as pb
from lading_server.clock import new_id
from lading_server.errors import Code
from lading_server.event import ANONYMOUS, Actor, ActorType, Outcome, Stage
from lading_server.ledger import counts, ledger
from lading_server.ledger.ledger import Ledger
from lading_server.settings import Settings
from lading_server.store import database, reader, summary
from lading_server.store.event_counts import DAY, FACETS, FAILED, HOUR, MINUTE
from lading_server.store.event_filter import EventFilter, Field, Match
from lading_server.store.reader import Reader
from lading_server.store.schema import events
from tests.integration.server.audit_log_server import ADA, AuditLogServer, event, match
from tests.signers import new_signer

START = 20_000 * DAY + 22 * HOUR + 50 * MINUTE
ACTORS = [ADA, Actor(ActorType.SERVICE, "deployer"), Actor(ActorType.AGENT, "dock-1"), ANONYMOUS]


class Recording:
    """A ledger whose clock the test sets."""

    def __init__(self, url: str) -> None:
        self.engine = database.open_engine(url)
        database.migrate(self.engine)
        self.at = START
        self.ledger = Ledger(self.engine, new_signer(), boot_id="test", clock=lambda: self.at)
        self.ledger.start()
        self.reader = Reader(self.engine)

    async def count(self, organization: str, limit: int) -> bool:
        return await self.ledger.commit(
            (organization,), lambda transaction: counts.count(transaction.connection, organization, limit)
        )

    async def summarize(self, organization: str, wanted: EventFilter, grid: summary.Grid) -> summary.Summary:
        return await self.reader.read(summary.summarize, organization, wanted, grid, list(FACETS), 100)

    async def close(self) -> None:
        await self.ledger.close()
        self.reader.close()
        self.engine.dispose()


@pytest.fixture
async def recording(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recording]:
    # Thousands of commits, on a machine that others use: not a test of how fast any of them is.
    for part in (ledger, reader):
        monkeypatch.setattr(part, "ANSWER_SECONDS", 60)
    made = Recording(database_url)
    yield made
    await made.close()


@dataclasses.dataclass(frozen=True)
class Step:
    """Some time passes, then events are recorded, or some are counted."""

    passes: int
    events: list[dict[str, Any]]
    count: int


one_event = st.fixed_dictionaries(
    {
        "actor": st.sampled_from(ACTORS),
        "action": st.sampled_from(["container.start", "container.list", "task.update"]),
        "outcome": st.sampled_from(Outcome),
        "code": st.sampled_from([Code.OK, Code.NOT_FOUND]),
        "agent": st.sampled_from(["", "dock-1"]),
        "source": st.sampled_from(["", "cli", "x" * 300]),
        "changes": st.booleans(),
        "count": st.integers(1, 5),
        "operation": st.integers(0, 5),
        "follows": st.booleans(),
        "becomes": st.booleans(),
    }
)
passing = st.sampled_from([0, 1, 20 * 1_000_000, MINUTE, 7 * MINUTE, HOUR, 5 * HOUR, DAY])
steps = st.lists(st.builds(Step, passing, st.lists(one_event, max_size=4), st.integers(0, 4)), min_size=1, max_size=12)
moments = st.sampled_from(
    [0, 1, 30 * 1_000_000, MINUTE, 10 * MINUTE, HOUR, HOUR + MINUTE, 6 * HOUR, DAY, 3 * DAY, 9 * DAY]
)


async def play(recording: Recording, organization: str, script: list[Step]) -> None:
    last: dict[int, int] = {}
    for step in script:
        recording.at += step.passes
        if step.events:
            made = []
            for values in step.events:
                number = values["operation"]
                others = {key: value for key, value in values.items() if key not in ("operation", "becomes")}
                becomes = last.get(number) if values["becomes"] else None
                operation = new_id() if becomes is not None else f"{organization}-{number}"
                if becomes is not None:
                    others["follows"] = False
                made.append(
                    event(
                        organization=organization,
                        stage=Stage.COMPLETED,
                        operation=operation,
                        superseded_by=becomes,
                        **others,
                    )
                )
            indexes = await recording.ledger.record(made)
            last |= {values["operation"]: index for index, values in zip(indexes, step.events, strict=True)}
        if step.count:
            await recording.count(organization, step.count)


def expected(rows: list[Any], grid: summary.Grid, wanted: EventFilter) -> tuple[Any, ...]:
    """The same, counted row by row."""
    bars: Counter[int] = Counter()
    failed_bars: Counter[int] = Counter()
    values: Counter[tuple[Field, str]] = Counter()
    failures: Counter[tuple[Field, str]] = Counter()
    for row in rows:
        at = row["recorded_at"]
        if row["superseded_by"] is not None or not grid.since <= at < grid.until:
            continue
        if wanted.changes_only and not row["changes"]:
            continue
        if wanted.matches and row["actor"] not in wanted.matches[0].values:
            continue
        weight, failed = row["count"], row["count"] * (row["outcome"] in FAILED)
        bars[(at - grid.begins_at) // grid.width] += weight
        failed_bars[(at - grid.begins_at) // grid.width] += failed
        for key in keys(row):
            values[key] += weight
            failures[key] += failed
    return (
        [(bars[number], failed_bars[number]) for number in range(grid.size)],
        {key: (value, failures[key]) for key, value in values.items()},
    )


def keys(row: Any) -> Iterator[tuple[Field, str]]:
    yield Field.ACTOR, row["actor_email"] or row["actor"]
    yield Field.ACTION, row["action"]
    yield Field.OUTCOME, Outcome(row["outcome"]).name
    yield Field.CODE, Code(row["code"]).name
    if row["agent"]:
        yield Field.AGENT, row["agent"]
    if row["source"]:
        yield Field.SOURCE, row["source"][:200]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(
    script=steps,
    before_since=moments,
    before_until=moments,
    bars=st.sampled_from([1, 3, 60, 500]),
    changes_only=st.booleans(),
    filtered=st.booleans(),
)
async def test_a_summary_says_what_the_events_say(
    recording: Recording,
    script: list[Step],
    before_since: int,
    before_until: int,
    bars: int,
    changes_only: bool,
    filtered: bool,
) -> None:
    organization = new_id()
    recording.at = START
    await play(recording, organization, script)
    since, until = START - 1 + before_since, recording.at + 2 - before_until
    if since >= until:
        since, until = until - 1, since + 1
    matches = (Match(Field.ACTOR, ("ada", "dock-1")),) if filtered else ()
    wanted = EventFilter(changes_only=changes_only, matches=matches)
    grid = summary.grid(since, until, bars)
    assert grid.size <= bars
    query = sa.select(events).where(events.c.organization == organization)
    rows = await recording.reader.read(lambda connection: list(connection.execute(query).mappings()))
    found = await recording.summarize(organization, wanted, grid)
    of_bars, of_values = expected(rows, grid, wanted)
    assert [(bar.total, bar.failed) for bar in found.bars] == of_bars
    assert (found.total, found.failed) == tuple(map(sum, zip(*of_bars, strict=True)))
    assert {
        (field, value.value): (value.total, value.failed) for field, values in found.facets.items() for value in values
    } == of_values
    assert not found.capped


@given(since=st.integers(0, 2**50), length=st.integers(1, 2**50), bars=st.integers(1, 500))
def test_bars_cover_the_range_without_gaps(since: int, length: int, bars: int) -> None:
    grid = summary.grid(since, since + length, bars)
    assert 1 <= grid.size <= bars
    assert grid.begins_at <= since
    assert grid.begins_at + (grid.size - 1) * grid.width < grid.until <= grid.begins_at + grid.size * grid.width
    assert grid.width % MINUTE == 0
    assert grid.width < HOUR or (grid.width % HOUR == grid.begins_at % HOUR == 0)


async def test_a_filtered_count_stops_at_its_limit(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "COUNT_MAX", 10)
    await recording.ledger.record([event(outcome=Outcome.FAILURE) for _ in range(8)])
    grid = summary.grid(START - HOUR, START + HOUR, 60)
    wanted = EventFilter(matches=(Match(Field.ACTOR, ("ada",)),))
    assert not (await recording.summarize("acme", wanted, grid)).capped
    await recording.ledger.record([event() for _ in range(8)])
    found = await recording.summarize("acme", wanted, grid)
    assert (found.capped, found.total, found.failed) == (True, 10, 2)


async def test_the_background_task_counts_all_organizations(recording: Recording) -> None:
    names = ["acme", "globex"]
    await recording.ledger.record([event(organization=name) for name in names for _ in range(1_500)])
    keeping = asyncio.create_task(counts.keep(recording.ledger, recording.reader))
    while await recording.reader.read(counts.behind):
        pass
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert not await recording.count("acme", 1)


@pytest.fixture
async def log(any_settings: Settings) -> AsyncIterator[AuditLogServer]:
    async with AuditLogServer(any_settings) as server:
        yield server


async def test_a_summary_is_exact_at_once_and_of_one_organization(log: AuditLogServer) -> None:
    await log.record(*(event(agent="dock-1", changes=True) for _ in range(7)), event(organization="globex"))
    await log.count()
    await log.record(event(outcome=Outcome.FAILURE, code=5, changes=True), event(actor=ANONYMOUS, changes=True))
    wanted = pb.EventFilter(matches=[match("ACTION", "task.update")])
    for of_filter in (wanted, pb.EventFilter(changes_only=True)):
        found = await log.call("SummarizeEvents", pb.SummarizeEventsRequest(filter=of_filter))
        facets = {facet.field: {of.value: (of.total, of.failed) for of in facet.values} for facet in found.facets}
        assert facets[pb.FIELD_CODE]["NOT_FOUND"] == (1, 1)
        assert facets[pb.FIELD_AGENT] == {"dock-1": (7, 0)}
        assert facets[pb.FIELD_ACTOR]["ada@acme.example"] == (8, 1)
        assert facets[pb.FIELD_ACTOR][""] == (1, 0)
        assert found.failed == 1
        assert sum(bucket.total for bucket in found.buckets) == found.total
    found = await log.call("SummarizeEvents", pb.SummarizeEventsRequest(filter=wanted, buckets=24))
    assert found.total == 9
    assert found.width.seconds * len(found.buckets) >= 24 * 3600
    assert len(found.buckets) <= 24


async def test_only_the_facets_and_values_that_were_asked_for(log: AuditLogServer) -> None:
    await log.record(*(event(agent=f"dock-{number % 5}") for number in range(12)))
    request = pb.SummarizeEventsRequest(facets=[pb.FIELD_AGENT, pb.FIELD_AGENT], values_max=2)
    (facet,) = (await log.call("SummarizeEvents", request)).facets
    assert [(of.value, of.total) for of in facet.values] == [("dock-0", 3), ("dock-1", 3)]


@pytest.mark.parametrize(
    "request_",
    [
        pb.SummarizeEventsRequest(facets=[pb.FIELD_REASON]),
        pb.SummarizeEventsRequest(facets=[99]),  # type: ignore[list-item]
        pb.SummarizeEventsRequest(buckets=-1),
        pb.SummarizeEventsRequest(filter=pb.EventFilter(since=Timestamp(seconds=5), until=Timestamp(seconds=5))),
    ],
)
async def test_a_summary_that_makes_no_sense_is_refused(
    log: AuditLogServer, request_: pb.SummarizeEventsRequest
) -> None:
    assert (await log.refused("SummarizeEvents", request_)).code() == grpc.StatusCode.INVALID_ARGUMENT
