"""What an agent says of a program that an earlier life of it began: what the runtime shows, and nothing else."""

import asyncio
import hashlib
import pathlib

import pytest
from grpc import StatusCode

from lading.v1.agent_link_pb2 import ExecSummary
from lading.v1.commands_pb2 import (
    COMMAND_STATE_CANCELLED,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_SUCCEEDED,
    COMMAND_STATE_UNKNOWN,
    CommandState,
    ExecSpec,
)
from lading.v1.containers_pb2 import LOG_SOURCE_STDOUT, LogSource
from lading_agent import exec_session
from lading_agent.carrier import Call, Carrier
from lading_agent.errors import InDoubt, RuntimeFailure
from lading_agent.exec_session import ExecSession
from lading_agent.journal import Journal
from lading_agent.runtimes import Program, Trace
from tests.unit.agent.fake_runtime import FakeRuntime, NoCarriers
from tests.unit.agent.honest_log import command

RUNNING = Trace(True, True, None, "it still runs")
NOT_BEGUN = Trace(False, False, None, "not begun")
FORGOTTEN = Trace(None, False, None, "forgotten")
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
        ([NOT_BEGUN], COMMAND_STATE_FAILED, StatusCode.ABORTED),
        ([NOT_BEGUN, RUNNING, ENDED], COMMAND_STATE_SUCCEEDED, StatusCode.OK),
        ([RUNNING, RUNNING, ENDED], COMMAND_STATE_SUCCEEDED, StatusCode.OK),
        ([RUNNING], COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED),
        ([FORGOTTEN], COMMAND_STATE_UNKNOWN, StatusCode.UNKNOWN),
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
        assert session.summary == (ExecSummary(still_runs=True) if traces == [RUNNING] else None)


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
    ("hangs", "seen", "state", "code", "words"),
    [
        ("prepare", ENDED, COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, "; nothing was done"),
        ("program", FORGOTTEN, COMMAND_STATE_UNKNOWN, StatusCode.UNKNOWN, ": forgotten"),
        ("program", NOT_BEGUN, COMMAND_STATE_UNKNOWN, StatusCode.UNKNOWN, ": not begun"),
        ("program", RUNNING, COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, ": it still runs"),
    ],
)
async def test_a_runtime_that_hangs_does_not_hold_a_session_beyond_its_time(
    runtime: FakeRuntime,
    tmp_path: pathlib.Path,
    hangs: str,
    seen: Trace,
    state: CommandState.ValueType,
    code: StatusCode,
    words: str,
) -> None:
    journal = Journal(tmp_path)
    await journal.open()
    session = ExecSession(runtime, journal, AtOnce(), command("exec", within=0.05))
    runtime.gate(hangs)
    runtime.traces = [seen]
    async with asyncio.timeout(10):
        verdict, error = await session.run(runtime.by_name["web"], 0.05)
    assert (verdict.state, verdict.code, error) == (state, code, f"it did not begin within 0.05 s{words}")
    assert (session.summary is not None and session.summary.still_runs) == (seen is RUNNING)
    await journal.close()


class Endless:
    """A program that heeds nothing; `ends`: its runtime can end it all the same."""

    def __init__(self, ends: bool) -> None:
        self.ends, self.over = ends, asyncio.Event()
        self.hung_up = False

    async def read(self) -> tuple[LogSource.ValueType, bytes] | None:
        await self.over.wait()
        return None

    async def write(self, data: bytes) -> None: ...

    async def end_input(self) -> None: ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def hang_up(self) -> None:
        self.hung_up = True

    async def end(self) -> int:
        await self.over.wait()
        return 137

    async def close(self) -> None:
        if self.ends:
            self.over.set()


