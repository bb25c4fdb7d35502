"""Calls that are repeated, commands that are cancelled, and secrets in what is asked."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import StatusCode

from lading.v1 import access_pb2, commands_pb2, containers_pb2
from lading_server import dispatch as dispatch_module
from lading_server import errors
from lading_server.event import Outcome, Stage
from lading_server.settings import Settings
from tests.integration.server.commands import DONE, WEB, ask, gone, refused, stages, start
from tests.integration.server.fake_agent import FakeAgent, connected, held
from tests.integration.server.running import Running, bearer, info, running, sign

CANCELLED = commands_pb2.COMMAND_STATE_CANCELLED


@pytest.fixture
async def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 0.02)
    async with running(settings) as made:
        yield made


@pytest.fixture
async def agent(server: Running) -> AsyncIterator[FakeAgent]:
    async with connected(server) as made:
        yield made


async def test_same_request_id_gives_the_first_command(server: Running, agent: FakeAgent) -> None:
    call = ask(server, request_id="once")
    command = await agent.dispatched()
    again = ask(server, request_id="once")
    await agent.finish(command)
    first, second = await call, await again
    third = await ask(server, request_id="once")
    assert first.name == second.name == third.name
    await agent.sync()
    assert len(server.rows("SELECT id FROM commands")) == 1
    assert {one.name for one in (first, second, third)} == {f"commands/{command}"}


async def test_same_request_id_gives_the_first_answer_also_when_the_agent_is_gone(
    server: Running, agent: FakeAgent
) -> None:
    call = ask(server, request_id="once")
    command = await agent.dispatched()
    await agent.finish(command)
    await agent.leave()
    assert (await ask(server, request_id="once")).name == (await call).name


async def test_same_request_id_for_another_call_is_refused(server: Running, agent: FakeAgent) -> None:
    first = await ask(server, request_id="once", detach=True)
    assert await agent.dispatched() == first.name.removeprefix("commands/")
    failure = await refused(ask(server, request_id="once", name="agents/dock-1/containers/other"))
    assert failure.code() is StatusCode.ALREADY_EXISTS
    assert info(failure).metadata["command"] == first.name
    stop = containers_pb2.StopContainerRequest(name=WEB, request_id="once", detach=True)
    failure = await refused(server.stubs.containers.StopContainer(stop, metadata=server.me))
    assert failure.code() is StatusCode.ALREADY_EXISTS


async def test_request_id_belongs_to_its_actor(server: Running, agent: FakeAgent) -> None:
    await assign(server, "bob", "OPERATOR")
    first = await ask(server, request_id="once", detach=True)
    second = await ask(server, request_id="once", detach=True, metadata=bearer(sign(server.settings, "bob")))
    assert first.name != second.name


async def assign(server: Running, subject: str, role: str) -> None:
    request = access_pb2.AssignRoleRequest(subject=subject, role=access_pb2.Role.Value(f"ROLE_{role}"))
    await server.stubs.access.AssignRole(request, metadata=server.me)


def cancel(server: Running, command: str, metadata: Any = None) -> Any:
    request = commands_pb2.CancelCommandRequest(name=f"commands/{command}", reason="enough")
    return server.stubs.commands.CancelCommand(request, metadata=metadata or server.me)


async def test_cancelled_before_it_was_sent_a_command_is_never_sent(server: Running, agent: FakeAgent) -> None:
    await agent.leave()
    command = (await ask(server, detach=True)).name.removeprefix("commands/")
    assert (await cancel(server, command)).state == CANCELLED
    assert stages(server, command) == [DONE[0], (Stage.COMPLETED, Outcome.CANCELLED, 1)]
    await agent.connect()
    await agent.sync()
    assert (await refused(cancel(server, command))).code() is StatusCode.FAILED_PRECONDITION


async def test_cancel_of_a_command_in_flight_is_a_request_to_its_agent(server: Running, agent: FakeAgent) -> None:
    call = ask(server)
    command = await agent.dispatched()
    assert (await cancel(server, command)).state == commands_pb2.COMMAND_STATE_DISPATCHED
    assert (await agent.take("cancel")).command == command
    await agent.finish(command, state=CANCELLED, code=1, error="cancelled before it began")
    assert (await refused(call)).code() is StatusCode.CANCELLED
    assert stages(server, command)[-1] == (Stage.COMPLETED, Outcome.CANCELLED, 1)


async def test_cancel_of_a_command_whose_agent_is_away_reaches_it_when_it_is_back(
    server: Running, agent: FakeAgent
) -> None:
    command = await start(server)
    await agent.dispatched()
    await agent.acknowledge(command)
    await agent.sync()
    await gone(server, agent)
    assert (await cancel(server, command)).state == commands_pb2.COMMAND_STATE_ACKNOWLEDGED
    await agent.connect(held=[held(command)])
    assert (await agent.take("cancel")).command == command
    await agent.finish(command, state=CANCELLED, code=1)


async def test_cancels_that_wait_for_their_end_do_not_hide_those_to_come(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another process was asked to cancel them."""
    monkeypatch.setattr(dispatch_module, "SWEEP_MAX", 2)
    commands = [await start(server) for _ in range(5)]
    for command in commands:
        assert await agent.dispatched() == command
    server.write("UPDATE commands SET cancel_asked_at = 1")
    assert {(await agent.take("cancel")).command for _ in commands} == set(commands)


