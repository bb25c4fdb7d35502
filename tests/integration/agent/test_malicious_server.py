"""A server that lies: it has the database, some with the log's own key, and the agent never acts on a lie."""

import asyncio
import pathlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lading.transparency import note
from lading.v1.agent_link_pb2 import Canary, ConnectResponse, Dispatch, Envelope, Growth, ReportFull, Result
from lading.v1.commands_pb2 import COMMAND_STATE_REJECTED, COMMAND_STATE_SUCCEEDED
from lading_agent import session
from lading_agent.backoff import Backoff
from lading_agent.daemon import Daemon
from lading_agent.journal import Journal
from tests.integration.agent.control_plane import ControlPlane, Link, control_plane, make_settings
from tests.unit.agent.fake_runtime import FakeRuntime
from tests.unit.agent.honest_log import HonestLog, command

DATA_LOSS = 15


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with control_plane() as plane:
        plane.log.grow(20)
        yield plane


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime("web", "db")


@pytest.fixture(autouse=True)
def slow_waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each time that the agent would have waited long."""
    waits: list[int] = []
    monkeypatch.setattr(Backoff, "next", lambda self: 0.01)
    monkeypatch.setattr(Backoff, "slow", lambda self: 0.01 * (waits.append(1) is None))  # type: ignore[func-returns-value]
    return waits


@asynccontextmanager
async def running(plane: ControlPlane, data: pathlib.Path, runtime: FakeRuntime) -> AsyncIterator[None]:
    daemon = Daemon(make_settings(plane.address, data), runtime)
    task = asyncio.create_task(daemon.run())
    try:
        yield
    finally:
        daemon.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def connect(plane: ControlPlane, epoch: int = 1) -> Link:
    link = await plane.link()
    await link.welcome(epoch)
    return link


async def refusal(link: Link, frame: Dispatch) -> Result:
    """What the agent answers to a frame that it must refuse."""
    await link.show(frame)
    result = (await link.next("result")).result
    assert (result.state, result.code) == (COMMAND_STATE_REJECTED, DATA_LOSS)
    assert result.error.startswith("proof: ")
    return result


def evidence(data: pathlib.Path) -> list[tuple[str, str, str, ConnectResponse, str]]:
    with sqlite3.connect(data / "journal.db") as beside:
        rows = beside.execute("SELECT kind, command, reason, frame, checkpoint FROM refusals").fetchall()
    beside.close()
    return [(kind, id, reason, ConnectResponse.FromString(frame), seen) for kind, id, reason, frame, seen in rows]


async def test_a_wrong_proof_is_refused_reported_kept_and_said_and_the_session_goes_on(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await connect(plane)
        envelope = command("start")
        frame = plane.log.dispatch(envelope, 0)
        frame.inclusion[0] = bytes(32)
        result = await refusal(link, frame)
        assert result.command == envelope.command
        assert result.error == "proof: leaf 20 is not in the tree of 21 with this root"
        ((kind, id, reason, kept, seen),) = evidence(tmp_path)
        assert (kind, id, reason, seen) == ("command", envelope.command, result.error, "")
        assert kept.dispatch == frame
        (said,) = [each for each in caplog.records if each.levelname == "ERROR"]
        assert said.getMessage() == f"start web: refused: {result.error}"
        assert runtime.calls == []
        # The tree that came with it was true: it is seen, and the next command is proven from it.
        await link.dispatch(command("start", "db"))
        assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED
    assert runtime.calls == ["start db"]


@pytest.mark.parametrize("lie", ["another's proof", "another's bytes", "no proof", "no entry", "no tree"])
async def test_a_command_without_its_own_proof_is_refused(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path, lie: str
) -> None:
    plane.log.record(command("stop", "db"))
    frame = plane.log.dispatch(command("start"), 0)
    other = plane.log.dispatch(command("stop"), 0)
    if lie == "another's proof":
        frame, other = other, frame
        frame.envelope = other.envelope
    elif lie == "another's bytes":
        frame.growth.CopyFrom(other.growth)
        frame.envelope = command("kill").SerializeToString(deterministic=True)
    elif lie == "no proof":
        del frame.inclusion[:]
    elif lie == "no entry":
        frame = Dispatch(envelope=frame.envelope, growth=plane.log.growth(0))
    else:
        frame.ClearField("growth")
    async with running(plane, tmp_path, runtime):
        result = await refusal(await connect(plane), frame)
        assert result.command == Envelope.FromString(frame.envelope).command
    assert runtime.calls == []
    assert len(evidence(tmp_path)) == 1


def rewritten(log: HonestLog) -> HonestLog:
    """Another history under the right key: one event is another one."""
    other = HonestLog(private=log.private)
    other.leaves = list(log.leaves)
    other.leaves[3] = bytes(32)
    return other


def shorter(log: HonestLog) -> HonestLog:
    """The log as it was, which then went on."""
    other = HonestLog(private=log.private)
    other.leaves = log.leaves[:5]
    return other


def foreign(log: HonestLog) -> HonestLog:
    """Another log with the same entries."""
    other = HonestLog()
    other.leaves = list(log.leaves)
    return other


@pytest.mark.parametrize("by_command", [True, False])
@pytest.mark.parametrize("lie", [rewritten, shorter, foreign])
async def test_a_server_that_shows_another_tree_is_left_and_does_nothing_any_more(
    plane: ControlPlane,
    runtime: FakeRuntime,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    slow_waits: list[int],
    lie: object,
    by_command: bool,
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await connect(plane)
        await link.show(plane.log.growth(0))
        await link.next("witness_signature")
        before = plane.log.checkpoint(20)
        liar: HonestLog = lie(plane.log)  # type: ignore[operator]
        true, envelope = command("start", "db"), command("start")
        after = plane.log.dispatch(true, 20)
        frame: Dispatch | Growth
        if by_command:
            frame = liar.dispatch(envelope, 20)
            result = await refusal(link, frame)
            assert result.command == envelope.command
        else:
            if liar.size >= 20:
                liar.grow(3)
            frame = liar.growth(20)
            await link.show(frame)
        # Even what is true is not taken from it any more.
        await link.send(ConnectResponse(dispatch=after))
        reason = (await link.next("goodbye")).goodbye.reason
        assert reason.startswith("proof: ")
        await link.end()
        ((kind, _, said, kept, seen),) = evidence(tmp_path)
        assert (kind, said, seen) == ("log", reason, before)
        assert frame in (kept.dispatch, kept.growth)
        assert any(each.levelname == "ERROR" and reason in each.getMessage() for each in caplog.records)
        again = await plane.link()
        assert slow_waits == [1]
        assert again.hello.tree_size == 20, "what it believes is what it was"
        assert not again.hello.held
        assert runtime.calls == []
        # A server that comes back to the truth is served.
        await again.welcome(epoch=2)
        await again.dispatch(true)
        assert (await again.next("result")).result.state == COMMAND_STATE_SUCCEEDED


async def test_the_key_of_first_contact_counts_after_a_new_start_too(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await connect(plane)
        await link.dispatch(command("start"))
        await link.next("result")
    mine, plane.log = plane.log, HonestLog()
    async with running(plane, tmp_path, runtime):
        link = await connect(plane, epoch=2)
        plane.log.grow(30)
        result = await refusal(link, plane.log.dispatch(command("stop"), link.hello.tree_size))
        assert str(plane.log.key) in result.error
        assert str(mine.key) in result.error
    assert runtime.calls == ["start web"]


async def test_a_replay_of_an_old_command_with_a_true_proof_does_nothing(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    start, later = command("start"), command("stop")
    async with running(plane, tmp_path, runtime):
        link = await connect(plane)
        for envelope in (start, later):
            await link.dispatch(envelope)
            assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED
            await link.receipt(envelope.command)
        await link.dispatch(start)
        assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED, "from the journal"
    with sqlite3.connect(tmp_path / "journal.db") as beside:
        beside.execute("UPDATE commands SET receipted_at = 1")
    beside.close()
    async with running(plane, tmp_path, runtime):
        link = await connect(plane, epoch=2)
        # With a second intent of the same bytes as well: it is the command that was done, not the entry.
        for frame in (
            plane.log.dispatch(start, link.seen),
            plane.log.dispatch(later, plane.log.size, entry={"code": 0}),
        ):
            await link.show(frame)
            result = (await link.next("result")).result
            assert result.state == COMMAND_STATE_REJECTED
            assert result.error.startswith("a replay")
        fresh = command("start")
        await link.dispatch(fresh)
        assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED
    assert runtime.calls == ["start web", "stop web", "start web"]


async def test_a_lost_frame_makes_the_agent_connect_anew_and_nothing_is_refused(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path, slow_waits: list[int]
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await connect(plane)
        await link.dispatch(command("start"))
        await link.next("result")
        late = command("stop")
        await link.show(plane.log.dispatch(late, 5))
        again = await connect(plane, epoch=2)
        assert again.hello.tree_size == 21
        await again.dispatch(late)
        assert (await again.next("result")).result.state == COMMAND_STATE_SUCCEEDED
    assert slow_waits == []
    assert evidence(tmp_path) == []


async def test_what_the_agent_saw_is_on_disk_before_it_signs_or_acts(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    gate = runtime.gate("start web")
    async with running(plane, tmp_path, runtime):
        link = await connect(plane)
        await link.dispatch(command("start"))
        await runtime.reached["start web"].wait()
        with sqlite3.connect(tmp_path / "journal.db") as beside:
            ((checkpoint,),) = beside.execute("SELECT value FROM meta WHERE key = 'checkpoint'").fetchall()
        beside.close()
        assert checkpoint == plane.log.checkpoint(21)
        gate.set()
        await link.next("result")


async def test_growth_is_checked_kept_and_cosigned_at_most_so_often(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "COSIGN_EVERY", 0.2)
    sleep, seen = asyncio.sleep, asyncio.Event()

    async def sleep_until_seen(seconds: float) -> None:
        await sleep(seconds)
        if seconds == session.COSIGN_EVERY:
            await seen.wait()

    monkeypatch.setattr(asyncio, "sleep", sleep_until_seen)
    async with running(plane, tmp_path, runtime):
        link = await connect(plane)
        key = note.parse_key(link.hello.witness_key)
        assert (key.name, key.algorithm) == ("acme/dock-1", note.COSIGNATURE)
        at = asyncio.get_running_loop().time()
        await link.show(plane.log.growth(0))
        first = (await link.next("witness_signature")).witness_signature
        for _ in range(5):
            plane.log.grow(7)
            await link.show(plane.log.growth(link.seen))
        # Frames are taken in their order: it has seen all five when this comes back.
        await link.send(ConnectResponse(canary=Canary(nonce="tweet")))
        await link.next("canary_echo")
        seen.set()
        second = (await link.next("witness_signature")).witness_signature
        assert asyncio.get_running_loop().time() - at >= session.COSIGN_EVERY
        assert (first.size, second.size) == (20, 55), "the newest one, and none between"
        for signed in (first, second):
            text = note.Checkpoint(plane.log.key.name, signed.size, signed.root).text()
            assert plane.log.checkpoint(signed.size).startswith(text)
            assert note.verify_note(note.parse_note(f"{text}\n{signed.signature}"), [key])
        await link.send(ConnectResponse(report_full=ReportFull()))
        await link.end()
        assert (await plane.link()).hello.tree_size == 55


async def test_a_log_forgotten_by_hand_is_the_only_way_on_from_a_rollback(
    plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    async with running(plane, tmp_path, runtime):
        link = await connect(plane)
        done = command("start")
        await link.dispatch(done)
        await link.next("result")
    journal = Journal(tmp_path)
    await journal.open()
    assert await journal.forget_log() is not None
    await journal.close()
    plane.log = shorter(plane.log)
    async with running(plane, tmp_path, runtime):
        link = await connect(plane, epoch=2)
        assert link.hello.tree_size == 0
        await link.dispatch(command("stop"))
        assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED
