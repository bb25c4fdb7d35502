"""What an agent says of a program that an earlier life of it began: what the runtime shows, and nothing else."""

import asyncio
import pathlib

import pytest
from grpc import StatusCode

from lading.v1.commands_pb2 import (
    COMMAND_STATE_FAILED,
    COMMAND_STATE_SUCCEEDED,
    COMMAND_STATE_UNKNOWN,
    CommandState,
)
from lading_agent import exec_session
from lading_agent.carrier import Call, Carrier
from lading_agent.errors import RuntimeFailure
from lading_agent.exec_session import ExecSession
from lading_agent.journal import Journal
from lading_agent.runtimes import Trace
from tests.unit.agent.fake_runtime import FakeRuntime, NoCarriers
from tests.unit.agent.honest_log import command

RUNNING = Trace(True, True, None, "it still runs")
ENDED = Trace(True, False, 3, "the engine says that it ended")


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime("web")


@pytest.fixture
def session(runtime: FakeRuntime, tmp_path: pathlib.Path) -> ExecSession:
    return ExecSession(runtime, Journal(tmp_path), NoCarriers(), command("exec"))


@pytest.mark.parametrize(
    ("traces", "state", "code"),
    [
        ([Trace(False, False, None, "never begun")], COMMAND_STATE_FAILED, StatusCode.ABORTED),
        ([RUNNING, RUNNING, ENDED], COMMAND_STATE_SUCCEEDED, StatusCode.OK),
        ([RUNNING], COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED),
        ([Trace(None, False, None, "forgotten")], COMMAND_STATE_UNKNOWN, StatusCode.UNKNOWN),
    ],
)
async def test_the_verdict_is_what_the_runtime_shows(
    runtime: FakeRuntime, session: ExecSession, traces: list[Trace], state: CommandState.ValueType, code: StatusCode
) -> None:
    runtime.traces = traces
    verdict, error = await session.investigate("handle", 0.3, "the agent ended")
    assert (verdict.state, verdict.code) == (state, code)
    assert bool(error) == (state != COMMAND_STATE_SUCCEEDED)
    if state == COMMAND_STATE_SUCCEEDED:
        assert session.summary is not None
        assert (session.summary.exit_code, session.summary.output_sha256) == (3, b""), "its output was not seen"
    else:
        assert session.summary is None


async def test_without_a_handle_it_was_never_begun(session: ExecSession) -> None:
    verdict, error = await session.investigate("", None, "the agent ended")
    assert verdict.state == COMMAND_STATE_FAILED
    assert error == "the agent ended; nothing was done"


async def test_a_runtime_that_does_not_answer_leaves_it_unknown(
    runtime: FakeRuntime, session: ExecSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_session, "PATIENCE", 0.1)
    runtime.failures["trace"] = RuntimeFailure("the engine does not answer", StatusCode.UNAVAILABLE)
    verdict, _ = await session.investigate("handle", None, "the agent ended")
    assert (verdict.state, verdict.code) == (COMMAND_STATE_UNKNOWN, StatusCode.UNAVAILABLE)


async def test_a_runtime_that_hangs_leaves_it_unknown(
    runtime: FakeRuntime, session: ExecSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_session, "PATIENCE", 0.1)
    monkeypatch.setattr(exec_session, "LOOK_WITHIN", 0.05)
    runtime.gate("trace")
    async with asyncio.timeout(30):
        verdict, error = await session.investigate("handle", None, "the agent ended")
    assert (verdict.state, verdict.code) == (COMMAND_STATE_UNKNOWN, StatusCode.UNAVAILABLE)
    assert "did not answer within" in error


class AtOnce:
    """Whoever asked is there at once, and says nothing."""

    def carry(self, session: str) -> Carrier:
        def connect() -> Call:
            raise AssertionError("nobody runs it")

        carrier = Carrier(session, connect)
        carrier._attached.set()
        return carrier


@pytest.mark.parametrize(
    ("hangs", "state", "words"),
    [
        ("prepare", COMMAND_STATE_FAILED, "it did not begin within 0.05 s; nothing was done"),
        ("program", COMMAND_STATE_UNKNOWN, "it did not begin within 0.05 s: forgotten"),
    ],
)
async def test_a_runtime_that_hangs_does_not_hold_a_session_beyond_its_time(
    runtime: FakeRuntime, tmp_path: pathlib.Path, hangs: str, state: CommandState.ValueType, words: str
) -> None:
    journal = Journal(tmp_path)
    await journal.open()
    session = ExecSession(runtime, journal, AtOnce(), command("exec", within=0.05))
    runtime.gate(hangs)
    runtime.traces = [Trace(None, False, None, "forgotten")]
    async with asyncio.timeout(10):
        verdict, error = await session.run(runtime.by_name["web"], 0.05)
    assert (verdict.state, error) == (state, words)
    await journal.close()
