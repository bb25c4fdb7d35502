"""What the agent signs of a command's end, and the canary that comes back by the way commands take."""

import asyncio
import pathlib
from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode

from lading.transparency.result import InvalidResult, Statement, verify_result
from lading.v1.agent_link_pb2 import Result
from lading.v1.commands_pb2 import COMMAND_STATE_FAILED, COMMAND_STATE_UNKNOWN, CommandState
from lading_agent import reports
from lading_agent.errors import RuntimeFailure
from lading_agent.evidence import Verdict
from lading_agent.reports import Reports
from lading_agent.worker import WINDOW
from tests.unit.agent.honest_log import AGENT, ORGANIZATION, command
from tests.unit.agent.log_lines import listening
from tests.unit.agent.test_worker import Bench, outcome


@pytest.fixture
async def bench(tmp_path: pathlib.Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


def statement_of(result: Result) -> Statement:
    state = CommandState.Name(result.state).removeprefix("COMMAND_STATE_")
    return Statement(
        ORGANIZATION,
        AGENT,
        result.command,
        state,
        result.code,
        result.error,
        result.evidence,
        result.container_id,
    )


async def test_every_end_is_signed_as_it_was_sent(bench: Bench) -> None:
    made = command("create", "new")
    made.arguments.spec.image = "web:1"
    bench.runtime.failures["pause"] = RuntimeFailure("x" * 10_000)
    other = command("start")
    other.agent = "another"
    for envelope in (made, command("start"), command("pause"), command("start", "nobody"), other):
        await bench.dispatch(envelope)
        result = await bench.result()
        verify_result(statement_of(result), result.signature, bench.witness.key)
        result.code += 1
        with pytest.raises(InvalidResult):
            verify_result(statement_of(result), result.signature, bench.witness.key)


@pytest.mark.parametrize(
    ("verdict", "seconds"),
    [
        (Verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, "executed"), 0.9),
        (Verdict(COMMAND_STATE_UNKNOWN, StatusCode.UNAVAILABLE, "no answer"), 3.5),
    ],
)
async def test_a_session_whose_time_is_over_is_answered_for_without_a_runtime_that_hangs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, seconds: float
) -> None:
    monkeypatch.setattr(reports, "LOOK_AFTER_WITHIN", 60.0)

    async def hang(name: str) -> object:
        return await asyncio.Event().wait()

    bench.runtime.get = hang  # type: ignore[method-assign,assignment]
    told = Reports(bench.witness, bench.runtime, bench.journal, bench.sent.put_nowait)
    async with asyncio.timeout(10):
        await told.settle(command("exec", within=1), verdict, "late", seconds=seconds, container_id="abc")
    assert not (await bench.result()).HasField("container")


async def test_a_made_containers_id_is_in_what_is_signed(bench: Bench) -> None:
    made = command("create", "new")
    made.arguments.spec.image = "web:1"
    await bench.dispatch(made)
    result = await bench.result()
    assert result.container_id == bench.runtime.by_name["new"].id == result.container.id
    (held,) = await bench.journal.held()
    assert (held.result.container_id, held.result.signature) == (result.container_id, result.signature)


async def test_an_end_found_by_evidence_is_signed_too(bench: Bench) -> None:
    bench.runtime.gate("start web")
    envelope = command("start")
    await bench.dispatch(envelope)
    await bench.runtime.reached["start web"].wait()
    await bench.crash()
    await bench.worker.recover()
    result = await bench.result(envelope.command)
    verify_result(statement_of(result), result.signature, bench.witness.key)


async def test_a_duplicate_is_answered_with_the_same_signature(bench: Bench) -> None:
    envelope = command("start")
    await bench.dispatch(envelope)
    first = await bench.result()
    await bench.dispatch(envelope)
    assert (await bench.result()).signature == first.signature


async def test_a_first_command_is_journalled_as_begun_in_one_write(bench: Bench) -> None:
    gate = bench.runtime.gate("start web")
    envelope = command("start")
    await bench.dispatch(envelope)
    (entry,) = await bench.journal.unfinished()
    assert (entry.stage, entry.before) == ("executing", bench.runtime.by_name["web"])
    await bench.dispatch(command("stop"))
    assert [each.stage for each in await bench.journal.unfinished()] == ["executing", "received"]
    gate.set()
    assert [outcome(await bench.result())[0] for _ in range(2)] == ["SUCCEEDED"] * 2


async def test_a_runtime_that_is_slow_to_look_delays_no_other_frame(bench: Bench) -> None:
    held = asyncio.Event()
    get = bench.runtime.get

    async def slow(name: str) -> object:
        await held.wait()
        return await get(name)

    bench.runtime.get = slow  # type: ignore[method-assign,assignment]
    await bench.dispatch(command("start"))
    (entry,) = await bench.journal.unfinished()
    assert entry.stage == "received"
    held.set()
    assert outcome(await bench.result()) == ("SUCCEEDED", "OK")


async def test_a_canary_comes_back(bench: Bench) -> None:
    bench.worker.bring_back("tweet")
    assert (await bench.sent.get()).canary_echo.nonce == "tweet"


async def test_a_canary_stays_behind_an_executor_that_hangs_and_the_newest_comes_back(bench: Bench) -> None:
    gates = [bench.runtime.gate(f"pull {number}") for number in range(WINDOW)]
    for number in range(WINDOW):
        envelope = command("pull", "")
        envelope.arguments.image = str(number)
        await bench.dispatch(envelope)
    for reached in list(bench.runtime.reached.values()):
        await reached.wait()
    for nonce in ("first", "second", "third"):
        bench.worker.bring_back(nonce)
    await bench.journal.depth()
    frames = [bench.sent.get_nowait() for _ in range(bench.sent.qsize())]
    assert {frame.WhichOneof("frame") for frame in frames} == {"acknowledge"}
    for gate in gates:
        gate.set()
    while (frame := await bench.sent.get()).WhichOneof("frame") != "canary_echo":
        pass
    assert frame.canary_echo.nonce == "third"


async def test_a_canary_stays_behind_a_journal_that_cannot_be_read(bench: Bench) -> None:
    connection = bench.journal._disk.connection
    assert connection is not None
    connection.execute("ALTER TABLE commands RENAME TO elsewhere")
    with listening("a canary does not come back") as heard:
        bench.worker.bring_back("tweet")
        await heard.wait()
    assert bench.sent.empty()
