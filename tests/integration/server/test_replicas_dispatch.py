"""Two replicas on one PostgreSQL: whatever concerns the other one reaches it, by a wake-up or, later, without one."""

import asyncio
import contextlib
import os
import resource
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from lading.v1 import access_pb2, agent_link_pb2, agents_pb2, commands_pb2, containers_pb2
from lading_server import dispatch, identity, takeover, waiters
from lading_server.commands import State
from lading_server.event import Stage
from lading_server.settings import Settings
from lading_server.store import wakeups
from tests.integration.server.commands import COMPLETED, DONE, RECEIVED, STARTED, WEB, ask, refused, stages, state_of
from tests.integration.server.fake_agent import FakeAgent, connected, held, result_of
from tests.integration.server.running import Running, bearer, sign

pytestmark = pytest.mark.timeout(60)

Pair = tuple[Running, Running]
NEVER = 3600.0


@contextlib.asynccontextmanager
async def replicas(settings: Settings) -> AsyncIterator[Pair]:
    async with Running(settings) as one, Running(settings) as other:
        yield one, other


@pytest.fixture
def only_wakeups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself."""
    monkeypatch.setattr(dispatch, "SWEEP_SECONDS", NEVER)
    monkeypatch.setattr(waiters, "POLL_SECONDS", NEVER)
    monkeypatch.setattr(identity, "POLL_SECONDS", NEVER)
    monkeypatch.setattr(takeover, "LOOK_SECONDS", NEVER)


@pytest.fixture
def only_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wake-up is lost."""
    monkeypatch.setattr(wakeups.Wakeups, "send", lambda *_: None)
    monkeypatch.setattr(dispatch, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(waiters, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(identity, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(takeover, "LOOK_SECONDS", 0.05)


@pytest.fixture(params=["only_wakeups", "only_polls"])
def either(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(request.param)


async def moved(to: Running, agent: FakeAgent, *holds: Any) -> FakeAgent:
    """The same agent, connected to another replica while the first one thinks that it still has it."""
    newer = FakeAgent(to, agent.name)
    newer.epoch = agent.epoch
    await newer.connect(holds)
    return newer


async def test_command_reaches_the_agent_of_the_other_replica_and_its_end_the_caller(
    settings_on_postgresql: Settings, either: None
) -> None:
    async with replicas(settings_on_postgresql) as (here, there), connected(there) as agent:
        for _ in range(3):
            asked = asyncio.ensure_future(ask(here))
            command = await agent.dispatched()
            await agent.acknowledge(command)
            await agent.finish(command)
            answer = await asked
            assert answer.name == f"commands/{command}"
            assert answer.state == commands_pb2.COMMAND_STATE_SUCCEEDED
            assert stages(here, command) == DONE


async def test_many_commands_from_both_replicas_come_once_each(
    settings_on_postgresql: Settings, only_wakeups: None
) -> None:
    async with replicas(settings_on_postgresql) as (here, there), connected(there) as agent:
        asked = [asyncio.ensure_future(ask(server)) for server in (here, there) for _ in range(40)]
        seen: list[str] = []
        receipts = 0
        while receipts < len(asked):
            frame = await agent.next()
            agent.seen = frame.seq
            receipts += frame.WhichOneof("frame") == "result_receipt"
            if frame.WhichOneof("frame") == "dispatch":
                seen.append(agent_link_pb2.Envelope.FromString(frame.dispatch.envelope).command)
                await agent.send(result=result_of(seen[-1]))
        assert {f"commands/{command}" for command in seen} == {answer.name for answer in await asyncio.gather(*asked)}
        assert len(set(seen)) == len(seen) == 80


async def test_watcher_at_the_other_replica_sees_the_end(settings_on_postgresql: Settings, either: None) -> None:
    async with replicas(settings_on_postgresql) as (here, there), connected(there) as agent:
        command = (await ask(here, detach=True)).name
        watch = here.stubs.commands.WatchCommand(commands_pb2.WatchCommandRequest(name=command), metadata=here.me)
        await agent.finish(await agent.dispatched())
        async with asyncio.timeout(30):
            states = [found.state async for found in watch]
        assert states[-1] == commands_pb2.COMMAND_STATE_SUCCEEDED


async def test_cancel_at_one_replica_reaches_the_agent_at_the_other(
    settings_on_postgresql: Settings, either: None
) -> None:
    async with replicas(settings_on_postgresql) as (here, there), connected(there) as agent:
        asked = asyncio.ensure_future(ask(here))
        command = await agent.dispatched()
        await agent.acknowledge(command)
        await agent.sync()
        request = commands_pb2.CancelCommandRequest(name=f"commands/{command}")
        await here.stubs.commands.CancelCommand(request, metadata=here.me)
        assert (await agent.take("cancel")).command == command
        await agent.finish(command, state=commands_pb2.COMMAND_STATE_CANCELLED, code=1)
        assert (await refused(asked)).code() is grpc.StatusCode.CANCELLED


async def test_agent_that_moves_takes_its_commands_with_it(settings_on_postgresql: Settings, either: None) -> None:
    async with replicas(settings_on_postgresql) as (here, there), connected(here) as agent:
        asked = [asyncio.ensure_future(ask(here)) for _ in range(3)]
        first, second, third = [await agent.dispatched() for _ in asked]
        await agent.acknowledge(first)
        newer = await moved(there, agent, held(first), held(second, evidence="journal"))
        await newer.receipt(second)
        assert await newer.dispatched() == third, "it never came, and is sent again"
        await newer.finish(first)
        await newer.finish(third)
        names = {answer.name for answer in await asyncio.gather(*asked)}
        assert names == {f"commands/{one}" for one in (first, second, third)}
        assert (await agent.next()) is grpc.aio.EOF
        assert (await agent.ended())[0] is grpc.StatusCode.ABORTED, "the older session is told"
        newer.vanish()


async def test_session_that_was_taken_over_can_neither_command_nor_settle(
    settings_on_postgresql: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a replica that was paused: it does not know yet."""
    monkeypatch.setattr(takeover, "LOOK_SECONDS", NEVER)
    monkeypatch.setattr(takeover.Takeover, "look", nothing)
    async with replicas(settings_on_postgresql) as (stale, current), connected(stale) as agent:
        asked = asyncio.ensure_future(ask(stale))
        command = await agent.dispatched()
        newer = await moved(current, agent, held(command))
        await newer.report("web")
        # What its callers ask goes to the newer one, by its wake-up.
        again = asyncio.ensure_future(ask(stale))
        other = await newer.dispatched()
        # What the agent said on the older stream comes late: without a receipt it goes on saying it.
        await agent.send(result={"command": command, "state": commands_pb2.COMMAND_STATE_FAILED, "code": 13})
        assert (await agent.next()) is grpc.aio.EOF
        assert (await agent.ended())[0] is grpc.StatusCode.ABORTED
        assert state_of(stale, command) == State.ACKNOWLEDGED
        await newer.finish(other)
        await newer.finish(command)
        assert {(await asked).name, (await again).name} == {f"commands/{command}", f"commands/{other}"}
        assert stages(stale, command) == [RECEIVED, STARTED, COMPLETED]
        newer.vanish()


async def nothing(_self: Any) -> None:
    pass


async def test_ban_at_one_replica_ends_the_session_at_the_other(settings_on_postgresql: Settings, either: None) -> None:
    async with replicas(settings_on_postgresql) as (here, there), connected(there) as agent:
        request = agents_pb2.BanAgentRequest(name="agents/dock-1", reason="lost laptop")
        await here.stubs.agents.BanAgent(request, metadata=here.me)
        assert await agent.next() is grpc.aio.EOF
        code, why = await agent.ended()
        assert (code, why) == (grpc.StatusCode.PERMISSION_DENIED, "agent dock-1 is banned")


async def test_role_taken_at_one_replica_is_gone_at_the_other(settings_on_postgresql: Settings, either: None) -> None:
    async with replicas(settings_on_postgresql) as (here, there):
        eve = bearer(sign(settings_on_postgresql, "eve"))
        role = {"subject": "eve", "role": access_pb2.ROLE_VIEWER}
        listing = containers_pb2.ListContainersRequest()
        await here.stubs.access.AssignRole(access_pb2.AssignRoleRequest(**role), metadata=here.me)
        await until(lambda: there.stubs.containers.ListContainers(listing, metadata=eve), ok=True)
        await here.stubs.access.RemoveRole(access_pb2.RemoveRoleRequest(**role), metadata=here.me)
        await until(lambda: there.stubs.containers.ListContainers(listing, metadata=eve), ok=False)


async def until(call: Any, *, ok: bool) -> None:
    """Call again and again until it is answered so."""
    async with asyncio.timeout(30):
        while True:
            code = await call().code()
            assert code in (grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED)
            if (code is grpc.StatusCode.OK) is ok:
                return
            await asyncio.sleep(0.01)


async def test_agent_nobody_has_is_said_to_be_away(settings_on_postgresql: Settings) -> None:
    async with replicas(settings_on_postgresql) as (here, there):
        async with connected(there) as agent:
            await agent.leave()
        assert (await refused(ask(here, name=WEB))).code() is grpc.StatusCode.UNAVAILABLE
        done = there.events(action="agent.connect", stage=Stage.COMPLETED)
        assert len(done) == 1


async def test_wakeups_survive_the_loss_of_their_connection(
    settings_on_postgresql: Settings, only_wakeups: None
) -> None:
    async with replicas(settings_on_postgresql) as (here, there), connected(there) as agent:
        here.write(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'lading wake-ups' AND datname = current_database()"
        )
        asked = asyncio.ensure_future(ask(here))
        await agent.finish(await agent.dispatched())
        assert (await asked).state == commands_pb2.COMMAND_STATE_SUCCEEDED


async def test_inventory_of_a_session_that_was_taken_over_is_not_taken(
    settings_on_postgresql: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "LOOK_SECONDS", NEVER)
    monkeypatch.setattr(takeover.Takeover, "look", nothing)
    async with replicas(settings_on_postgresql) as (stale, current), connected(stale) as agent:
        newer = await moved(current, agent)
        await newer.report("web", "db")
        old = containers_pb2.Container(name="web", id="id-web", state="exited")
        await agent.send(inventory=agent_link_pb2.Inventory(snapshot=True, containers=[old], version=7))
        assert (await agent.next()) is grpc.aio.EOF
        assert (await agent.ended())[0] is grpc.StatusCode.ABORTED
        assert sorted(current.rows("SELECT name, state FROM containers")) == [("db", "running"), ("web", "running")]
        newer.vanish()


async def test_wakeups_come_to_a_process_with_more_than_a_thousand_connections(
    settings_on_postgresql: Settings, only_wakeups: None
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    with contextlib.ExitStack() as files:
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):
            files.callback(os.close, os.dup(0))
        async with replicas(settings_on_postgresql) as (here, there), connected(there) as agent:
            asked = asyncio.ensure_future(ask(here))
            await agent.finish(await agent.dispatched())
            assert (await asked).state == commands_pb2.COMMAND_STATE_SUCCEEDED
