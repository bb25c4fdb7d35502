"""What happened without a command: told once, again while nobody has acknowledged it, and never told of our own."""

import asyncio
import pathlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lading.v1.agent_link_pb2 import ConnectRequest, Drift, Result
from lading.v1.commands_pb2 import COMMAND_STATE_SUCCEEDED
from lading_agent import drifts as drifts_module
from lading_agent.drifts import Drifts
from lading_agent.journal import Journal, Start
from lading_agent.runtimes import RuntimeEvent
from tests.unit.agent.fake_runtime import FakeRuntime
from tests.unit.agent.honest_log import command

HOUR_NS = 3600 * 10**9


class Remembering(FakeRuntime):
    """Tells what is past too, as engines do."""

    async def events(self, since_ns: int):  # type: ignore[no-untyped-def]
        for event in [event for event in self.past if event.at_ns >= since_ns]:
            yield event
        async for event in super().events(since_ns):
            yield event


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drifts_module, "REPLAY_WITHIN", 0.02)
    monkeypatch.setattr(drifts_module, "COALESCE_WITHIN", 0.02)
    monkeypatch.setattr(drifts_module, "RETRY_AFTER", 0.02)


@pytest.fixture
async def journal(tmp_path: pathlib.Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path)
    await journal.open()
    yield journal
    await journal.close()


@asynccontextmanager
async def reporting(
    runtime: FakeRuntime, journal: Journal
) -> AsyncIterator[tuple[Drifts, "asyncio.Queue[ConnectRequest]"]]:
    sent: asyncio.Queue[ConnectRequest] = asyncio.Queue()
    reports = Drifts(runtime, journal, sent.put_nowait)
    task = asyncio.create_task(reports.run())
    await runtime.listening.wait()
    try:
        yield reports, sent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def next_drift(sent: "asyncio.Queue[ConnectRequest]") -> Drift:
    async with asyncio.timeout(30):
        return (await sent.get()).drift


def told(drift: Drift) -> list[tuple[str, str]]:
    return [(change.container, change.action) for change in drift.changes]


async def test_nothing_is_left_running_when_it_is_stopped(journal: Journal) -> None:
    before = asyncio.all_tasks()
    async with reporting(Remembering("web"), journal) as (_, sent):
        # It has told of the past, and waits for what happens next.
        await asyncio.sleep(0.2)
        assert sent.empty()
    assert asyncio.all_tasks() == before


async def do(journal: Journal, runtime: FakeRuntime, verb: str, *actions: str) -> None:
    """A command of ours, as the worker does it."""
    envelope = command(verb)
    await journal.receive(envelope)
    await journal.begin(envelope.command, Start(None))
    for action in actions:
        runtime.tell(action, "web")
    await journal.end(Result(command=envelope.command, state=COMMAND_STATE_SUCCEEDED))


async def test_what_others_did_is_told_and_what_commands_did_is_not(journal: Journal) -> None:
    runtime = Remembering("web", "db")
    async with reporting(runtime, journal) as (_, sent):
        await do(journal, runtime, "restart", "kill", "die", "stop", "start", "restart")
        runtime.tell("start", "db")
        runtime.tell("health_status", "db")
        assert told(await next_drift(sent)) == [("db", "start")]
        await do(journal, runtime, "stop")
        runtime.tell("die", "web")  # a little late, as engines are
        runtime.tell("start", "web")  # not what a stop does
        assert told(await next_drift(sent)) == [("web", "start")]


async def test_what_is_acknowledged_is_not_told_again_and_the_rest_is_under_the_same_id(journal: Journal) -> None:
    runtime = Remembering("web")
    async with reporting(runtime, journal) as (reports, sent):
        runtime.tell("die", "web")
        frame = await sent.get()
        frame.seq = 2
        before = journal.seen_ns
        reports.acknowledged(1)
        reports.acknowledged(2)
        async with asyncio.timeout(30):
            while journal.seen_ns == before:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert journal.seen_ns == runtime.past[-1].at_ns
        runtime.tell("start", "web")
        (unheard,) = (await next_drift(sent)).changes
    async with reporting(runtime, journal) as (_, sent):
        again = await next_drift(sent)
        assert list(again.changes) == [unheard]


async def test_change_that_the_runtime_has_forgotten_is_a_gap(journal: Journal) -> None:
    runtime = Remembering("web", "db")
    since = time.time_ns() - HOUR_NS
    await journal.see(since)
    for container in runtime.by_name.values():
        container.created_at.FromNanoseconds(since - HOUR_NS)
    runtime.by_name["web"].started_at.FromNanoseconds(since + HOUR_NS // 2)
    async with reporting(runtime, journal) as (_, sent):
        gap = await next_drift(sent)
    assert gap.gap_since.ToNanoseconds() == since
    assert gap.seen_until.ToNanoseconds() > since
    assert not gap.changes


async def test_change_that_the_runtime_remembers_is_no_gap(journal: Journal) -> None:
    runtime = Remembering("web")
    since = time.time_ns() - HOUR_NS
    await journal.see(since)
    at_ns = since + HOUR_NS // 2
    runtime.by_name["web"].created_at.FromNanoseconds(since - HOUR_NS)
    runtime.by_name["web"].started_at.FromNanoseconds(at_ns)
    runtime.past.append(RuntimeEvent("web", "start", at_ns, "id", (("exitCode", "1"),)))
    async with reporting(runtime, journal) as (_, sent):
        drift = await next_drift(sent)
    assert not drift.HasField("gap_since")
    (change,) = drift.changes
    assert (change.container_id, dict(change.attributes)) == ("id", {"exitCode": "1"})
    assert change.happened_at.ToNanoseconds() == at_ns


async def test_first_life_tells_nothing_of_the_past(journal: Journal) -> None:
    runtime = Remembering("web")
    runtime.tell("start", "web")
    async with reporting(runtime, journal) as (_, sent):
        runtime.tell("die", "web")
        assert told(await next_drift(sent)) == [("web", "die")]
