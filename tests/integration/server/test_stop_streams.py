"""A server that stops does not wait for streams that end only when their callers leave."""

import asyncio
import contextlib
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import EOF, AioRpcError

from lading.v1 import agents_pb2, audit_log_pb2, containers_pb2
from lading_server.event import Outcome, Stage
from lading_server.settings import Settings
from tests.integration.server.commands import WEB
from tests.integration.server.fake_agent import connected
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
