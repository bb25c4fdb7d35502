"""Callers that call without pause, and note what each call was answered."""

import asyncio
import contextlib
import pathlib
import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from lading.v1 import (
    access_pb2,
    access_pb2_grpc,
    audit_log_pb2,
    audit_log_pb2_grpc,
    commands_pb2,
    containers_pb2,
    containers_pb2_grpc,
)
from tests.faults.reader import rows
from tests.process import wait_until

CHANNELS = 8
TIMEOUT_SECONDS = 20.0
UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass
class Answers:
    """What came back, by operation: the code, and the id of the domain event that the call asked to record.

    A call that the server itself answered with UNAVAILABLE is not in `codes`: it promises nothing but that state and
    record agree.
    """

    codes: dict[str, int] = field(default_factory=dict)
    recorded: dict[str, str] = field(default_factory=dict)


class Callers(ABC):
    """`count` callers at once."""

    def __init__(self, address: str, token: str, count: int) -> None:
        self.answers = Answers()
        self.options: dict[str, Any] = {
            "metadata": (("authorization", f"Bearer {token}"),),
            "timeout": TIMEOUT_SECONDS,
        }
        self._address = address
        self._count = count
        self._answered = asyncio.Condition()

    @abstractmethod
    async def call(self, channel: grpc.aio.Channel, number: int) -> None:
        """One call, or a few, of caller `number`."""

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call until this is left; raises what a caller did not expect."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200))
        channels = [grpc.aio.insecure_channel(self._address, options=options) for _ in range(CHANNELS)]
        tasks = [
            asyncio.create_task(self._repeat(channels[number % CHANNELS], number)) for number in range(self._count)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            for channel in channels:
                await channel.close()
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end

    async def answered(self, more: int) -> None:
        """Wait until so many more calls were answered."""
        goal = len(self.answers.codes) + more
        async with asyncio.timeout(60), self._answered:
            await self._answered.wait_for(lambda: len(self.answers.codes) >= goal)

    async def note(self, call: "grpc.aio.UnaryUnaryCall[Any, Any]", event: str = "") -> grpc.StatusCode:
        """Wait for the call's end and note it. `event`: id of the domain event that it asked to record."""
        code = await call.code()
        operation = str(dict(await call.trailing_metadata() or ()).get("lading-operation", ""))
        if operation and event:
            self.answers.recorded[operation] = event
        if operation and code not in UNANSWERED:
            number: int = code.value[0]
            self.answers.codes[operation] = number
            async with self._answered:
                self._answered.notify_all()
        return code

    async def _repeat(self, channel: grpc.aio.Channel, number: int) -> None:
        while True:
            await self.call(channel, number)


class MixedCallers(Callers):
    """Callers with reads, changes and calls that are refused, drawn from `seed`."""

    def __init__(self, address: str, token: str, seed: int, count: int = 64) -> None:
        super().__init__(address, token, count)
        self._random = random.Random(seed)

    async def call(self, channel: grpc.aio.Channel, number: int) -> None:
        containers = containers_pb2_grpc.ContainersStub(channel)
        match self._random.randrange(5):
            case 0:
                access = access_pb2_grpc.AccessStub(channel)
                await self.note(access.WhoAmI(access_pb2.WhoAmIRequest(), **self.options))
            case 1:
                unknown = containers_pb2.StartContainerRequest(name="agents/nowhere/containers/none")
                await self.note(containers.StartContainer(unknown, **self.options))
            case 2:
                malformed = containers_pb2.GetContainerRequest(name="not a name")
                await self.note(containers.GetContainer(malformed, **self.options))
            case _:
                event = audit_log_pb2.NewEvent(
                    id=str(uuid.UUID(int=self._random.getrandbits(128), version=4)), action="task.update"
                )
                log = audit_log_pb2_grpc.AuditLogStub(channel)
                request = audit_log_pb2.RecordEventsRequest(events=[event])
                await self.note(log.RecordEvents(request, **self.options), event.id)


class RestartingCallers(Callers):
    """One caller for each container of `dock-1`; each restarts its own, again and again.

    The containers are plain processes that append a byte to a file of their name in `folder` when they start. Who has
    the server's `database` asks for a restart until that one has ended, and so never for two of one container at once.
    """

    def __init__(self, address: str, token: str, folder: pathlib.Path, names: list[str], database: str = "") -> None:
        super().__init__(address, token, len(names))
        self.names = names
        self.folder = folder
        self.database = database

    def processes(self) -> dict[str, list[str]]:
        """What the agent's process runtime is to be told."""
        return {name: ["sh", "-c", f"printf x >> '{self.folder / name}'; exec sleep 1000"] for name in self.names}

    def starts(self, name: str) -> int:
        """How often the container really started."""
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    async def call(self, channel: grpc.aio.Channel, number: int) -> None:
        name = self.names[number]
        before = self.starts(name)
        containers = containers_pb2_grpc.ContainersStub(channel)
        request = containers_pb2.RestartContainerRequest(name=f"agents/dock-1/containers/{name}")
        if self.database:
            request.request_id = str(uuid.uuid4())
        while await self.note(containers.RestartContainer(request, **self.options)) is not grpc.StatusCode.OK:
            if not self.database or await asyncio.to_thread(self._failed, request.request_id):
                return
            await asyncio.sleep(0.05)
        # The process runs; what it does first comes a moment later, and the next restart must not cut it off.
        await asyncio.to_thread(wait_until, lambda: self.starts(name) > before, f"{name} starts")

    def _failed(self, request_id: str) -> bool:
        """Whether the command of this request has ended, otherwise than well."""
        ended = f"SELECT state FROM commands WHERE request_id = '{request_id}' AND settled_at IS NOT NULL"
        return any(state != commands_pb2.COMMAND_STATE_SUCCEEDED for (state,) in rows(self.database, ended))


class CommandingCallers(RestartingCallers):
    """The same, but each starts, stops, kills and restarts its container as drawn from `seed`, whatever is answered."""

    def __init__(self, address: str, token: str, folder: pathlib.Path, names: list[str], seed: int) -> None:
        super().__init__(address, token, folder, names)
        self._random = random.Random(seed)

    async def call(self, channel: grpc.aio.Channel, number: int) -> None:
        name = f"agents/dock-1/containers/{self.names[number]}"
        containers = containers_pb2_grpc.ContainersStub(channel)
        call: grpc.aio.UnaryUnaryCall[Any, Any]
        match self._random.randrange(4):
            case 0:
                call = containers.StartContainer(containers_pb2.StartContainerRequest(name=name), **self.options)
            case 1:
                call = containers.StopContainer(containers_pb2.StopContainerRequest(name=name), **self.options)
            case 2:
                call = containers.KillContainer(containers_pb2.KillContainerRequest(name=name), **self.options)
            case _:
                call = containers.RestartContainer(containers_pb2.RestartContainerRequest(name=name), **self.options)
        await self.note(call)
