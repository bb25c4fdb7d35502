"""The worker with a real journal and a runtime in memory."""

import asyncio
import pathlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from grpc import StatusCode

from lading.v1.agent_link_pb2 import ConnectRequest, Envelope, Result
from lading.v1.commands_pb2 import CommandState
from lading.v1.containers_pb2 import Container
from lading_agent.errors import InDoubt, RuntimeFailure
from lading_agent.inquiry import Inquiry
from lading_agent.journal import Journal, Start
from lading_agent.runtimes import RuntimeEvent, Trace
from lading_agent.witness import Witness
from lading_agent.worker import Worker
from tests.unit.agent.fake_runtime import FakeRuntime, NoCarriers
from tests.unit.agent.honest_log import AGENT, ORGANIZATION, HonestLog, command


@dataclass
class Bench:
    """A worker and what it sends."""

    folder: pathlib.Path
    log: HonestLog = field(default_factory=HonestLog)
    runtime: FakeRuntime = field(default_factory=lambda: FakeRuntime("web", "db"))
    sent: asyncio.Queue[ConnectRequest] = field(default_factory=asyncio.Queue)
    settle_within: float = 0

    async def open(self) -> None:
        self.journal = Journal(self.folder)
        await self.journal.open()
        self.witness = Witness(ORGANIZATION, AGENT, self.journal)
        await self.witness.open()
        inquiry = Inquiry(self.runtime, self.settle_within, patience=0)
        self.worker = Worker(self.witness, self.runtime, self.journal, inquiry, NoCarriers())
        self.worker.send = self.sent.put_nowait

    async def close(self) -> None:
        await self.worker.close()
        await self.journal.close()

    async def crash(self) -> None:
        """As kill -9: what the journal has is what there is."""
        await self.close()
        self.sent = asyncio.Queue()
        self.runtime.gates.clear()
        await self.open()

    async def dispatch(self, envelope: Envelope) -> None:
        await self.worker.receive(self.log.dispatch(envelope, self.witness.size))

    async def result(self, command: str = "") -> Result:
        """The next result, or that of this command; others and acknowledgements are passed over."""
        while True:
            frame = await self.sent.get()
            if frame.WhichOneof("frame") == "result" and command in ("", frame.result.command):
                return frame.result