async def test_cancel_that_overtakes_its_command_is_said_again(server: Running, agent: FakeAgent) -> None:
    command = await start(server)
    await cancel(server, command)
    await agent.dispatched()
    assert (await agent.take("cancel")).command == command
    await agent.acknowledge(command)
    assert (await agent.take("cancel")).command == command
    await agent.finish(command, state=CANCELLED, code=1)


async def test_cancel_is_taken_also_while_the_stream_is_breaking(server: Running, agent: FakeAgent) -> None:
    command = (await ask(server, detach=True)).name.removeprefix("commands/")
    await agent.dispatched()
    session = server.server._agent_link._sessions.get("acme", "dock-1")
    assert session is not None

    async def broken(_frame: Any) -> None:
        raise errors.CallerGone

    session.write = broken
    assert (await cancel(server, command)).state == commands_pb2.COMMAND_STATE_DISPATCHED


async def test_cancel_reaches_no_other_organization_and_nothing_unknown(server: Running, agent: FakeAgent) -> None:
    call = ask(server)
    command = await agent.dispatched()
    globex = bearer(sign(server.settings, organization="globex"))
    assert (await refused(cancel(server, command, globex))).code() is StatusCode.NOT_FOUND
    nothing = command[:-1] + ("0" if command[-1] != "0" else "1")
    assert (await refused(cancel(server, nothing))).code() is StatusCode.NOT_FOUND
    await agent.finish(command)
    await call


SECRET = "hunter2-correct-horse"


async def test_secret_in_the_environment_reaches_the_agent_and_nobody_else(
    server: Running, agent: FakeAgent, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    spec = commands_pb2.ContainerSpec(image="web:1", env={"DB_PASSWORD": SECRET})
    request = containers_pb2.CreateContainerRequest(name=WEB, spec=spec, request_id="once")
    call = server.stubs.containers.CreateContainer(request, metadata=server.me)
    envelope = await agent.envelope()
    assert envelope.arguments.spec.env["DB_PASSWORD"] == SECRET
    get = commands_pb2.GetCommandRequest(name=f"commands/{envelope.command}")
    shown = [await server.stubs.commands.GetCommand(get, metadata=server.me)]
    await agent.finish(envelope.command)
    shown.append(await call)
    shown.append(await server.stubs.commands.GetCommand(get, metadata=server.me))
    listed = await server.stubs.commands.ListCommands(commands_pb2.ListCommandsRequest(), metadata=server.me)
    shown += listed.commands
    for one in shown:
        assert dict(one.arguments.spec.env) == {"DB_PASSWORD": "[redacted]"}
    other = containers_pb2.CreateContainerRequest(
        name=WEB, spec=commands_pb2.ContainerSpec(image="web:1", env={"DB_PASSWORD": "other"}), request_id="once"
    )
    failure = await refused(server.stubs.containers.CreateContainer(other, metadata=server.me))
    assert failure.code() is StatusCode.ALREADY_EXISTS
    assert SECRET not in str(server.events())
    assert SECRET not in caplog.text
    await server.stop(0)
    assert settings.data.joinpath("lading.db").exists()
    assert [table for table in tables(server) if SECRET in str(server.rows(f"SELECT * FROM {table}"))] == []


def tables(server: Running) -> list[str]:
    return [name for (name,) in server.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]


async def test_command_of_a_create_that_waits_keeps_its_secret_only_as_long(server: Running, agent: FakeAgent) -> None:
    await agent.leave()
    spec = commands_pb2.ContainerSpec(image="web:1", env={"DB_PASSWORD": SECRET})
    request = containers_pb2.CreateContainerRequest(name=WEB, spec=spec, detach=True)
    command = (await server.stubs.containers.CreateContainer(request, metadata=server.me)).name.removeprefix(
        "commands/"
    )
    await cancel(server, command)
    assert SECRET not in str(server.rows("SELECT * FROM commands"))
