"""Canaries, clones, storms of connects, gaps, and streams that end in time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError

from lading.v1 import agent_link_pb2, agents_pb2
from lading_server import sessions as sessions_module
from lading_server.event import Outcome, Stage
from lading_server.services import clones, upkeep
from lading_server.sessions import Session
from lading_server.settings import Settings
from tests.integration.server.commands import refused, start
from tests.integration.server.fake_agent import FakeAgent, connected
from tests.integration.server.running import ORGANIZATION, Running, detail, info, running

CANARY = ["canary"]


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Running]:
    async with running(settings) as made:
        yield made


async def shown(server: Running, name: str = "dock-1") -> agents_pb2.Agent:
    request = agents_pb2.GetAgentRequest(name=f"agents/{name}")
    return await server.stubs.agents.GetAgent(request, metadata=server.me)  # type: ignore[no-any-return]


# -- canaries


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "GROWTH_SECONDS", 3600.0)


def hasten(server: Running) -> Session:
    """Canaries go out every 0.3 s from here on, not before: an agent that connects passes them over."""
    session = server.server._agent_link._sessions.get(ORGANIZATION, "dock-1")
    assert session is not None
    session.heartbeat = 0.3
    return session


@pytest.mark.usefixtures("quick")
async def test_agent_that_brings_its_canaries_back_is_acting(server: Running) -> None:
    async with connected(server, capabilities=CANARY) as agent:
        session = hasten(server)
        for _ in range(3):
            await agent.echo()
        session.heartbeat = sessions_module.HEARTBEAT_SECONDS
        await agent.sync()
        found = await shown(server)
        assert (found.connected, found.hearing, found.acting) == (True, True, True)
        assert found.acted_at.seconds > 0


@pytest.mark.usefixtures("quick")
async def test_agent_that_hears_and_does_not_act_is_told_apart(server: Running) -> None:
    async with connected(server, capabilities=CANARY) as agent:
        hasten(server)
        await agent.take("canary")
        async with asyncio.timeout(30):
            while (found := await shown(server)).acting or not found.hearing:
                await agent.send(heartbeat=agent_link_pb2.Heartbeat())
        assert (found.connected, found.hearing) == (True, True)


@pytest.mark.usefixtures("quick")
async def test_agent_that_does_not_hear_is_told_apart(server: Running) -> None:
    async with connected(server, capabilities=CANARY) as agent:
        hasten(server)
        await agent.next()  # and its number is not noted: no frame acknowledges it
        async with asyncio.timeout(30):
            while (found := await shown(server)).hearing:
                await agent.send(heartbeat=agent_link_pb2.Heartbeat())
        assert found.connected


@pytest.mark.usefixtures("quick")
async def test_agent_that_knows_no_canaries_is_never_called_not_acting(server: Running) -> None:
    async with connected(server) as agent:
        session = server.server._agent_link._sessions.get(ORGANIZATION, "dock-1")
        assert session is not None
        session.pulse.canary_at = 0.0
        assert (await shown(server)).acting
        agent.vanish()


async def test_other_process_shows_what_the_session_wrote_down(server: Running) -> None:
    async with connected(server, capabilities=CANARY):
        found = await shown(server)
        session = server.server._agent_link._sessions.get(ORGANIZATION, "dock-1")
        assert session is not None
        await server.server._agent_link.leases.write([session], connected=True)
        del server.server._agent_link._sessions._by_agent[(ORGANIZATION, "dock-1")]
        elsewhere = await shown(server)
        assert (elsewhere.connected, elsewhere.hearing, elsewhere.acting) == (True, True, True)
        assert found.epoch == elsewhere.epoch
        server.write("UPDATE agent_sessions SET acted_at = 1, heard_at = 1")
        elsewhere = await shown(server)
        assert (elsewhere.connected, elsewhere.hearing, elsewhere.acting) == (True, False, False)


# -- clones


def boots(server: Running) -> list[Any]:
    return [event.details["data"]["boots"] for event in server.events(action="agent.clone")]


async def ending(agent: FakeAgent) -> StatusCode:
    """How its stream ends, once all that was sent before is read."""
    assert await agent.next() is grpc.aio.EOF
    return (await agent.ended())[0]


async def is_refused_as_clone(agent: FakeAgent) -> bool:
    with pytest.raises(AioRpcError) as refusal:
        await agent.call.read()
    failure = refusal.value
    return failure.code() is StatusCode.FAILED_PRECONDITION and info(failure).reason == "AGENT_CLONED"


async def test_two_that_live_at_once_are_quarantined_until_an_operator_lifts_it(
    any_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clones, "ANSWER_SECONDS", 30.0)
    async with running(any_settings) as server:
        first, second = FakeAgent(server), FakeAgent(server)
        await first.connect(boot_id="boot-1", capabilities=CANARY)
        await first.sync()
        second.open()
        hello = agent_link_pb2.Hello(journal_id="journal-2", boot_id="boot-2", capabilities=CANARY)
        await second.send(hello=hello)
        await first.echo()  # it is alive
        assert await is_refused_as_clone(second)
        assert await ending(first) is StatusCode.FAILED_PRECONDITION
        assert boots(server) == [["boot-1", "boot-2"]]
        (event,) = server.events(action="agent.clone")
        assert (event.stage, event.outcome, event.target) == (Stage.COMPLETED, Outcome.FAILURE, "dock-1")
        assert (await shown(server)).quarantined
        first.open()
        await first.send(hello=agent_link_pb2.Hello(journal_id="journal-1", boot_id="boot-1"))
        assert await is_refused_as_clone(first)
        with pytest.raises(AioRpcError) as refusal:
            await start(server)
        assert "quarantined" in (refusal.value.details() or "")
        lift = agents_pb2.BanAgentRequest(name="agents/dock-1", lift=True, reason="the copy is gone")
        assert not (await server.stubs.agents.BanAgent(lift, metadata=server.me)).quarantined
        (lifted,) = server.events(action="agent.ban")
        assert lifted.details["diff"] == [{"op": "replace", "path": "/quarantined", "value": False, "was": True}]
        await first.connect(boot_id="boot-1", capabilities=CANARY)
        first.vanish()


async def test_one_that_comes_back_after_another_took_its_place_is_a_clone(server: Running) -> None:
    first, second = FakeAgent(server), FakeAgent(server)
    await first.connect(boot_id="boot-1")
    await second.connect(boot_id="boot-2", journal="journal-2")
    assert await ending(first) is StatusCode.ABORTED, "it may be an agent that was restarted with new data"
    assert boots(server) == []
    first.open()
    await first.send(hello=agent_link_pb2.Hello(journal_id="journal-1", boot_id="boot-1"))
    assert await is_refused_as_clone(first)
    assert await ending(second) is StatusCode.FAILED_PRECONDITION
    assert boots(server) == [["boot-1", "boot-2"]]


async def test_agent_that_was_restarted_with_new_data_is_no_clone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its older session still seems to live, for the machine lost its power; it just does not answer."""
    monkeypatch.setattr(clones, "ANSWER_SECONDS", 0.05)
    old, new = FakeAgent(server), FakeAgent(server)
    await old.connect(boot_id="boot-1", capabilities=CANARY)
    await new.connect(boot_id="boot-2", journal="journal-2", capabilities=CANARY)
    again = FakeAgent(server)
    await again.connect(boot_id="boot-3", journal="journal-2", capabilities=CANARY)
    assert boots(server) == []
    again.vanish()


