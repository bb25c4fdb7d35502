"""A server that stops does not wait for streams that end only when their callers leave."""

import asyncio
import contextlib
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import EOF, AioRpcError

from lading.v1 import agent_link_pb2, agents_pb2, audit_log_pb2, containers_pb2
from lading_server import errors
from lading_server.event import Outcome, Stage
from lading_server.interceptors.context import Context
from lading_server.settings import Settings
from tests.integration.server.commands import WEB
from tests.integration.server.fake_agent import connected
from tests.integration.server.ledgers import busy
from tests.integration.server.running import Running, running

MUCH_LONGER_SECONDS = 120.0


def open_stream(server: Running, method: str) -> Any:
    if method == "TailEvents":
        return server.stubs.audit_log.TailEvents(audit_log_pb2.TailEventsRequest(), metadata=server.me)
    if method == "WatchAgents":
        return server.stubs.agents.WatchAgents(agents_pb2.WatchAgentsRequest(), metadata=server.me)
    follow = containers_pb2.StreamContainerLogsRequest(name=WEB, follow=True)
    return server.stubs.containers.StreamContainerLogs(follow, metadata=server.me)


ACTIONS = {"TailEvents": "audit.tail", "WatchAgents": "agent.watch", "StreamContainerLogs": "container.logs"}


@pytest.mark.parametrize("method", ACTIONS)
async def test_stream_without_an_end_is_told_to_go_on_elsewhere(settings: Settings, method: str) -> None:
    async with running(settings) as server:
        async with connected(server):
            stream = open_stream(server, method)
            await stream.initial_metadata()  # before there is anything to say
        async with asyncio.timeout(MUCH_LONGER_SECONDS / 2):
            await server.stop(MUCH_LONGER_SECONDS)
        with contextlib.suppress(AioRpcError):
            while await stream.read() is not EOF:
                pass
        assert await stream.code() is StatusCode.UNAVAILABLE
        started, ended = server.events(action=ACTIONS[method])
        assert started.stage is Stage.STARTED
        assert ended.summary == (Stage.COMPLETED, Outcome.FAILURE, StatusCode.UNAVAILABLE.value[0])


@pytest.mark.parametrize("method", ACTIONS)
async def test_stop_while_a_stream_sends_its_headers_ends_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Their sending was cut off: then grpc sent them once more with the status, which core refused, and the call had
    no end."""
    send = Context.send_initial_metadata

    async def stop_meanwhile(self: Context, metadata: Any) -> None:
        asyncio.get_running_loop().call_soon(server.server._audit.stop_in, MUCH_LONGER_SECONDS)
        await send(self, metadata)

    async with running(settings) as server, connected(server):
        monkeypatch.setattr(Context, "send_initial_metadata", stop_meanwhile)
        stream = open_stream(server, method)
        async with asyncio.timeout(MUCH_LONGER_SECONDS / 2):
            assert await stream.code() is StatusCode.UNAVAILABLE


async def test_session_that_said_goodbye_is_not_ended_once_more(settings: Settings) -> None:
    """It was cut off while its end was being recorded, and its agent waited for a status for ever."""
    async with running(settings) as server, connected(server) as agent:
        (session,) = server.server._agent_link._sessions.all()
        async with busy(server.ledger):
            await agent.send(goodbye=agent_link_pb2.Goodbye(reason="bye"))
            async with asyncio.timeout(MUCH_LONGER_SECONDS / 2):
                while not session.closed:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            session.end(errors.Superseded())
        assert (await agent.ended())[0] is StatusCode.OK


@pytest.mark.parametrize("end", [StatusCode.OK, StatusCode.NOT_FOUND])
async def test_stream_that_has_ended_is_answered_though_the_server_stops(settings: Settings, end: StatusCode) -> None:
    """It was cut off while its end was being recorded: then gRPC did not end the call, and the stop waited for it."""
    async with running(settings) as server, connected(server) as agent:
        stream = open_stream(server, "StreamContainerLogs")
        bulk = await agent.bulk((await agent.take("open_bulk")).session)
        await bulk.write(agent_link_pb2.BulkRequest(data=b"one\n"))
        await stream.read()
        async with busy(server.ledger):
            await bulk.write(agent_link_pb2.BulkRequest(end=agent_link_pb2.BulkEnd(code=end.value[0])))
            await server.waiting(2)  # the ends of both streams
            server.server._audit.stop_in(MUCH_LONGER_SECONDS)
        async with asyncio.timeout(MUCH_LONGER_SECONDS / 2):
            assert await stream.code() is end
        ended = server.events(action="container.logs", stage=Stage.COMPLETED)
        assert [event.code for event in ended] == [end.value[0]]
