"""Asking for commands, and what the database says of them."""

from typing import Any

import pytest
from grpc.aio import EOF, AioRpcError

from lading.v1 import containers_pb2
from lading_server.commands import State
from lading_server.event import Outcome, Stage
from tests.integration.server.fake_agent import FakeAgent
from tests.integration.server.running import Running

WEB = "agents/dock-1/containers/web"
RECEIVED = (Stage.RECEIVED, Outcome.PENDING, 0)
STARTED = (Stage.STARTED, Outcome.PENDING, 0)
COMPLETED = (Stage.COMPLETED, Outcome.SUCCESS, 0)
DONE = [RECEIVED, STARTED, COMPLETED]


def ask(server: Running, *, timeout: float = 20, metadata: Any = None, **fields: Any) -> Any:
    """Begin the call StartContainer of `web`."""
    request = containers_pb2.StartContainerRequest(**{"name": WEB, "reason": "tests", **fields})
    return server.stubs.containers.StartContainer(request, metadata=metadata or server.me, timeout=timeout)


async def refused(call: Any) -> AioRpcError:
    """How a call fails, which it must."""
    with pytest.raises(AioRpcError) as failure:
        await call
    return failure.value


async def drain(stream: Any) -> None:
    """Read a stream to its end: its status comes after all that was sent on it."""
    while await stream.read() is not EOF:
        pass


async def start(server: Running, **fields: Any) -> str:
    """Have `web` started, without waiting for the end; returns the command's id."""
    name: str = (await ask(server, detach=True, **fields)).name
    return name.removeprefix("commands/")


def stages(server: Running, command: str) -> list[tuple[Stage, Outcome, int]]:
    return [event.summary for event in server.events(operation=command)]


def state_of(server: Running, command: str) -> State:
    ((state,),) = server.rows(f"SELECT state FROM commands WHERE id = '{command}'")
    return State(state)


async def gone(server: Running, agent: FakeAgent) -> None:
    """The agent vanishes, and the server knows."""
    before = len(server.events(action="agent.connect", stage=Stage.COMPLETED))
    agent.vanish()
    await server.until(lambda: len(server.events(action="agent.connect", stage=Stage.COMPLETED)) > before)