async def test_agent_that_loses_its_connection_is_no_clone(server: Running) -> None:
    agent = FakeAgent(server)
    for boot in ("boot-1", "boot-1", "boot-2", "boot-2", "boot-3"):
        await agent.connect(boot_id=boot)
    assert boots(server) == []
    agent.vanish()


# -- storms


async def test_storm_of_connects_is_shed_with_turns_and_recorded_in_aggregate(settings: Settings) -> None:
    async with running(replace(settings, connects_per_second=0.01, connects_burst=2)) as server:
        storm = [FakeAgent(server, f"dock-{number}") for number in range(120)]
        for agent in storm[:2]:
            await agent.connect()

        async def shed(agent: FakeAgent) -> AioRpcError:
            agent.open()
            with pytest.raises(AioRpcError) as refusal:
                await agent.call.read()
            return refusal.value

        failures = await asyncio.gather(*(shed(agent) for agent in storm[2:]))
        assert {failure.code() for failure in failures} == {StatusCode.RESOURCE_EXHAUSTED}
        assert {info(failure).reason for failure in failures} == {"CONNECTS_SHED"}
        turns = [detail(failure, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() for failure in failures]
        assert min(turns) >= 1000
        recorded = server.events(action="agent.connect", code=8)
        assert sum(event.count for event in recorded) == 118
        assert len(recorded) < 118, "beyond a burst they share events"
        assert len(server.events(action="agent.connect", stage=Stage.STARTED)) == 2, "the shed ones cost no more"
        for agent in storm[:2]:
            agent.vanish()


# -- streams that end


async def test_stream_that_is_old_is_asked_to_connect_anew(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "ROUND_SECONDS", 0.01)
    async with running(replace(settings, stream_seconds=0.05)) as server:
        agent = FakeAgent(server)
        await agent.connect()
        drain = await agent.take("drain")
        assert drain.reason == "the stream is old"
        command = await start(server)  # it waits for the next stream
        server.server._agent_link._stream_seconds = 3600.0  # which is not old before it is given the command
        await agent.leave()
        await agent.connect()
        assert await agent.dispatched() == command
        agent.vanish()


async def test_agent_that_does_not_follow_a_drain_is_cut_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "DRAINED_SECONDS", 0.05)
    async with running(replace(settings, stream_seconds=0.05)) as server:
        agent = FakeAgent(server)
        await agent.connect()
        await agent.take("drain")
        assert (await agent.ended())[0] is StatusCode.UNAVAILABLE


