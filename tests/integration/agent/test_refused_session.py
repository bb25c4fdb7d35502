"""A session that the server refuses at the moment when the agent writes its first frame."""

import asyncio
import pathlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from lading.v1.agent_link_pb2 import ConnectResponse
from lading.v1.agent_link_pb2_grpc import AgentLinkServicer, add_AgentLinkServicer_to_server
from lading_agent.daemon import Daemon
from lading_agent.session import Ending
from tests.integration.agent.control_plane import make_settings
from tests.unit.agent.fake_runtime import FakeRuntime


class Refusing(AgentLinkServicer):
    """Refuses every agent, once `ready` is set."""

    def __init__(self) -> None:
        self.asked, self.ready, self.refused = threading.Event(), threading.Event(), threading.Event()

    def Connect(self, requests: Any, context: Any) -> Iterator[ConnectResponse]:
        context.add_callback(self.refused.set)
        self.asked.set()
        self.ready.wait(30)
        self.ready.clear()
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "banned")
        yield ConnectResponse()

    def Bulk(self, requests: Any, context: Any) -> Any:
        raise AssertionError("it was let in")


class Busy(FakeRuntime):
    """Its title, which Hello has, takes until the server has refused; meanwhile the agent hears nothing."""

    def __init__(self, server: Refusing) -> None:
        super().__init__()
        self.server = server
        self.connecting = False

    async def title(self) -> str:
        if self.connecting:
            await asyncio.to_thread(self.server.asked.wait, 30)
            self.server.asked.clear()
            self.server.ready.set()
            self.server.refused.wait(30)
            self.server.refused.clear()
        self.connecting = True
        return "busy"


async def test_it_is_read_as_what_it_is(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endings: asyncio.Queue[Ending] = asyncio.Queue()

    def wait(self: Daemon, ending: Ending) -> float:
        endings.put_nowait(ending)
        return 0.0

    monkeypatch.setattr(Daemon, "_wait", wait)
    refusing = Refusing()
    server = grpc.server(ThreadPoolExecutor(2))
    add_AgentLinkServicer_to_server(refusing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    daemon = Daemon(make_settings(f"127.0.0.1:{port}", tmp_path), Busy(refusing))
    task = asyncio.create_task(daemon.run())
    for _ in range(10):
        ending = await endings.get()
        assert (ending.reason, ending.slow) == ("the server does not let this agent in: banned", True)
    daemon.stop()
    refusing.ready.set()
    await task
    await asyncio.to_thread(server.stop(None).wait)
