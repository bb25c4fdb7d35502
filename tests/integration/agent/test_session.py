"""The agent against a control plane written by hand, with a runtime in memory."""

import asyncio
import pathlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from lading.v1.agent_link_pb2 import Canary, Cancel, ConnectResponse, Drain, Goodbye, ReportFull
from lading.v1.commands_pb2 import (
    COMMAND_STATE_CANCELLED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_SUCCEEDED,
)
from lading_agent.backoff import Backoff
from lading_agent.daemon import Daemon
from tests.integration.agent.control_plane import ControlPlane, control_plane, make_settings
from tests.process import free_port
from tests.unit.agent.fake_runtime import FakeRuntime
from tests.unit.agent.honest_log import command
from tests.unit.agent.log_lines import listening


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with control_plane() as plane:
        yield plane


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime("web", "db")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next", lambda self: 0.01)


@asynccontextmanager
async def running(plane: ControlPlane, data: pathlib.Path, runtime: FakeRuntime) -> AsyncIterator[Daemon]:
    """An agent that is stopped as by SIGTERM when the block ends; a session that is open then is ended by the plane."""
    daemon = Daemon(make_settings(plane.address, data), runtime)
    task = asyncio.create_task(daemon.run())
    try:
        yield daemon
    finally:
        daemon.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_hello_says_who_the_agent_is(plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
    assert link.metadata["authorization"].startswith("Bearer e30.")
    assert link.hello.runtime == "fake 1"
    assert dict(link.hello.labels) == {"env": "test"}
    assert uuid.UUID(link.hello.boot_id) != uuid.UUID(link.hello.journal_id)
    assert (link.frames[0].epoch, link.frames[0].seq) == (0, 1)


async def test_after_welcome_the_inventory_comes_and_heartbeats_keep_coming(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=3, heartbeat=0.05)
        assert (await link.next("inventory")).inventory.snapshot
        for _ in range(3):
            heartbeat = await link.next("heartbeat")
        assert heartbeat.epoch == 3
        assert heartbeat.ack == 1
        assert [frame.seq for frame in link.frames] == list(range(1, len(link.frames) + 1))


async def test_a_command_is_acknowledged_executed_and_kept_until_its_receipt(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        envelope = command("start")
        await link.dispatch(envelope)
        acknowledge = await link.next("acknowledge")
        assert acknowledge.acknowledge.command == envelope.command
        result = await link.next("result")
        assert result.result.state == COMMAND_STATE_SUCCEEDED
        assert result.ack == link.sent, "the dispatch is processed durably"
        await link.end()
        again = await plane.link()
        (held,) = again.hello.held
        assert held.result.state == COMMAND_STATE_SUCCEEDED
        await again.welcome(epoch=2)
        await again.receipt(envelope.command)
        await again.send(ConnectResponse(report_full=ReportFull()))
        await again.next("inventory")
        await again.end()
        assert not (await plane.link()).hello.held


async def test_the_ack_of_any_frame_is_the_receipt_of_the_results_before_it(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        await link.dispatch(command("start"))
        first = await link.next("result")
        await link.dispatch(later := command("stop"))
        await link.next("result")
        await link.send(ConnectResponse(report_full=ReportFull()), ack=first.seq)
        await link.next("inventory")
        await link.end()
        assert [held.command for held in (await plane.link()).hello.held] == [later.command]


async def test_the_ack_of_a_conflict_is_no_receipt_of_the_command_that_has_the_id(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        await link.dispatch(done := command("start"))
        await link.next("result")
        await link.end()
        again = await plane.link()
        await again.welcome(epoch=2)
        other = command("stop")
        other.command = done.command
        await again.dispatch(other)
        conflict = await again.next("result")
        assert conflict.result.state == COMMAND_STATE_REJECTED
        await again.send(ConnectResponse(report_full=ReportFull()), ack=conflict.seq)
        await again.next("inventory")
        await again.end()
        assert [held.command for held in (await plane.link()).hello.held] == [done.command]


async def test_a_result_that_came_while_disconnected_is_in_the_next_hello(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    gate = runtime.gate("start web")
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        envelope = command("start")
        await link.dispatch(envelope)
        await link.next("acknowledge")
        await runtime.reached["start web"].wait()
        await link.end(grpc.StatusCode.UNAVAILABLE, "gone")
        again = await plane.link()
        (held,) = again.hello.held
        assert held.command == envelope.command
        assert not held.HasField("result"), "it is in the agent's hands"
        gate.set()
        await again.welcome(epoch=2)
        assert (await again.next("result")).result.state == COMMAND_STATE_SUCCEEDED
    assert runtime.calls == ["start web"]


async def test_a_command_dispatched_twice_over_sessions_is_executed_once(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    envelope = command("start")
    async with running(plane, tmp_path, runtime):
        for epoch in (1, 2):
            link = await plane.link()
            await link.welcome(epoch)
            await link.dispatch(envelope)
            assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED
            await link.end()
    assert runtime.calls == ["start web"]


async def test_a_lower_epoch_is_refused_even_after_a_new_start(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=7)
        await link.next("inventory")
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        assert link.hello.epoch == 7
        await link.welcome(epoch=6)
        again = await plane.link()
        assert again.hello.epoch == 7
        await again.welcome(epoch=8)
        await again.next("inventory")


async def test_a_frame_of_another_epoch_is_skipped(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=5)
        await link.send(ConnectResponse(dispatch=link.log.dispatch(command("start"), link.seen)), epoch=4)
        link.sent -= 1
        current = command("start", "db")
        await link.dispatch(current)
        assert (await link.next("result")).result.command == current.command
    assert runtime.calls == ["start db"]


async def test_an_unknown_frame_is_skipped(plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=5)
        # Field 999 of a later version, and no frame that this one knows.
        await link.send(ConnectResponse.FromString(b"\xba\x3e\x03abc"))
        await link.dispatch(command("start"))
        result = await link.next("result")
        assert result.ack == link.sent


async def test_a_gap_in_the_frames_makes_the_agent_connect_anew_twice_in_a_row(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        for epoch in (1, 2):
            link = await plane.link()
            # What was processed of the session before: its Welcome and one frame, not the one after the gap.
            assert (link.hello.epoch, link.hello.last_server_seq) == (epoch - 1, 2 if epoch > 1 else 0)
            await link.welcome(epoch)
            await link.send(ConnectResponse(report_full=ReportFull()))
            await link.send(ConnectResponse(report_full=ReportFull()), skip=1)
        link = await plane.link()
        assert (link.hello.epoch, link.hello.last_server_seq) == (2, 2)
        await link.welcome(epoch=3)
        await link.dispatch(command("start"))
        assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED


async def test_a_session_without_a_welcome_is_tried_again(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.dispatch(command("start"))
        again = await plane.link()
        await again.welcome(epoch=1)
        await again.next("inventory")
    assert runtime.calls == []


async def test_the_server_can_ask_for_the_whole_inventory(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        assert (await link.next("inventory")).inventory.version == 1
        await link.send(ConnectResponse(report_full=ReportFull()))
        report = (await link.next("inventory")).inventory
        assert (report.snapshot, report.version) == (True, 2)


async def test_a_queued_command_can_be_cancelled_by_a_frame(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    gate = runtime.gate("start web")
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        queued = command("stop")
        await link.dispatch(command("start"))
        await link.dispatch(queued)
        await link.send(ConnectResponse(cancel=Cancel(command=queued.command)))
        # What comes after the cancel is processed after it.
        await link.dispatch(command("start", "db"))
        await link.next("result")
        gate.set()
        await link.next("result")
        cancelled = (await link.next("result")).result
        assert (cancelled.command, cancelled.state) == (queued.command, COMMAND_STATE_CANCELLED)


async def test_a_drain_finishes_what_runs_says_goodbye_and_connects_when_told(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    gate = runtime.gate("start web")
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        await link.dispatch(command("start"))
        await runtime.reached["start web"].wait()
        drain = Drain(reason="the server restarts", reconnect_after=Duration(nanos=100_000_000))
        drained_at = asyncio.get_running_loop().time()
        await link.send(ConnectResponse(drain=drain))
        gate.set()
        result = await link.next("result")
        goodbye = await link.next("goodbye")
        assert result.seq < goodbye.seq
        assert goodbye.goodbye.restart_expected
        await link.end()
        await (await plane.link()).welcome(epoch=2)
        assert asyncio.get_running_loop().time() - drained_at >= 0.1


async def test_what_a_drain_does_not_wait_for_goes_on_and_is_told_in_the_next_session(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lading_agent.session.DRAIN_WITHIN", 0.01)
    gate = runtime.gate("start web")
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        slow = command("start")
        await link.dispatch(slow)
        await runtime.reached["start web"].wait()
        await link.send(ConnectResponse(drain=Drain(reason="the server restarts")))
        await link.next("goodbye")
        await link.end()
        again = await plane.link()
        assert [(each.command, each.HasField("result")) for each in again.hello.held] == [(slow.command, False)]
        await again.welcome(epoch=2)
        gate.set()
        result = (await again.next("result")).result
        assert (result.command, result.state) == (slow.command, COMMAND_STATE_SUCCEEDED)
    assert runtime.calls == ["start web"]


async def test_an_agent_that_is_drained_comes_back_in_its_slot_though_the_server_never_ends_the_session(
    plane: ControlPlane,
    runtime: FakeRuntime,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("lading_agent.session.ENDED_WITHIN", 0.01)
    # Coming back by back-off would be too late for this test.
    monkeypatch.setattr(Backoff, "next", lambda self: 3600.0)
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        drained_at = asyncio.get_running_loop().time()
        drain = Drain(reason="the stream is old", reconnect_after=Duration(nanos=300_000_000))
        await link.send(ConnectResponse(drain=drain))
        async with asyncio.timeout(20):
            again = await plane.link()
        assert asyncio.get_running_loop().time() - drained_at >= 0.3
        await again.welcome(epoch=2)
        await again.dispatch(command("start"))
        assert (await again.next("result")).result.state == COMMAND_STATE_SUCCEEDED
    assert not link.over.is_set()
    assert "a fault of the agent" not in caplog.text


async def test_a_canary_comes_back_through_the_executor(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        assert set(link.hello.capabilities) >= {"canary", "signed-results"}
        await link.welcome(epoch=1)
        await link.send(ConnectResponse(canary=Canary(nonce="tweet")))
        assert (await link.next("canary_echo")).canary_echo.nonce == "tweet"


async def test_a_clone_says_what_to_do_and_comes_back_slowly(
    plane: ControlPlane,
    runtime: FakeRuntime,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow_waits: list[int] = []
    monkeypatch.setattr(Backoff, "slow", lambda self: 0.01 * (slow_waits.append(1) is None))  # type: ignore[func-returns-value]
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason="AGENT_CLONED", domain="lading"))
    code = grpc.StatusCode.FAILED_PRECONDITION
    status = Status(code=code.value[0], message="two of them", details=[detail])
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        await link.end(code, "two of them", grpc_status_details_bin=status.SerializeToString())
        await plane.link()
    assert slow_waits
    for words in ("two agents run as this one", "token create --kind agent", "agents unban", "two of them"):
        assert words in caplog.text


async def test_the_wait_that_the_server_asks_for_is_kept(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    wait, shed = AnyMessage(), AnyMessage()
    wait.Pack(RetryInfo(retry_delay=Duration(nanos=100_000_000)))
    shed.Pack(ErrorInfo(reason="CONNECTS_SHED", domain="lading"))
    status = Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="too many at once", details=[wait, shed])
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        peer = link.context.peer()  # a call that has ended has none
        refused_at = asyncio.get_running_loop().time()
        await link.end(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "too many at once",
            grpc_status_details_bin=status.SerializeToString(),
        )
        again = await plane.link()
        assert asyncio.get_running_loop().time() - refused_at >= 0.1
        assert again.context.peer() == peer, "another process of this address knows nothing of its turn"
        await again.end(grpc.StatusCode.UNAVAILABLE, "bye")
        assert (await plane.link()).context.peer() != peer


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "does not accept this agent's token: expired"),
        (grpc.StatusCode.PERMISSION_DENIED, "does not let this agent in: expired"),
        (grpc.StatusCode.ABORTED, "a newer session of this agent took over"),
    ],
)
async def test_a_refusal_is_retried_slowly_and_says_why(
    plane: ControlPlane,
    runtime: FakeRuntime,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: grpc.StatusCode,
    words: str,
) -> None:
    slow_waits: list[int] = []
    monkeypatch.setattr(Backoff, "slow", lambda self: 0.01 * (slow_waits.append(1) is None))  # type: ignore[func-returns-value]
    plane.refusal = (code, "expired")
    async with running(plane, tmp_path, runtime):
        await plane.refused.acquire()
        while not slow_waits:  # grpc may say INTERNAL where a call is refused while its first message is written
            await plane.refused.acquire()
        plane.refusal = None
        await plane.link()
    assert words in caplog.text


async def test_a_stop_finishes_what_runs_tells_it_and_says_goodbye(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    gate = runtime.gate("start web")
    daemon = Daemon(make_settings(plane.address, tmp_path), runtime)
    task = asyncio.create_task(daemon.run())
    link = await plane.link()
    await link.welcome(epoch=1)
    await link.dispatch(command("start"))
    await runtime.reached["start web"].wait()
    daemon.stop()
    gate.set()
    assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED
    goodbye: Goodbye = (await link.next("goodbye")).goodbye
    assert goodbye.reason == "the agent is stopping"
    assert await link.context.read() is grpc.aio.EOF
    await link.end()
    await task


async def test_a_fault_ends_the_session_and_not_the_agent(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await plane.link()
        await link.welcome(epoch=1)
        await link.next("inventory")
        runtime.failures["get"] = ValueError("a time of the year 99999")
        start = command("start")
        await link.dispatch(start)
        link = await plane.link()
        assert "year 99999" in caplog.text
        assert not link.hello.held
        runtime.failures.clear()
        await link.welcome(epoch=2)
        await link.dispatch(start)
        assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED


async def test_certificates_that_cannot_be_read_any_more_are_asked_for_again(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    settings = replace(make_settings(plane.address, tmp_path), ca=tmp_path / "ca.pem")
    agent = Daemon(settings, runtime)
    with listening(f"cannot read --ca {tmp_path / 'ca.pem'}: No such file or directory") as heard:
        task = asyncio.create_task(agent.run())
        hears = asyncio.create_task(heard.wait())
        done, _ = await asyncio.wait((task, hears), return_when=asyncio.FIRST_COMPLETED)
        assert done == {hears}
    agent.stop()
    await task


async def test_an_agent_whose_server_is_gone_finds_it_again(runtime: FakeRuntime, tmp_path: pathlib.Path) -> None:
    async with control_plane(free_port()) as first:
        address = first.address
    plane = ControlPlane()
    plane.address = address
    async with running(plane, tmp_path, runtime), control_plane(int(address.rpartition(":")[2])) as second:
        link = await second.link()
        await link.welcome(epoch=1)
        await link.next("inventory")
