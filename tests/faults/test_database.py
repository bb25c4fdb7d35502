"""The database goes away: calls fail within 2 s, no agent is sent anything, and service resumes by itself (P1, P2)."""

import asyncio
import pathlib
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from lading.v1 import (
    access_pb2,
    access_pb2_grpc,
    audit_log_pb2,
    audit_log_pb2_grpc,
    containers_pb2,
    containers_pb2_grpc,
)
from tests.faults.reader import check_log
from tests.postgres import Cluster
from tests.process import wait_until
from tests.stack import Stack

WITHIN_SECONDS = 2.0
ATTEMPTS = 5  # of which one is in time, however busy the machine is
CONTAINER = "agents/dock-1/containers/web"
# Says when it was started, so that the test sees whether an agent executed anything.
COUNTED = 'echo started >> "{file}"; exec sleep 1000'

pytestmark = pytest.mark.timeout(180)


class Outage:
    """A server with an agent, on a PostgreSQL that the test takes away."""

    def __init__(self, stack: Stack, postgres: Cluster, url: str, starts: pathlib.Path) -> None:
        self.postgres, self.url = postgres, url
        self.stack = stack
        self.server = stack.start_server()
        self._starts = starts

    @property
    def starts(self) -> int:
        """How often the agent really started the container."""
        return len(self._starts.read_text().splitlines()) if self._starts.exists() else 0


@pytest.fixture
def outage(own_postgres: Cluster, tmp_path: pathlib.Path) -> Iterator[Outage]:
    url = own_postgres.fresh_database()
    starts = tmp_path / "starts"
    with Stack(tmp_path / "stack", url) as stack:
        outage = Outage(stack, own_postgres, url, starts)
        stack.start_agent("dock-1", processes={"web": ["sh", "-c", COUNTED.format(file=starts)]})
        yield outage


def calls(channel: grpc.aio.Channel, metadata: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
    """One call of each sort: read, change, change of an agent."""
    access = access_pb2_grpc.AccessStub(channel)
    log = audit_log_pb2_grpc.AuditLogStub(channel)
    containers = containers_pb2_grpc.ContainersStub(channel)
    role = access_pb2.AssignRoleRequest(subject="bo", role=access_pb2.ROLE_VIEWER)
    restart = containers_pb2.RestartContainerRequest(name=CONTAINER, reason="database is gone")
    options = {"metadata": metadata, "timeout": 20.0}
    return {
        "WhoAmI": lambda: access.WhoAmI(access_pb2.WhoAmIRequest(), **options),
        "ListEvents": lambda: log.ListEvents(audit_log_pb2.ListEventsRequest(page_size=1), **options),
        "AssignRole": lambda: access.AssignRole(role, **options),
        "RestartContainer": lambda: containers.RestartContainer(restart, **options),
    }


async def fails(name: str, call: Callable[[], Awaitable[Any]]) -> float:
    """Assert that the call fails with UNAVAILABLE; how long it took."""
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call()
    seconds = time.monotonic() - began
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE, f"{name}: {failure.value.details()}"
    return seconds


async def fail_in_time(*calls: tuple[str, Callable[[], Awaitable[Any]]]) -> None:
    """Assert that all these calls, made at once, fail with UNAVAILABLE, and in time."""
    slowest = []
    while not slowest or min(slowest) >= WITHIN_SECONDS:
        assert len(slowest) < ATTEMPTS, f"{calls[0][0]}, …: the slowest took {slowest} s to fail"
        slowest.append(max(await asyncio.gather(*(fails(name, call) for name, call in calls))))


async def restarts(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Once, however often that has to be asked."""
    stub = containers_pb2_grpc.ContainersStub(channel)
    request = containers_pb2.RestartContainerRequest(name=CONTAINER, request_id=str(uuid.uuid4()))
    await succeeds(lambda: stub.RestartContainer(request, metadata=metadata, timeout=20.0))


async def succeeds(call: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """Call until it is answered; whatever else than UNAVAILABLE it fails with is raised."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("away", ["stopped", "paused"])
async def test_calls_fail_within_two_seconds_and_service_resumes_without_the_database(
    outage: Outage, away: str
) -> None:
    async with grpc.aio.insecure_channel(outage.stack.address) as channel:
        every = calls(channel, outage.stack.credentials())
        await restarts(channel, outage.stack.credentials())
        wait_until(lambda: outage.starts == 1, "the container has started once")

        outage.postgres.stop() if away == "stopped" else outage.postgres.pause()
        for each in every.items():
            await fail_in_time(each)
        await fail_in_time(*(each for each in every.items() for _ in range(16)))

        outage.postgres.start() if away == "stopped" else outage.postgres.resume()
        for call in (every["WhoAmI"], every["ListEvents"], every["AssignRole"]):
            await succeeds(call)
        assert outage.starts == 1, "a command was sent whose call had failed"
        await restarts(channel, outage.stack.credentials())
        wait_until(lambda: outage.starts == 2, "the container has started again")
    assert outage.server.terminate() == 0
    check_log(outage.url)