@pytest.fixture
async def bench(tmp_path: pathlib.Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


def outcome(result: Result) -> tuple[str, str]:
    code = next(code for code in StatusCode if code.value[0] == result.code)
    return CommandState.Name(result.state).removeprefix("COMMAND_STATE_"), code.name


async def test_a_command_is_acknowledged_then_done_then_told(bench: Bench) -> None:
    envelope = command("start")
    await bench.dispatch(envelope)
    first = await bench.sent.get()
    assert first.acknowledge.command == envelope.command
    result = await bench.result()
    assert outcome(result) == ("SUCCEEDED", "OK")
    assert result.evidence == "executed"
    assert result.container_id == bench.runtime.by_name["web"].id
    assert result.container.state == "running"
    assert result.duration.ToNanoseconds() > 0


async def test_commands_of_one_container_keep_their_order(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    for verb in ("start", "pause", "unpause", "stop"):
        await bench.dispatch(command(verb))
    await bench.runtime.reached["start web"].wait()
    assert bench.runtime.calls == ["start web"]
    gate.set()
    assert [outcome(await bench.result())[0] for _ in range(4)] == ["SUCCEEDED"] * 4
    assert bench.runtime.calls == ["start web", "pause web", "unpause web", "stop web"]


async def test_containers_do_not_wait_for_each_other(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    await bench.dispatch(command("start", "web"))
    await bench.dispatch(command("start", "db"))
    assert (await bench.result()).container.name == "db"
    gate.set()
    assert (await bench.result()).container.name == "web"


async def test_a_duplicate_is_answered_from_the_journal(bench: Bench) -> None:
    envelope = command("start")
    await bench.dispatch(envelope)
    first = await bench.result()
    await bench.dispatch(envelope)
    assert (await bench.result()).state == first.state
    assert bench.runtime.calls == ["start web"]


async def test_a_duplicate_of_a_running_command_is_acknowledged_again(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    envelope = command("start")
    await bench.dispatch(envelope)
    await bench.dispatch(envelope)
    acknowledged = [await bench.sent.get(), await bench.sent.get()]
    assert [frame.acknowledge.command for frame in acknowledged] == [envelope.command] * 2
    gate.set()
    await bench.result()
    assert bench.runtime.calls == ["start web"]


async def test_the_same_id_with_other_content_is_rejected(bench: Bench) -> None:
    envelope = command("start")
    await bench.dispatch(envelope)
    await bench.result()
    envelope.container = "db"
    await bench.dispatch(envelope)
    assert outcome(await bench.result()) == ("REJECTED", "ALREADY_EXISTS")
    assert bench.runtime.calls == ["start web"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"agent": "dock-2"}, "INVALID_ARGUMENT"),
        ({"command": "not-a-uuid"}, "INVALID_ARGUMENT"),
        ({"container": "../etc"}, "INVALID_ARGUMENT"),
        ({"container": "we\0b"}, "INVALID_ARGUMENT"),
        ({"container": ""}, "INVALID_ARGUMENT"),
        ({"verb": 99}, "UNIMPLEMENTED"),
    ],
)
async def test_what_is_not_for_this_agent_is_rejected(bench: Bench, change: dict[str, object], code: str) -> None:
    envelope = command("start")
    for key, value in change.items():
        setattr(envelope, key, value)
    await bench.dispatch(envelope)
    assert outcome(await bench.result()) == ("REJECTED", code)
    assert bench.runtime.calls == []
    assert await bench.journal.depth() == 0


async def test_the_runtimes_refusal_is_told_in_its_words(bench: Bench) -> None:
    bench.runtime.by_name["web"].state = "running"
    await bench.dispatch(command("start"))
    result = await bench.result()
    assert outcome(result) == ("FAILED", "FAILED_PRECONDITION")
    assert result.error == "web is already running"


async def test_stopping_what_does_not_run_fails_on_every_runtime(bench: Bench) -> None:
    await bench.dispatch(command("stop"))
    result = await bench.result()
    assert outcome(result) == ("FAILED", "FAILED_PRECONDITION")
    assert result.error == "the container is not running"


async def test_an_unknown_container_fails_and_nothing_is_done(bench: Bench) -> None:
    await bench.dispatch(command("start", "gone"))
    assert outcome(await bench.result()) == ("FAILED", "NOT_FOUND")
    assert bench.runtime.calls == []


async def test_a_precondition_that_does_not_hold_names_what_differs(bench: Bench) -> None:
    envelope = command("start")
    envelope.precondition.state = "exited"
    envelope.precondition.image_digest = "sha256:aa"
    await bench.dispatch(envelope)
    result = await bench.result()
    assert outcome(result) == ("FAILED", "FAILED_PRECONDITION")
    assert result.error == "precondition: state is 'created', not 'exited'"
    assert bench.runtime.calls == []


async def test_a_precondition_is_checked_when_its_turn_comes(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    await bench.dispatch(command("start"))
    second = command("stop")
    second.precondition.state = "running"
    await bench.dispatch(second)
    gate.set()
    assert outcome(await bench.result(second.command)) == ("SUCCEEDED", "OK")


async def test_a_queued_command_can_be_cancelled(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    await bench.dispatch(command("start"))
    second = command("stop")
    await bench.dispatch(second)
    bench.worker.cancel(second.command)
    gate.set()
    assert outcome(await bench.result(second.command)) == ("CANCELLED", "CANCELLED")
    assert bench.runtime.calls == ["start web"]


async def test_cancelling_what_runs_lets_it_end_truthfully(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    envelope = command("start")
    await bench.dispatch(envelope)
    await bench.runtime.reached["start web"].wait()
    bench.worker.cancel(envelope.command)
    gate.set()
    assert outcome(await bench.result()) == ("SUCCEEDED", "OK")


async def test_a_pull_can_be_broken_off(bench: Bench) -> None:
    bench.runtime.gate("pull web:2")
    envelope = command("pull", "")
    envelope.arguments.image = "web:2"
    await bench.dispatch(envelope)
    await bench.runtime.reached["pull web:2"].wait()
    bench.worker.cancel(envelope.command)
    assert outcome(await bench.result()) == ("CANCELLED", "CANCELLED")


class Watched(FakeRuntime):
    """`looked` is set when somebody looks for evidence."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.looked = asyncio.Event()

    async def history(self, name: str, since_ns: int) -> list[RuntimeEvent]:
        self.looked.set()
        return await super().history(name, since_ns)


@pytest.mark.parametrize(
    ("failure", "end"),
    [
        (None, ("SUCCEEDED", "OK")),
        (RuntimeFailure("no such device", StatusCode.INTERNAL), ("FAILED", "INTERNAL")),
        (InDoubt("the engine broke off"), ("FAILED", "ABORTED")),
    ],
)
async def test_an_answer_that_comes_late_counts(
    tmp_path: pathlib.Path, failure: Exception | None, end: tuple[str, str]
) -> None:
    runtime = Watched("web")
    bench = Bench(tmp_path, runtime=runtime, settle_within=30)
    await bench.open()
    gate = runtime.gate("start web")
    await bench.dispatch(command("start", within=0.05))
    await runtime.looked.wait()
    assert bench.sent.qsize() == 1, "it is acknowledged, and not over"
    if failure is not None:
        runtime.failures["start"] = failure
        bench.worker._inquiry = Inquiry(runtime, settle_within=0, patience=0)
    gate.set()
    assert outcome(await bench.result()) == end
    assert runtime.calls == ["start web"]
    await bench.close()


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "kill", "pause", "unpause", "remove", "create"])
async def test_what_the_runtime_may_still_do_did_not_fail(bench: Bench, verb: str) -> None:
    bench.runtime.by_name["web"].state = {"unpause": "paused", "start": "created"}.get(verb, "running")
    name = "new" if verb == "create" else "web"
    bench.runtime.gate(f"{verb} {name}")
    envelope = command(verb, name, within=0.05)
    envelope.arguments.grace.FromSeconds(0)
    await bench.dispatch(envelope)
    result = await bench.result()
    assert outcome(result) == ("UNKNOWN", "UNKNOWN")
    assert result.error.startswith("not done within 0.05 s, and the runtime may still do it: ")
    assert bench.runtime.calls == [f"{verb} {name}"]


async def test_a_pull_whose_time_is_over_is_broken_off(bench: Bench) -> None:
    bench.runtime.gate("pull web:2")
    envelope = command("pull", "", within=0.05)
    envelope.arguments.image = "web:2"
    await bench.dispatch(envelope)
    result = await bench.result()
    assert outcome(result) == ("FAILED", "DEADLINE_EXCEEDED")
    assert result.error == "not done within 0.05 s; it was broken off"


async def test_a_runtime_that_falls_silent_leaves_a_command_whose_time_is_over_unknown(bench: Bench) -> None:
    bench.runtime.gate("start web")
    start = command("start", within=0.05)
    await bench.dispatch(start)
    await bench.runtime.reached["start web"].wait()
    bench.runtime.failures["get"] = RuntimeFailure("connection refused", StatusCode.UNAVAILABLE)
    result = await bench.result(start.command)
    assert outcome(result) == ("UNKNOWN", "UNAVAILABLE")
    assert "connection refused" in result.error


async def test_a_command_whose_time_passed_in_the_queue_is_not_begun(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    await bench.dispatch(command("start"))
    second = command("stop", within=0.001)
    await bench.dispatch(second)
    await bench.runtime.reached["start web"].wait()
    asyncio.get_running_loop().call_later(0.01, gate.set)
    result = await bench.result(second.command)
    assert outcome(result) == ("FAILED", "DEADLINE_EXCEEDED")
    assert "nothing was done" in result.error
    assert bench.runtime.calls == ["start web"]


async def test_a_runtime_that_broke_off_is_asked_what_happened(bench: Bench) -> None:
    bench.runtime.failures["start"] = InDoubt("the engine broke off")
    bench.runtime.late = True
    await bench.dispatch(command("start"))
    result = await bench.result()
    assert outcome(result) == ("SUCCEEDED", "OK")
    assert "StartedAt is now" in result.evidence


async def test_what_no_evidence_decides_is_unknown(bench: Bench) -> None:
    bench.runtime.failures["pull"] = InDoubt("the engine broke off")
    envelope = command("pull", "")
    envelope.arguments.image = "web:2"
    await bench.dispatch(envelope)
    assert outcome(await bench.result())[0] == "UNKNOWN"


async def test_a_runtime_that_is_not_there_fails_commands_and_nothing_was_done(bench: Bench) -> None:
    bench.runtime.failures["get"] = RuntimeFailure("connection refused", StatusCode.UNAVAILABLE)
    await bench.dispatch(command("start"))
    assert outcome(await bench.result()) == ("FAILED", "UNAVAILABLE")
    assert bench.runtime.calls == []


async def test_a_fault_in_the_runtime_does_not_stop_the_lane(bench: Bench) -> None:
    bench.runtime.failures["start"] = ZeroDivisionError("oops")
    await bench.dispatch(command("start"))
    assert outcome(await bench.result()) == ("FAILED", "ABORTED")
    await bench.dispatch(command("pause"))
    assert outcome(await bench.result()) == ("SUCCEEDED", "OK")


async def test_a_result_does_not_wait_for_a_look_that_fails(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    await bench.dispatch(command("start"))
    await bench.runtime.reached["start web"].wait()
    bench.runtime.failures["get"] = ValueError("a time of the year 99999")
    gate.set()
    assert outcome(await bench.result()) == ("SUCCEEDED", "OK")


async def test_a_fault_while_looking_for_evidence_is_told_at_once(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    await bench.dispatch(command("start"))
    await bench.runtime.reached["start web"].wait()
    bench.runtime.failures = {"start": InDoubt("the engine broke off"), "get": ValueError("a time of the year 99999")}
    gate.set()
    result = await bench.result()
    assert outcome(result) == ("UNKNOWN", "INTERNAL")
    assert "year 99999" in result.error
    assert [each.result.state for each in await bench.journal.held()] == [result.state]


async def test_a_drain_waits_once_for_all_that_runs(bench: Bench) -> None:
    bench.runtime.traces = [Trace(True, True, None, "it still runs")]
    session = command("exec")
    await bench.journal.receive(session, start=Start(bench.runtime.by_name["web"]))
    await bench.journal.keep_handle(session.command, "a program")
    await bench.worker.recover()
    bench.runtime.gate("start db")
    await bench.dispatch(command("start", "db"))
    await bench.runtime.reached["start db"].wait()
    began = time.monotonic()
    assert not await bench.worker.drain(1.5, "the agent is stopping")
    assert time.monotonic() - began < 2.9


async def test_a_crash_before_it_began_settles_as_cancelled(bench: Bench) -> None:
    bench.runtime.gate("start web")
    await bench.dispatch(command("start"))
    await bench.runtime.reached["start web"].wait()
    waiting = command("stop")
    await bench.dispatch(waiting)
    await bench.crash()
    await bench.worker.recover()
    result = await bench.result(waiting.command)
    assert outcome(result) == ("CANCELLED", "ABORTED")
    assert result.evidence == "journal"
    assert "stop web" not in bench.runtime.calls


async def test_a_runtime_that_hangs_is_looked_at_for_all_that_had_not_begun_at_once(bench: Bench) -> None:
    waiting = [command("start", name) for name in ("web", "db") for _ in range(20)]
    for envelope in waiting:
        await bench.journal.receive(envelope)
    await bench.crash()
    looking, all_look, answer = 0, asyncio.Event(), asyncio.Event()

    async def get(name: str) -> Container:
        nonlocal looking
        looking += 1
        if looking == len(waiting):
            all_look.set()
        await answer.wait()
        return bench.runtime.by_name[name]

    bench.runtime.get = get  # type: ignore[method-assign]
    recovering = asyncio.create_task(bench.worker.recover())
    async with asyncio.timeout(30):
        await all_look.wait()
    assert not recovering.done()
    answer.set()
    await recovering
    results = {each.command: outcome(each.result) for each in await bench.journal.held()}
    assert results == {envelope.command: ("CANCELLED", "ABORTED") for envelope in waiting}


@pytest.mark.parametrize("took_effect", [True, False])
async def test_a_crash_while_it_ran_is_settled_by_evidence(bench: Bench, took_effect: bool) -> None:
    bench.runtime.gate("start web")
    envelope = command("start")
    await bench.dispatch(envelope)
    await bench.runtime.reached["start web"].wait()
    if took_effect:
        bench.runtime.by_name["web"].state = "running"
        bench.runtime.by_name["web"].started_at.GetCurrentTime()
    await bench.crash()
    await bench.worker.recover()
    result = await bench.result()
    assert outcome(result) == (("SUCCEEDED", "OK") if took_effect else ("FAILED", "ABORTED"))
    assert "StartedAt" in result.evidence
    assert bench.runtime.calls == ["start web"], "a command that began is never executed again"
    (held,) = await bench.journal.held()
    assert held.result.state == result.state


async def test_commands_wait_for_the_evidence_about_the_one_before(bench: Bench) -> None:
    bench.runtime.gate("start web")
    interrupted = command("start")
    await bench.dispatch(interrupted)
    await bench.runtime.reached["start web"].wait()
    await bench.crash()
    await bench.worker.recover()
    after = command("start")
    await bench.dispatch(after)
    assert (await bench.result()).command == interrupted.command
    assert (await bench.result()).command == after.command


async def test_draining_finishes_what_runs_and_begins_nothing(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    running, queued, late = command("start"), command("stop"), command("start", "db")
    await bench.dispatch(running)
    await bench.dispatch(queued)
    await bench.runtime.reached["start web"].wait()
    draining = asyncio.create_task(bench.worker.drain(10, "the agent is stopping"))
    await asyncio.sleep(0)
    await bench.dispatch(late)
    assert outcome(await bench.result()) == ("REJECTED", "UNAVAILABLE")
    gate.set()
    assert await draining
    assert outcome(await bench.result(running.command)) == ("SUCCEEDED", "OK")
    assert outcome(await bench.result(queued.command)) == ("CANCELLED", "CANCELLED")
    assert bench.runtime.calls == ["start web"]


async def test_a_journal_that_cannot_be_written_refuses_and_touches_nothing(bench: Bench) -> None:
    connection = bench.journal._disk.connection
    assert connection is not None
    connection.execute("PRAGMA query_only = ON")
    await bench.dispatch(command("start"))
    result = await bench.result()
    assert outcome(result) == ("REJECTED", "UNAVAILABLE")
    assert "nothing was done" in result.error
    assert bench.runtime.calls == []


async def test_a_made_container_carries_the_command_and_the_agent(bench: Bench) -> None:
    envelope = command("create", "new")
    envelope.arguments.spec.image = "web:1"
    envelope.arguments.spec.labels["lading.command"] = "forged"
    await bench.dispatch(envelope)
    result = await bench.result()
    assert dict(result.container.labels) == {"lading.command": envelope.command, "lading.agent": AGENT}
    assert envelope.arguments.spec.labels["lading.command"] == "forged", "the journalled command is as it was sent"
