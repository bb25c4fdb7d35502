import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from grpc import StatusCode

from lading.v1.agent_link_pb2 import ConnectRequest
from lading.v1.agent_link_pb2 import Inventory as Report
from lading.v1.containers_pb2 import Container
from lading_agent import inventory as inventory_module
from lading_agent.errors import RuntimeFailure, Unreadable
from lading_agent.inventory import Inventory
from tests.unit.agent.fake_runtime import FakeRuntime


@asynccontextmanager
async def running(runtime: FakeRuntime) -> AsyncIterator[tuple[Inventory, asyncio.Queue[ConnectRequest]]]:
    sent: asyncio.Queue[ConnectRequest] = asyncio.Queue()
    inventory = Inventory(runtime, sent.put_nowait)
    task = asyncio.create_task(inventory.run())
    try:
        yield inventory, sent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def next_report(sent: asyncio.Queue[ConnectRequest]) -> Report:
    return (await sent.get()).inventory


async def test_a_session_begins_with_a_snapshot() -> None:
    async with running(FakeRuntime("web", "db")) as (_, sent):
        report = await next_report(sent)
    assert (report.snapshot, report.version) == (True, 1)
    assert sorted(container.name for container in report.containers) == ["db", "web"]


async def test_events_become_one_delta() -> None:
    runtime = FakeRuntime("web", "db")
    async with running(runtime) as (_, sent):
        await next_report(sent)
        await runtime.listening.wait()
        runtime.by_name["web"].state = "running"
        gone = runtime.by_name.pop("db")
        for action, name in (("start", "web"), ("die", "web"), ("destroy", gone.name), ("start", "web")):
            runtime.tell(action, name)
        report = await next_report(sent)
        assert sent.empty()
    assert (report.snapshot, report.version, report.base_version) == (False, 2, 1)
    assert [(container.name, container.state) for container in report.containers] == [("web", "running")]
    assert list(report.removed) == ["db"]


async def test_a_container_that_cannot_be_read_hides_no_other_that_changed() -> None:
    runtime = FakeRuntime("web", "db")
    get = runtime.get

    async def refuse(name: str) -> Container:
        if name == "db":
            raise Unreadable
        return await get(name)

    runtime.get = refuse  # type: ignore[method-assign]
    async with running(runtime) as (_, sent):
        await next_report(sent)
        await runtime.listening.wait()
        for name in ("db", "web"):
            runtime.tell("start", name)
        report = await next_report(sent)
    assert (report.snapshot, list(report.removed)) == (False, [])
    assert [container.name for container in report.containers] == ["web"]


async def test_the_server_can_ask_for_all() -> None:
    async with running(FakeRuntime("web")) as (inventory, sent):
        await next_report(sent)
        inventory.report_full()
        report = await next_report(sent)
    assert (report.snapshot, report.version) == (True, 2)


async def test_a_broken_stream_of_events_is_followed_by_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "RETRY_AFTER", 0.01)
    runtime = FakeRuntime("web")
    async with running(runtime) as (_, sent):
        await next_report(sent)
        await runtime.listening.wait()
        runtime.break_events()
        assert (await next_report(sent)).snapshot


async def test_a_runtime_that_comes_back_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "RETRY_AFTER", 0.01)
    runtime = FakeRuntime("web")
    runtime.failures["containers"] = RuntimeFailure("connection refused", StatusCode.UNAVAILABLE)
    async with running(runtime) as (_, sent):
        for _ in range(3):
            await runtime.snapshots.acquire()
        assert sent.empty()
        del runtime.failures["containers"]
        assert (await next_report(sent)).snapshot