async def test_agents_of_a_server_that_stops_are_given_slots(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "DRAIN_SECONDS", 30.0)
    async with running(replace(settings, connects_per_second=2.0)) as server, contextlib.AsyncExitStack() as stack:
        fleet = [FakeAgent(server, f"dock-{number}") for number in range(4)]
        for agent in fleet:
            await agent.connect()
            stack.callback(agent.vanish)
            await agent.sync()  # a session is there only after its Welcome
        await server.server._agent_link.drain("the server stops")
        waits = [(await agent.take("drain")).reconnect_after.ToMilliseconds() for agent in fleet]
        assert waits == [1000, 1500, 2000, 2500], "by rank, so that each keeps its slot"


async def test_heartbeats_are_fewer_when_many_are_expected(server: Running) -> None:
    server.server._agent_link._sessions.expected = 9_000
    agent = FakeAgent(server)
    welcome = await agent.connect()
    assert (welcome.heartbeat.seconds, welcome.lease.seconds) == (30, 90)
    agent.vanish()


# -- gaps


async def test_gap_ends_the_session_and_the_next_one_begins_clean_twice_in_a_row(server: Running) -> None:
    agent = FakeAgent(server)
    await agent.connect()
    for _ in range(2):
        command = await start(server)
        assert await agent.dispatched() == command
        agent.seq += 1  # a frame is lost
        await agent.send(heartbeat=agent_link_pb2.Heartbeat())
        code, message = await agent.ended()
        assert code is StatusCode.INVALID_ARGUMENT
        assert "connect anew" in message
        await agent.connect(last_server_seq=agent.seen)
        assert await agent.dispatched() == command, "it is not in the journal, so it is sent again"
        await agent.finish(command)
    await agent.sync()
    assert len({row[0] for row in server.rows("SELECT id FROM commands WHERE settled_at IS NOT NULL")}) == 2
    agent.vanish()


async def test_ban_lift_of_what_is_not_quarantined_changes_nothing_more(server: Running) -> None:
    async with connected(server):
        lift = agents_pb2.BanAgentRequest(name="agents/dock-1", lift=True)
        assert not (await server.stubs.agents.BanAgent(lift, metadata=server.me)).quarantined
        (lifted,) = server.events(action="agent.ban")
        assert lifted.details["diff"] == []


async def test_unknown_agent_cannot_be_banned(server: Running) -> None:
    ban = agents_pb2.BanAgentRequest(name="agents/nobody")
    assert (await refused(server.stubs.agents.BanAgent(ban, metadata=server.me))).code() is StatusCode.NOT_FOUND
