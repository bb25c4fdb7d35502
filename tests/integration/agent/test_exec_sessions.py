"""Exec sessions of a whole agent, with a control plane written by hand and real processes."""

import asyncio
import hashlib
import pathlib
from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode

from lading.v1.agent_link_pb2 import Cancel, ConnectResponse, Envelope, ExecSummary, Result
from lading.v1.commands_pb2 import (
    COMMAND_STATE_CANCELLED,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_SUCCEEDED,
    COMMAND_STATE_UNKNOWN,
    ExecSpec,
)
from lading_agent import carrier
from lading_agent.daemon import Daemon
from lading_agent.runtimes.process import ProcessRuntime
from tests.integration.agent.control_plane import BulkLink, ControlPlane, Link, control_plane, make_settings
from tests.unit.agent.honest_log import command

DECLARED = """
[process.web]
command = ["sleep", "1000"]
autocreate = true
exec = true
"""


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with control_plane() as plane:
        yield plane


class Agent:
    """One life of an agent after another, on the same folder."""

    def __init__(self, plane: ControlPlane, folder: pathlib.Path) -> None:
        self._plane, self._folder = plane, folder
        (folder / "processes.toml").write_text(DECLARED)
        self._task: asyncio.Task[None] | None = None
        self.daemon: Daemon | None = None

    async def begin(self, epoch: int = 1) -> Link:
        runtime = ProcessRuntime(self._folder / "runtime", self._folder / "processes.toml")
        self.daemon = Daemon(make_settings(self._plane.address, self._folder / "data"), runtime)
        self._task = asyncio.create_task(self.daemon.run())
        link = await self._plane.link()
        await link.welcome(epoch=epoch)
        return link

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def agent(plane: ControlPlane, tmp_path: pathlib.Path) -> AsyncIterator[Agent]:
    agent = Agent(plane, tmp_path)
    yield agent
    await agent.end()
    # Nobody's process outlives the test.
    runtime = ProcessRuntime(tmp_path / "runtime", tmp_path / "processes.toml")
    await runtime.open()
    for container in await runtime.containers():
        await runtime.remove(container.id, force=True)
    await runtime.close()


async def start_web(link: Link) -> None:
    await link.dispatch(command("start"))
    assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED


def exec_of(script: str, *, within: float | None = None, **spec: object) -> Envelope:
    envelope = command("exec", within=within)
    envelope.arguments.exec.CopyFrom(ExecSpec(command=["sh", "-c", script], **spec))  # type: ignore[arg-type]
    return envelope


async def run(plane: ControlPlane, link: Link, envelope: Envelope) -> BulkLink:
    await link.dispatch(envelope)
    assert (await link.next("acknowledge")).acknowledge.command == envelope.command
    bulk = await plane.bulk()
    assert bulk.session == envelope.command
    return bulk


async def read_all(bulk: BulkLink) -> bytes:
    data = b""
    while (message := await bulk.next()) is not None:
        data += message.data
        if message.HasField("end"):
            assert message.end.code == 0
            bulk.over.set()
            return data
    raise AssertionError("the stream ended without its end")


async def result_of(link: Link, envelope: Envelope) -> Result:
    result = (await link.next("result")).result
    assert result.command == envelope.command
    return result


async def test_a_session_says_its_exit_code_and_the_digest_of_what_it_wrote(plane: ControlPlane, agent: Agent) -> None:
    link = await agent.begin()
    await start_web(link)
    envelope = exec_of("head -c 5 >&2; seq 50000; exit 3", input=True, record_bytes=7)
    bulk = await run(plane, link, envelope)
    await bulk.say(input=b"hello and more")
    data = await read_all(bulk)
    result = await result_of(link, envelope)
    assert (result.state, result.evidence) == (COMMAND_STATE_SUCCEEDED, "executed")
    assert result.exec == ExecSummary(
        exit_code=3,
        input_bytes=14,
        output_bytes=len(data),
        output_sha256=hashlib.sha256(data).digest(),
        output_head=data[:7],
    )
    assert len(data) == 5 + len("".join(f"{number}\n" for number in range(1, 50001)))


async def test_other_commands_for_its_container_go_on_meanwhile(plane: ControlPlane, agent: Agent) -> None:
    link = await agent.begin()
    await start_web(link)
    envelope = exec_of("cat", input=True)
    bulk = await run(plane, link, envelope)
    restart = command("restart")
    await link.dispatch(restart)
    assert (await result_of(link, restart)).state == COMMAND_STATE_SUCCEEDED
    await bulk.say(input_end=True)
    await read_all(bulk)
    assert (await result_of(link, envelope)).state == COMMAND_STATE_SUCCEEDED


