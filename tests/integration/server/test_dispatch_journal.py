"""What the agent's journal says when it comes back, and what a lost lease leaves open."""

from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError

from lading.v1 import commands_pb2, containers_pb2
from lading_server import dispatch as dispatch_module
from lading_server.clock import now
from lading_server.commands import State
from lading_server.event import Outcome, Stage
from lading_server.services import agent_link as agent_link_module
from lading_server.settings import Settings
from lading_server.store import commands as commands_store
from tests.integration.server.commands import COMPLETED, RECEIVED, STARTED, WEB, gone, stages, start, state_of
from tests.integration.server.fake_agent import FakeAgent, connected, held
from tests.integration.server.running import Running, running

SUCCEEDED, FAILED = commands_pb2.COMMAND_STATE_SUCCEEDED, commands_pb2.COMMAND_STATE_FAILED
UNKNOWN = commands_pb2.COMMAND_STATE_UNKNOWN
ABANDONED = (Stage.ABANDONED, Outcome.UNKNOWN, StatusCode.UNKNOWN.value[0])


@pytest.fixture
async def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 0.02)
    async with running(settings) as made:
        yield made


@pytest.fixture
async def agent(server: Running) -> AsyncIterator[FakeAgent]:
    async with connected(server) as made:
        yield made


async def test_result_that_the_journal_holds_settles_its_command(server: Running, agent: FakeAgent) -> None:
    command = await start(server)
    await agent.dispatched()
    await agent.acknowledge(command)
    await agent.sync()
    await gone(server, agent)
    await agent.connect(held=[held(command, state=SUCCEEDED)])
    await agent.receipt(command)
    assert stages(server, command) == [RECEIVED, STARTED, COMPLETED]


async def test_command_in_the_journal_without_a_result_is_started_and_still_in_flight(
    server: Running, agent: FakeAgent
) -> None:
    command = await start(server)
    await agent.dispatched()
    await gone(server, agent)
    await agent.connect(held=[held(command)])
    await agent.sync()
    assert stages(server, command) == [RECEIVED, STARTED]
    await agent.finish(command)
    assert stages(server, command) == [RECEIVED, STARTED, COMPLETED]


async def test_command_that_never_reached_the_journal_is_sent_again(server: Running, agent: FakeAgent) -> None:
    commands = [await start(server) for _ in range(3)]
    for _ in commands:
        await agent.dispatched()
    await gone(server, agent)
    commands.append(await start(server))
    await agent.connect()
    assert [await agent.dispatched() for _ in commands] == commands, "in their order, and those that waited after them"
    for command in commands:
        await agent.finish(command)
        assert stages(server, command) == [RECEIVED, COMPLETED]


async def test_command_that_never_reached_the_journal_fails_when_its_time_has_passed(
    server: Running, agent: FakeAgent
) -> None:
    command = await start(server, deliver_within={"seconds": 60})
    await agent.dispatched()
    await gone(server, agent)
    server.write("UPDATE commands SET deliver_by = 0")
    await agent.connect()
    await agent.sync()
    assert stages(server, command) == [RECEIVED, (Stage.COMPLETED, Outcome.FAILURE, StatusCode.UNAVAILABLE.value[0])]


async def test_acknowledged_command_that_the_journal_lost_is_unknown_until_there_is_evidence(
    server: Running, agent: FakeAgent
) -> None:
    command = await start(server)
    await agent.dispatched()
    await agent.acknowledge(command)
    await agent.sync()
    await gone(server, agent)
    await agent.connect()
    await agent.sync()
    assert stages(server, command) == [RECEIVED, STARTED, ABANDONED]
    await gone(server, agent)
    await agent.connect()
    await agent.sync()
    assert stages(server, command) == [RECEIVED, STARTED, ABANDONED], "which is said once"
    await agent.finish(command, evidence="inspected")
    assert stages(server, command) == [RECEIVED, STARTED, ABANDONED, COMPLETED]


async def test_command_in_flight_is_unknown_when_the_agent_comes_with_another_journal(
    server: Running, agent: FakeAgent
) -> None:
    command = await start(server)
    await agent.dispatched()
    await gone(server, agent)
    await agent.connect(journal="journal-2")
    await agent.sync()
    assert stages(server, command) == [RECEIVED, ABANDONED]
    assert state_of(server, command) is State.UNKNOWN