@pytest.mark.parametrize("ends", [True, False])
async def test_a_program_that_heeds_nothing_is_answered_for_soon_after_its_time(
    runtime: FakeRuntime, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(exec_session, "HANG_UP_WITHIN", 0.05)
    program, journal = Endless(ends), Journal(tmp_path)

    async def start_program(id: str, handle: str, spec: ExecSpec) -> Program:
        return program

    runtime.start_program = start_program  # type: ignore[method-assign]
    runtime.traces = [RUNNING]
    await journal.open()
    session = ExecSession(runtime, journal, AtOnce(), command("exec", within=0.05))
    verdict, error = await session.run(runtime.by_name["web"], 0.05)
    assert (verdict.state, verdict.code) == (COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED)
    said = "not done within 0.05 s; it was hung up"
    assert error == (f"{said}, and ended with 137" if ends else f"{said}: it still runs")
    assert program.hung_up
    assert session.summary is not None
    assert (session.summary.still_runs, session.summary.exit_code) == (not ends, 137 if ends else 0)
    await journal.close()


class Cut(Endless):
    """A program that writes something; then nothing is heard of it: its runtime hangs, or breaks off when it is asked
    for the end."""

    def __init__(self, breaks_off: bool) -> None:
        super().__init__(ends=False)
        self.breaks_off, self.pieces = breaks_off, [b"hello"]
        self.told = asyncio.Event()

    async def read(self) -> tuple[LogSource.ValueType, bytes] | None:
        if self.pieces:
            return LOG_SOURCE_STDOUT, self.pieces.pop()
        if not self.breaks_off:
            await self.over.wait()
        return None

    async def end(self) -> int:
        if self.breaks_off:
            raise InDoubt("the engine broke off")
        return await super().end()

    async def hang_up(self) -> None:
        await super().hang_up()
        self.told.set()


async def run_cut(
    runtime: FakeRuntime, folder: pathlib.Path, program: Program, within: float, cancelled: str = ""
) -> tuple[ExecSession, CommandState.ValueType, StatusCode, str]:
    journal = Journal(folder)
    await journal.open()
    envelope = command("exec", within=within)
    envelope.arguments.exec.record_bytes = 3
    session = ExecSession(runtime, journal, AtOnce(), envelope)

    async def start_program(id: str, handle: str, spec: ExecSpec) -> Program:
        if cancelled:
            asyncio.get_running_loop().call_soon(session.hang_up, cancelled)
        return program

    runtime.start_program = start_program  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        verdict, error = await session.run(runtime.by_name["web"], within)
    await journal.close()
    assert session.summary is not None
    seen = (session.summary.output_bytes, session.summary.output_sha256, session.summary.output_head)
    assert seen == (5, hashlib.sha256(b"hello").digest(), b"hel"), "what this life of the agent saw of it"
    return session, verdict.state, verdict.code, error


async def test_a_program_that_ended_because_it_was_hung_up_is_late_also_where_its_end_is_seen_afterwards(
    runtime: FakeRuntime, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_session, "HANG_UP_WITHIN", 0.05)
    runtime.traces = [ENDED]
    session, state, code, error = await run_cut(runtime, tmp_path, Cut(breaks_off=False), 0.05)
    assert (state, code) == (COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED)
    assert error == "not done within 0.05 s; it was hung up, and ended with 3"
    assert session.summary is not None
    assert session.summary.exit_code == 3


async def test_a_program_that_the_runtime_broke_off_from_keeps_what_was_seen_of_it(
    runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    runtime.traces = [RUNNING, ENDED]
    session, state, code, error = await run_cut(runtime, tmp_path, Cut(breaks_off=True), 10)
    assert (state, code, error) == (COMMAND_STATE_SUCCEEDED, StatusCode.OK, "")
    assert session.summary is not None
    assert session.summary.exit_code == 3


async def test_a_program_that_was_cancelled_is_so_also_where_its_end_is_seen_afterwards(
    runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    program = Cut(breaks_off=True)
    end = program.end

    async def end_once_told() -> int:
        await program.told.wait()
        return await end()

    program.end = end_once_told  # type: ignore[method-assign]
    runtime.traces = [ENDED]
    _, state, code, error = await run_cut(runtime, tmp_path, program, 10, "cancelled while it ran")
    assert (state, code) == (COMMAND_STATE_CANCELLED, StatusCode.CANCELLED)
    assert error == "cancelled while it ran; the program was told, and ended with 3"


async def test_what_a_slow_runtime_was_asked_to_begin_is_not_said_to_be_undone(
    runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path)
    await journal.open()
    session = ExecSession(runtime, journal, AtOnce(), command("exec", within=10))

    async def start_program(id: str, handle: str, spec: ExecSpec) -> Program:
        raise InDoubt("a proxy says 504")

    runtime.start_program = start_program  # type: ignore[method-assign]
    runtime.traces = [NOT_BEGUN]
    verdict, error = await session.run(runtime.by_name["web"], 10)
    assert (verdict.state, verdict.code) == (COMMAND_STATE_UNKNOWN, StatusCode.UNKNOWN)
    assert error == "a proxy says 504: not begun"
    await journal.close()


async def test_a_runtime_that_hangs_at_everything_delays_the_answer_by_some_seconds(
    runtime: FakeRuntime, tmp_path: pathlib.Path
) -> None:
    program, held = Endless(ends=False), asyncio.Event()
    give_up = asyncio.get_running_loop().call_later(10, held.set)

    async def close() -> None:
        await held.wait()

    async def start_program(id: str, handle: str, spec: ExecSpec) -> Program:
        return program

    program.close = close  # type: ignore[method-assign]
    runtime.start_program = start_program  # type: ignore[method-assign]
    runtime.gate("trace")
    journal = Journal(tmp_path)
    await journal.open()
    session = ExecSession(runtime, journal, AtOnce(), command("exec", within=0.05))
    # About 2.5 s; the rest is for a busy machine.
    async with asyncio.timeout(8):
        verdict, _ = await session.run(runtime.by_name["web"], 0.05)
    assert (verdict.state, verdict.code) == (COMMAND_STATE_UNKNOWN, StatusCode.UNAVAILABLE)
    give_up.cancel()
    held.set()
    await journal.close()
