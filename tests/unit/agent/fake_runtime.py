"""A runtime in memory: the seam's one fake. It does what it is told, and can be told to wait, fail or lie still."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator

from grpc import StatusCode

from lading.v1.commands_pb2 import ContainerSpec, ExecSpec
from lading.v1.containers_pb2 import LOG_SOURCE_STDOUT, Container
from lading_agent.carrier import Carrier
from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes import LogPiece, LogQuery, Program, RuntimeEvent, Trace


class NoCarriers:
    """For programs that an earlier life of the agent began."""

    def carry(self, session: str) -> Carrier:
        raise AssertionError("nobody reads what it writes any more")


class FakeRuntime:
    """`calls` is what was done, in order; `gate` holds a verb until it is set; `failures` are raised instead of (or,
    with `late`, after) doing it."""

    def __init__(self, *names: str) -> None:
        self.calls: list[str] = []
        self.by_name: dict[str, Container] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.reached: dict[str, asyncio.Event] = {}
        self.failures: dict[str, Exception] = {}
        self.late = False
        self.log_pieces: list[LogPiece] = []
        # What is seen of a program, one after another; the last one stays.
        self.traces: list[Trace] = []
        self.past: list[RuntimeEvent] = []
        self.snapshots = asyncio.Semaphore(0)
        self.listeners: set[asyncio.Queue[RuntimeEvent | None]] = set()
        self.listening = asyncio.Event()
        for name in names:
            self.by_name[name] = self._make(name, {})

    def gate(self, call: str) -> asyncio.Event:
        """Hold `start web`, say, until the event is set; `reached[call]` is set when it holds."""
        self.reached[call] = asyncio.Event()
        self.gates[call] = asyncio.Event()
        return self.gates[call]

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def title(self) -> str:
        return "fake 1"

    async def containers(self) -> list[Container]:
        self.snapshots.release()
        self._fail("containers")
        return list(self.by_name.values())

    async def get(self, name: str) -> Container:
        self._fail("get")
        if name not in self.by_name:
            raise RuntimeFailure(f"No such container: {name}", StatusCode.NOT_FOUND)
        found = Container()
        found.CopyFrom(self.by_name[name])
        return found

    async def create(self, name: str, spec: ContainerSpec) -> str:
        await self._do("create", name)
        if name in self.by_name:
            raise RuntimeFailure(f"the name {name} is in use", StatusCode.ALREADY_EXISTS)
        self.by_name[name] = self._make(name, dict(spec.labels))
        self._finish("create", name)
        return self.by_name[name].id

    async def start(self, id: str) -> None:
        container = self._find(id)
        await self._do("start", container.name)
        if container.state == "running":
            raise RuntimeFailure(f"{container.name} is already running", StatusCode.FAILED_PRECONDITION)
        container.state = "running"
        container.started_at.FromNanoseconds(time.time_ns())
        self._finish("start", container.name)

    async def stop(self, id: str, grace: float) -> None:
        await self._end("stop", id)

    async def restart(self, id: str, grace: float) -> None:
        container = self._find(id)
        await self._do("restart", container.name)
        container.state = "running"
        container.started_at.FromNanoseconds(time.time_ns())
        self._finish("restart", container.name)

    async def kill(self, id: str, signal: str) -> None:
        await self._end("kill", id)

    async def pause(self, id: str) -> None:
        container = self._find(id)
        await self._do("pause", container.name)
        container.state = "paused"
        self._finish("pause", container.name)

    async def unpause(self, id: str) -> None:
        container = self._find(id)
        await self._do("unpause", container.name)
        container.state = "running"
        self._finish("unpause", container.name)

    async def remove(self, id: str, force: bool) -> None:
        container = self._find(id)
        await self._do("remove", container.name)
        del self.by_name[container.name]
        self._finish("remove", container.name)

    async def pull(self, image: str) -> None:
        await self._do("pull", image)

    async def logs(self, name: str, query: LogQuery) -> AsyncGenerator[LogPiece, None]:
        await self.get(name)
        for piece in self.log_pieces:
            yield piece
        if query.follow:
            self.gate("follow")
            self.reached["follow"].set()
            await self.gates["follow"].wait()
            yield LogPiece(LOG_SOURCE_STDOUT, b"the end\n")

    async def prepare_program(self, id: str, spec: ExecSpec, command: str) -> str:
        await self._pass("prepare")
        return command

    async def start_program(self, id: str, handle: str, spec: ExecSpec) -> Program:
        await self._pass("program")
        raise RuntimeFailure("no programs here", StatusCode.UNIMPLEMENTED)

    async def trace_program(self, handle: str) -> Trace:
        await self._pass("trace")
        self._fail("trace")
        return self.traces.pop(0) if len(self.traces) > 1 else self.traces[0]

    async def events(self, since_ns: int) -> AsyncGenerator[RuntimeEvent, None]:
        self._fail("events")
        queue: asyncio.Queue[RuntimeEvent | None] = asyncio.Queue()
        self.listeners.add(queue)
        self.listening.set()
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self.listeners.discard(queue)

    async def history(self, name: str, since_ns: int) -> list[RuntimeEvent]:
        return [event for event in self.past if event.container == name and event.at_ns >= since_ns]

    def tell(self, action: str, name: str) -> None:
        event = RuntimeEvent(name, action, time.time_ns())
        self.past.append(event)
        for queue in self.listeners:
            queue.put_nowait(event)

    def break_events(self) -> None:
        for queue in self.listeners:
            queue.put_nowait(None)

    async def _end(self, verb: str, id: str) -> None:
        container = self._find(id)
        await self._do(verb, container.name)
        if container.state != "running":
            raise RuntimeFailure(f"{container.name} is not running", StatusCode.FAILED_PRECONDITION)
        container.state = "exited"
        container.finished_at.FromNanoseconds(time.time_ns())
        self._finish(verb, container.name)

    async def _do(self, verb: str, what: str) -> None:
        call = f"{verb} {what}"
        self.calls.append(call)
        await self._pass(call)
        if not self.late:
            self._fail(verb)

    async def _pass(self, call: str) -> None:
        if call in self.gates:
            self.reached[call].set()
            await self.gates[call].wait()

    def _finish(self, verb: str, name: str) -> None:
        self.tell({"remove": "destroy"}.get(verb, verb), name)
        if self.late:
            self._fail(verb)

    def _fail(self, verb: str) -> None:
        if verb in self.failures:
            raise self.failures[verb]

    def _find(self, id: str) -> Container:
        return next(container for container in self.by_name.values() if container.id == id)

    def _make(self, name: str, labels: dict[str, str]) -> Container:
        container = Container(name=name, id=uuid.uuid4().hex, image="web:1", state="created", labels=labels)
        container.image_digest = "sha256:aa"
        container.created_at.FromNanoseconds(time.time_ns())
        return container