async def test_agent_that_cannot_tell_says_so_and_may_know_later(server: Running, agent: FakeAgent) -> None:
    request = containers_pb2.StartContainerRequest(name=WEB)
    call = server.stubs.containers.StartContainer(request, metadata=server.me, timeout=20)
    command = await agent.dispatched()
    await agent.finish(command, state=UNKNOWN, code=2, error="the engine went away in between")
    with pytest.raises(AioRpcError) as unknown:
        await call
    assert unknown.value.code() is StatusCode.UNKNOWN
    await agent.finish(command)
    assert stages(server, command) == [RECEIVED, ABANDONED, COMPLETED]


async def test_journal_that_holds_what_nobody_knows_is_told_to_forget_it(server: Running) -> None:
    agent = FakeAgent(server)
    nothing = "01990000-0000-7000-8000-000000000001"
    await agent.connect(held=[held(nothing, state=SUCCEEDED), held("\0", state=FAILED, code=2)])
    assert (await agent.receipt(nothing)).index == -1
    await agent.receipt("\0")
    await agent.sync()
    agent.vanish()


async def test_life_of_commands_is_the_same_on_postgresql(
    settings_on_postgresql: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 0.02)
    async with running(settings_on_postgresql) as server:
        agent = FakeAgent(server)
        await agent.connect()
        await agent.report("web")
        done, lost, unseen = [await start(server) for _ in range(3)]
        assert [await agent.dispatched() for _ in range(3)] == [done, lost, unseen]
        await agent.acknowledge(done)
        await agent.acknowledge(lost)
        await agent.sync()
        await gone(server, agent)
        waits = await start(server)
        expires = await start(server, deliver_within={"nanos": 1_000_000})
        await server.event(operation=expires, stage=Stage.COMPLETED)
        await agent.connect(held=[held(done, state=FAILED, code=5, error="No such container: web")])
        await agent.receipt(done)
        assert [await agent.dispatched() for _ in range(2)] == [unseen, waits]
        for command in (unseen, waits):
            await agent.finish(command)
            assert stages(server, command) == [RECEIVED, COMPLETED]
        assert stages(server, done)[-1] == (Stage.COMPLETED, Outcome.FAILURE, 5)
        assert stages(server, lost)[-1] == ABANDONED
        assert stages(server, expires)[-1] == (Stage.COMPLETED, Outcome.DEADLINE, 4)
        agent.vanish()


# -- leases


@pytest.fixture
def short_lease(server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that has ended counts as alive for no time at all."""
    monkeypatch.setattr(agent_link_module, "LEASE_BEATS", 0)
    for session in server.server._agent_link._sessions.all():
        session.lease = 0.0


async def test_lost_lease_makes_commands_unknown_and_their_result_settles_them(
    server: Running, agent: FakeAgent, short_lease: None
) -> None:
    request = containers_pb2.StartContainerRequest(name=WEB)
    call = server.stubs.containers.StartContainer(request, metadata=server.me, timeout=20)
    command = await agent.dispatched()
    await agent.acknowledge(command)
    await agent.sync()
    await gone(server, agent)
    with pytest.raises(AioRpcError) as unknown:
        await call
    assert unknown.value.code() is StatusCode.UNKNOWN
    assert stages(server, command) == [RECEIVED, STARTED, ABANDONED]
    await agent.connect(held=[held(command)])
    await agent.finish(command)
    assert stages(server, command) == [RECEIVED, STARTED, ABANDONED, COMPLETED]
    assert [event.superseded_by for event in server.events(operation=command)][-1] is None


async def test_clock_that_jumps_makes_nothing_unknown_while_its_agent_is_heard(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = await start(server)
    await agent.dispatched()
    await agent.acknowledge(command)
    await agent.sync()
    dispatcher = server.server._agent_link._dispatcher
    monkeypatch.setattr(dispatcher, "_clock", lambda: now() + 3600 * 1_000_000)
    await dispatcher._sweep()
    assert stages(server, command) == [RECEIVED, STARTED]
    (session,) = server.server._agent_link._sessions.all()
    session.heard_at -= session.lease + 1  # it was not heard for so long
    await dispatcher._sweep()
    assert stages(server, command) == [RECEIVED, STARTED, ABANDONED]


async def test_lease_of_an_older_session_marks_nothing_of_the_newer_one(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep saw the lease end, then the agent came back, then the sweep acts on what it saw."""
    command = await start(server)
    await agent.dispatched()
    dispatcher = server.server._agent_link._dispatcher
    lost = await dispatcher._reader.read(commands_store.list_lost, 2**62, commands_store.FIRST, 10)
    assert [row.id for row in lost] == [command]
    await gone(server, agent)
    await agent.connect(held=[held(command)])
    monkeypatch.setattr(commands_store, "list_lost", lambda *_: lost)
    await dispatcher._sweep()
    assert stages(server, command) == [RECEIVED, STARTED]
