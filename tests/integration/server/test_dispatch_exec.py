"""Exec sessions: a command like any other, whose bytes flow both ways while it runs."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import EOF, AioRpcError

from lading.v1 import agent_link_pb2, commands_pb2, containers_pb2
from lading_server import errors, waiters
from lading_server import relay as relays
from lading_server.commands import State
from lading_server.event import Outcome, Stage
from lading_server.services import execs
from lading_server.sessions import WINDOW
from lading_server.settings import Settings
from lading_server.store import commands as commands_store
from lading_server.store.reader import Reader
from tests.integration.server.commands import WEB, start, state_of
from tests.integration.server.fake_agent import FakeAgent, connected
from tests.integration.server.running import Running, bearer, detail, info, running, sign

Request = containers_pb2.ExecContainerRequest
Up = agent_link_pb2.BulkRequest


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Running]:
    async with running(settings) as made:
        yield made


@pytest.fixture
async def agent(server: Running) -> AsyncIterator[FakeAgent]:
    async with connected(server) as made:
        yield made


async def begin(server: Running, *, metadata: Any = None, env: Any = None, **fields: Any) -> Any:
    """Begin a session of `cat` in `web`."""
    call = server.stubs.containers.ExecContainer(metadata=metadata or server.me, timeout=30)
    spec = commands_pb2.ExecSpec(command=["cat", "-u"], input=True, env=env, record_bytes=9)
    await call.write(
        Request(start=containers_pb2.ExecStart(**{"name": WEB, "reason": "tests", "spec": spec, **fields}))
    )
    return call


async def opened(agent: FakeAgent) -> tuple[agent_link_pb2.Envelope, Any]:
    """The command as its agent gets it, and the stream that it opens for it."""
    envelope = await agent.envelope()
    await agent.acknowledge(envelope.command)
    bulk = await agent.bulk(envelope.command)
    assert not (await bulk.read()).received
    return envelope, bulk


def summary(output: bytes, **more: Any) -> agent_link_pb2.ExecSummary:
    digest = hashlib.sha256(output).digest()
    return agent_link_pb2.ExecSummary(output_bytes=len(output), output_sha256=digest, **more)


async def test_session_is_a_recorded_command_whose_bytes_flow_both_ways(server: Running, agent: FakeAgent) -> None:
    call = await begin(server, env={"TOKEN": "secret"})
    envelope, bulk = await opened(agent)
    name = (await call.read()).command
    assert name == f"commands/{envelope.command}"
    assert envelope.verb == commands_pb2.VERB_EXEC
    assert envelope.arguments.exec.env["TOKEN"] == "secret"
    assert envelope.arguments.exec.record_bytes == 0, "the server's to say, not the caller's"
    assert envelope.execute_within.seconds == 3600
    await call.write(Request(input=b"typed"))
    assert (await bulk.read()).input == b"typed"
    await call.write(Request(resize=commands_pb2.TerminalSize(rows=40, columns=100)))
    assert (await bulk.read()).resize.rows == 40
    await bulk.write(Up(data=b"out", source=containers_pb2.LOG_SOURCE_STDERR, input_received=5))
    output = (await call.read()).output
    assert (output.data, output.source) == (b"out", containers_pb2.LOG_SOURCE_STDERR)
    await call.done_writing()
    assert (await bulk.read()).input_end
    await bulk.write(Up(end=agent_link_pb2.BulkEnd()))
    await agent.finish(envelope.command, exec=summary(b"out", exit_code=3, input_bytes=5))
    assert (await call.read()).exit_code == 3
    assert await call.read() is EOF
    received, started, completed = server.events(operation=envelope.command)
    assert (received.stage, started.stage, completed.stage) == (Stage.RECEIVED, Stage.STARTED, Stage.COMPLETED)
    assert received.details["request"]["spec"]["command"] == ["cat", "-u"]
    assert received.details["request"]["spec"]["env"] == {"TOKEN": "[redacted]"}
    assert "secret" not in str([event.details for event in server.events()])
    digest = hashlib.sha256(b"out").hexdigest()
    wanted = {"exit_code": 3, "input_bytes": 5, "output_bytes": 3, "output_sha256": digest}
    assert completed.details["data"]["exec"] == wanted
    assert completed.outcome is Outcome.SUCCESS
    asked = await server.event(action="container.exec", operation=received.parent, stage=Stage.COMPLETED)
    assert (asked.target, asked.details["request"]["reason"]) == ("dock-1/web", "tests")
    found = await server.stubs.commands.GetCommand(commands_pb2.GetCommandRequest(name=name), metadata=server.me)
    assert found.exit_code == 3
    assert found.arguments.exec.env["TOKEN"] == "[redacted]"


async def test_session_outlives_an_outage_of_the_database(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = await begin(server)
    envelope, bulk = await opened(agent)
    assert (await call.read()).command
    asked, back, read = asyncio.Event(), asyncio.Event(), Reader.read

    async def fail(self: Reader, fn: Any, *args: Any) -> Any:
        if fn is commands_store.get and not back.is_set():
            asked.set()
            raise errors.StoreUnavailable
        return await read(self, fn, *args)

    monkeypatch.setattr(Reader, "read", fail)
    monkeypatch.setattr(waiters, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(execs, "RETRY_SECONDS", 0.01)
    async with asyncio.timeout(30):
        await asked.wait()
    back.set()
    await bulk.write(Up(data=b"out"))
    assert (await call.read()).output.data == b"out"
    await bulk.write(Up(end=agent_link_pb2.BulkEnd()))
    await agent.finish(envelope.command, exec=summary(b"out", exit_code=0))
    assert (await call.read()).WhichOneof("frame") == "exit_code"
    assert await call.read() is EOF


async def test_output_that_comes_after_the_end_is_known_is_not_lost(server: Running, agent: FakeAgent) -> None:
    call = await begin(server)
    envelope, bulk = await opened(agent)
    await agent.finish(envelope.command, exec=summary(b"late"))
    await server.event(operation=envelope.command, stage=Stage.COMPLETED)
    await bulk.write(Up(data=b"late"))
    await bulk.write(Up(end=agent_link_pb2.BulkEnd()))
    assert (await call.read()).command
    assert (await call.read()).output.data == b"late"
    assert (await call.read()).WhichOneof("frame") == "exit_code"


async def test_input_is_sent_again_from_where_the_agent_has_it(server: Running, agent: FakeAgent) -> None:
    call = await begin(server)
    envelope, bulk = await opened(agent)
    await call.read()
    await call.write(Request(input=b"first second "))
    await call.write(Request(resize=commands_pb2.TerminalSize(rows=9)))
    await call.write(Request(input=b"third"))
    await call.write(Request(input_end=True))
    got = b""
    while len(got) < len(b"first second third"):
        got += (await bulk.read()).input
    bulk.cancel()
    again = await agent.bulk(envelope.command, input_received=6)
    got, ended, rows = b"", False, 0
    while not ended:
        told = await again.read()
        got, ended, rows = got + told.input, told.input_end, rows or told.resize.rows
    assert (got, rows) == (b"second third", 9)


async def test_caller_that_writes_more_than_the_agent_takes_has_to_wait(server: Running, agent: FakeAgent) -> None:
    call = await begin(server)
    _, bulk = await opened(agent)
    await call.read()
    piece, count, taken = b"x" * 65536, 100, 0

    async def write() -> None:
        for _ in range(count):
            await call.write(Request(input=piece))

    writing = asyncio.ensure_future(write())
    while taken < relays.INPUT_BYTES_MAX:
        taken += len((await bulk.read()).input)
    assert taken <= relays.INPUT_BYTES_MAX + len(piece)
    assert not writing.done()
    while taken < count * len(piece):
        await bulk.write(Up(input_received=taken))
        taken += len((await bulk.read()).input)
    await writing


async def test_command_that_fails_before_it_begins_is_the_callers_error(server: Running, agent: FakeAgent) -> None:
    call = await begin(server)
    command = await agent.dispatched()
    failed = {"state": commands_pb2.COMMAND_STATE_FAILED, "code": 9, "error": "Container web is not running"}
    await agent.finish(command, **failed)
    assert (await call.read()).command
    with pytest.raises(AioRpcError) as failure:
        await call.read()
    assert (failure.value.code(), failure.value.details()) == (StatusCode.FAILED_PRECONDITION, failed["error"])
    assert info(failure.value).metadata["command"] == f"commands/{command}"


async def test_program_that_cannot_be_run_has_an_exit_code_all_the_same(server: Running, agent: FakeAgent) -> None:
    call = await begin(server)
    command = await agent.dispatched()
    ran = agent_link_pb2.ExecSummary(exit_code=127)
    await agent.finish(command, state=commands_pb2.COMMAND_STATE_FAILED, code=9, error="no such file", exec=ran)
    await call.read()
    with pytest.raises(AioRpcError) as failure:
        await call.read()
    assert info(failure.value).metadata["exit_code"] == "127"


async def test_agent_is_told_when_the_caller_goes_away(server: Running, agent: FakeAgent) -> None:
    call = await begin(server)
    envelope, bulk = await opened(agent)
    await call.read()
    call.cancel()
    assert (await bulk.read()).stop
    await bulk.done_writing()
    assert await bulk.code() is StatusCode.OK
    ended = await server.event(action="container.exec", stage=Stage.COMPLETED)
    assert ended.outcome is Outcome.CANCELLED
    assert state_of(server, envelope.command) is State.ACKNOWLEDGED, "only the agent knows what became of the program"


async def test_command_is_cancelled_when_the_caller_goes_away_before_it_began(
    server: Running, agent: FakeAgent
) -> None:
    call = await begin(server)
    command = await agent.dispatched()
    await call.read()
    call.cancel()
    assert (await agent.take("cancel")).command == command


async def test_sessions_take_no_place_of_the_window(server: Running, agent: FakeAgent) -> None:
    """As many as the window and one more are open, and a command for the same container goes on at once."""
    calls = [await begin(server) for _ in range(WINDOW + 1)]
    for _ in calls:
        await agent.acknowledge(await agent.dispatched())
    command = await start(server)
    assert await agent.dispatched() == command
    await agent.finish(command)
    for call in calls:
        call.cancel()


async def test_session_does_not_begin_twice_under_one_request_id(server: Running, agent: FakeAgent) -> None:
    first = await begin(server, request_id="one")
    envelope, _ = await opened(agent)
    await first.read()
    again = await begin(server, request_id="one")
    with pytest.raises(AioRpcError) as failure:
        await again.read()
    assert failure.value.code() is StatusCode.ALREADY_EXISTS
    assert info(failure.value).metadata["command"] == f"commands/{envelope.command}"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (Request(input=b"x"), "start"),
        (Request(start=containers_pb2.ExecStart(name=WEB)), "start.spec"),
        (Request(start=containers_pb2.ExecStart(name="web", spec=commands_pb2.ExecSpec(command=["a"]))), "start.name"),
        (Request(start=containers_pb2.ExecStart(name=WEB, spec=commands_pb2.ExecSpec())), "start.spec.command"),
    ],
)
async def test_first_message_is_checked_like_every_request(
    server: Running, agent: FakeAgent, message: Any, field: str
) -> None:
    call = server.stubs.containers.ExecContainer(metadata=server.me, timeout=30)
    await call.write(message)
    with pytest.raises(AioRpcError) as failure:
        await call.read()
    assert failure.value.code() is StatusCode.INVALID_ARGUMENT
    violations = detail(failure.value, error_details_pb2.BadRequest).field_violations
    assert [each.field for each in violations] == [field]
    refused = await server.event(action="container.exec", stage=Stage.COMPLETED)
    assert refused.outcome is Outcome.FAILURE


async def test_wrong_message_later_on_ends_the_session(server: Running, agent: FakeAgent) -> None:
    call = await begin(server)
    _, bulk = await opened(agent)
    await call.read()
    await call.write(Request(resize=commands_pb2.TerminalSize(rows=-1)))
    with pytest.raises(AioRpcError) as failure:
        await call.read()
    assert failure.value.code() is StatusCode.INVALID_ARGUMENT
    assert (await bulk.read()).stop


async def test_session_needs_its_permission(server: Running, agent: FakeAgent) -> None:
    call = await begin(server, metadata=bearer(sign(server.settings, "eve")))
    with pytest.raises(AioRpcError) as failure:
        await call.read()
    assert failure.value.code() is StatusCode.PERMISSION_DENIED