async def test_a_stream_that_breaks_is_opened_again_without_loss_or_repeat(plane: ControlPlane, agent: Agent) -> None:
    """Cut again and again, at random places and with what was sent not taken; both ways."""
    link = await agent.begin()
    await start_web(link)
    envelope = exec_of("cat; seq 200000", input=True)
    bulk = await run(plane, link, envelope)
    typed, got, cuts = b"x" * 100_000, b"", 0
    await bulk.say(input=typed[:60_000])
    taken = bulk.first.input_received
    ended = False
    while not ended:
        message = await bulk.next(take=False)
        assert message is not None
        taken = max(taken, message.input_received)
        # A control plane leaves out what it has, and an agent leaves nothing out.
        assert message.offset <= len(got)
        got += message.data[len(got) - message.offset :]
        ended = message.HasField("end")
        if not ended and cuts < 5 and len(got) > 200_000 * (cuts + 1):
            cuts += 1
            await bulk.cut()
            bulk = await plane.bulk()
            assert bulk.session == envelope.command
            taken = bulk.first.input_received
            await bulk.say(input=typed[taken:], input_end=True)
        elif cuts == 0 and len(got) >= 60_000:
            cuts += 1
            await bulk.cut()
            bulk = await plane.bulk()
            taken = bulk.first.input_received
            assert taken == 60_000
            await bulk.say(input=typed[taken:])
            await bulk.say(input_end=True)
        elif message.data:
            await bulk.say(received=len(got))
    bulk.over.set()
    assert cuts == 5
    assert got == typed + "".join(f"{number}\n" for number in range(1, 200_001)).encode()
    result = await result_of(link, envelope)
    assert (result.exec.input_bytes, result.exec.output_bytes) == (len(typed), len(got))
    assert result.exec.output_sha256 == hashlib.sha256(got).digest()


async def test_a_program_waits_while_nothing_of_it_is_taken(plane: ControlPlane, agent: Agent) -> None:
    link = await agent.begin()
    await start_web(link)
    envelope = exec_of("yes | head -c 5000000; echo")
    bulk = await run(plane, link, envelope)
    data = b""
    while len(data) < carrier.KEPT_BYTES_MAX:
        message = await bulk.next(take=False)
        assert message is not None
        data += message.data
    # Nothing more comes, until something is taken: what is kept to be sent again is bounded.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(reading := asyncio.ensure_future(bulk.next())), 0.2)
    await bulk.say(received=len(data))
    message = await reading
    assert message is not None
    data += message.data + await read_all(bulk)
    assert len(data) == 5_000_001


async def test_a_program_whose_caller_goes_away_is_hung_up(plane: ControlPlane, agent: Agent) -> None:
    link = await agent.begin()
    await start_web(link)
    envelope = exec_of("echo ready; sleep 1000")
    bulk = await run(plane, link, envelope)
    assert await bulk.next() is not None
    await bulk.stop()
    result = await result_of(link, envelope)
    assert (result.state, result.exec.exit_code) == (COMMAND_STATE_CANCELLED, 129)
    assert result.error == "its caller went away; the program was told, and ended with 129"


async def test_a_session_can_be_cancelled(plane: ControlPlane, agent: Agent) -> None:
    link = await agent.begin()
    await start_web(link)
    envelope = exec_of("echo ready; sleep 1000")
    bulk = await run(plane, link, envelope)
    assert await bulk.next() is not None
    await link.send(ConnectResponse(cancel=Cancel(command=envelope.command)))
    await read_all(bulk)
    result = await result_of(link, envelope)
    assert (result.state, result.code) == (COMMAND_STATE_CANCELLED, StatusCode.CANCELLED.value[0])


async def test_a_session_ends_when_its_time_is_over(plane: ControlPlane, agent: Agent) -> None:
    link = await agent.begin()
    await start_web(link)
    envelope = exec_of("echo ready; sleep 1000", within=5)
    bulk = await run(plane, link, envelope)
    await read_all(bulk)
    result = await result_of(link, envelope)
    assert (result.state, result.code) == (COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED.value[0])
    assert result.exec.exit_code == 129
    assert result.exec.output_bytes == len("ready\n")


async def test_nothing_runs_when_the_caller_has_gone_before_it_began(
    plane: ControlPlane, agent: Agent, tmp_path: pathlib.Path
) -> None:
    link = await agent.begin()
    await start_web(link)
    plane.bulk_refusal = (StatusCode.NOT_FOUND, "no such bulk session")
    envelope = exec_of(f"touch {tmp_path}/ran")
    await link.dispatch(envelope)
    result = await result_of(link, envelope)
    assert result.state == COMMAND_STATE_CANCELLED
    assert "nothing was done" in result.error
    assert not (tmp_path / "ran").exists()


async def test_a_program_is_never_run_again_after_a_crash(
    plane: ControlPlane, agent: Agent, tmp_path: pathlib.Path
) -> None:
    """Of a plain process nobody knows the exit code then: that is what is said."""
    link = await agent.begin()
    await start_web(link)
    envelope = exec_of(f"echo x >> {tmp_path}/ran; echo ready; sleep 1000")
    bulk = await run(plane, link, envelope)
    assert await bulk.next() is not None
    await agent.end()
    link = await agent.begin(epoch=2)
    (held,) = [each for each in link.hello.held if each.command == envelope.command]
    result = held.result if held.HasField("result") else await result_of(link, envelope)
    assert result.state == COMMAND_STATE_UNKNOWN
    assert (tmp_path / "ran").read_text() == "x\n"
