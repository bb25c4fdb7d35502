"""The client for services and people: blocking (`Client`) and asyncio (`AsyncClient`).

    with Client("127.0.0.1:7443", token=token) as lading:
        lading.start("dock-1/web", reason="INC-527")
        lading.record("task.update", ["task:42"], diff=[{"op": "replace", "path": "/state", "value": "done"}])

Whatever is not here is in the typed stubs `containers`, `commands`, `rollouts`, `agents`, `audit` and `access`, with
the requests of `lading.v1`. Every failure is a `lading_client.errors.LadingError`.
"""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack

from lading.v1 import agents_pb2, audit_log_pb2, commands_pb2, containers_pb2
from lading.v1.access_pb2_grpc import AccessStub
from lading.v1.agents_pb2_grpc import AgentsStub
from lading.v1.audit_log_pb2_grpc import AuditLogStub
from lading.v1.commands_pb2_grpc import CommandsStub
from lading.v1.containers_pb2_grpc import ContainersStub
from lading.v1.rollouts_pb2_grpc import RolloutsStub
from lading_client import errors, requests
from lading_client.agent_watch import AgentWatch
from lading_client.channel import Endpoint, call_metadata, parse_addresses
from lading_client.exec_session import AsyncExecSession, ExecSession
from lading_client.log_reader import LogReader
from lading_client.paging import pages
from lading_client.requests import How
from lading_client.stubs import Terms, bind
from lading_client.tail import Tail
from lading_client.verify import receipts

if TYPE_CHECKING:
    from lading.v1.access_pb2_grpc import AccessAsyncStub
    from lading.v1.agents_pb2_grpc import AgentsAsyncStub
    from lading.v1.audit_log_pb2_grpc import AuditLogAsyncStub
    from lading.v1.commands_pb2_grpc import CommandsAsyncStub
    from lading.v1.containers_pb2_grpc import ContainersAsyncStub
    from lading.v1.rollouts_pb2_grpc import RolloutsAsyncStub

TIMEOUT = 60.0  # seconds
Agent = agents_pb2.Agent
Command = commands_pb2.Command
Container = containers_pb2.Container
Event = audit_log_pb2.Event
LogPiece = containers_pb2.StreamContainerLogsResponse
EventFilter = audit_log_pb2.EventFilter


class Client:
    """Blocking calls; one may be shared by threads.

    `server`: `HOST:PORT`; of several with one database, their IP addresses: `10.0.0.1:7443,10.0.0.2:7443`. `ca`: PEM
    file, else the system's certificates, and plaintext on loopback. `source`: what the caller is, for the log.
    `correlation_id` goes with each call. `timeout`: seconds a unary call may take.
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        ca: str | pathlib.Path | None = None,
        tls: bool | None = None,
        source: str = "python",
        correlation_id: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.channel = Endpoint(parse_addresses(server), ca, tls, source).open()
        terms = Terms(call_metadata(token, correlation_id), timeout)
        self.containers: ContainersStub = bind(ContainersStub(self.channel), terms)
        self.commands: CommandsStub = bind(CommandsStub(self.channel), terms)
        self.rollouts: RolloutsStub = bind(RolloutsStub(self.channel), terms)
        self.agents: AgentsStub = bind(AgentsStub(self.channel), terms)
        self.audit: AuditLogStub = bind(AuditLogStub(self.channel), terms)
        self.access: AccessStub = bind(AccessStub(self.channel), terms)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()

    def create(self, target: str, image: str, *, timeout: float | None = None, **what: Any) -> Command:
        """`what`: as in `requests.create`."""
        return self.containers.CreateContainer(requests.create(target, image, **what), timeout=timeout)

    def start(self, target: str, *, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return self.containers.StartContainer(requests.start(target, **how), timeout=timeout)

    def stop(
        self, target: str, *, grace: float | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> Command:
        return self.containers.StopContainer(requests.stop(target, grace=grace, **how), timeout=timeout)

    def restart(
        self, target: str, *, grace: float | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> Command:
        return self.containers.RestartContainer(requests.restart(target, grace=grace, **how), timeout=timeout)

    def kill(self, target: str, *, signal: str = "", timeout: float | None = None, **how: Unpack[How]) -> Command:
        return self.containers.KillContainer(requests.kill(target, signal=signal, **how), timeout=timeout)

    def pause(self, target: str, *, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return self.containers.PauseContainer(requests.pause(target, **how), timeout=timeout)

    def unpause(self, target: str, *, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return self.containers.UnpauseContainer(requests.unpause(target, **how), timeout=timeout)

    def remove(self, target: str, *, force: bool = False, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return self.containers.RemoveContainer(requests.remove(target, force=force, **how), timeout=timeout)

    def pull(self, agent: str, image: str, *, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return self.containers.PullImage(requests.pull(agent, image, **how), timeout=timeout)

    def logs(
        self, target: str, *, lost: Callable[[errors.LadingError], object] | None = None, **what: Any
    ) -> Iterator[LogPiece]:
        """What a container writes, without gap or repeat also over lost connections. `what`: as in `requests.logs`.

        `lost` is told when a connection is, and it goes on.
        """
        reader = LogReader(requests.logs(target, **what))
        while True:
            answers = self.containers.StreamContainerLogs(reader.request())
            try:
                for answer in answers:
                    if (piece := reader.take(answer)) is not None:
                        yield piece
                return
            except errors.LadingError as failure:
                delay = reader.delay(failure)
                if lost is not None and reader.failures == 1:
                    lost(failure)
            finally:
                answers.cancel()
            time.sleep(delay)

    def exec(self, target: str, command: Sequence[str], **what: Any) -> ExecSession:
        """Run a program in a container; iterate over what it writes. `what`: as in `requests.exec_start`.

        with client.exec("dock-1/web", ["df", "-h"], reason="INC-527") as session:
            for piece in session:
                print(piece.data.decode(), end="")
        session.exit_code
        """
        return ExecSession(self.containers, requests.exec_start(target, command, **what))

    def list_containers(self, **which: Any) -> Iterator[Container]:
        """All pages. `which`: as in `requests.list_containers`."""
        for page in pages(self.containers.ListContainers, requests.list_containers(**which)):
            yield from page.containers

    def record(self, action: str, targets: Iterable[tuple[str, str] | str], **what: Any) -> int:
        """Index of the event in the log. `what`: as in `requests.record`."""
        return self.record_all([requests.record(action, targets, **what)])[0]

    def record_all(self, events: Sequence[audit_log_pb2.NewEvent]) -> Sequence[int]:
        """All or none, at most 500; indexes in the same order."""
        return self.audit.RecordEvents(audit_log_pb2.RecordEventsRequest(events=events)).indexes

    def receipt(self, operation: str) -> str:
        """A proof that an event, or the end of an operation, is in the log: the text of a `.tlog-proof`.

        It stands alone: `lading audit verify --file` checks it, `lading_client.verify.receipts.verify` too.
        """
        return receipts.write(self.audit.GetReceipt(audit_log_pb2.GetReceiptRequest(id=operation)))

    def tail(
        self,
        filter: EventFilter | None = None,
        *,
        from_index: int | None = None,
        begun: Callable[[], object] = lambda: None,
        lost: Callable[[errors.LadingError], object] = lambda failure: None,
    ) -> Iterator[Event]:
        """Events as they are committed, without gap or repeat also over lost connections. Never ends by itself.

        `lost` is told once when the connection is, and `begun` when the server answers: at first, and again after that.
        """
        return _follow(self.audit.TailEvents, Tail(filter or EventFilter(), from_index, begun=begun, lost=lost))

    def watch_agents(
        self,
        *,
        begun: Callable[[], object] = lambda: None,
        lost: Callable[[errors.LadingError], object] = lambda failure: None,
    ) -> Iterator[Agent]:
        """Every agent, then each one that changes, also over lost connections. Never ends by itself.

        `begun` and `lost` are as for `tail`.
        """
        return _follow(self.agents.WatchAgents, AgentWatch(begun=begun, lost=lost))


def _follow(call: Callable[..., Any], stream: Tail | AgentWatch) -> Iterator[Any]:
    while True:
        answers = call(stream.request())
        try:
            for answer in answers:
                yield from stream.take(answer)
            failure: errors.LadingError = errors.Unavailable("the server ended the stream")
        except errors.LadingError as error:
            failure = error
        finally:
            answers.cancel()
        time.sleep(stream.delay(failure))


class AsyncClient:
    """The same for asyncio; see `Client`. To be made where its event loop runs."""

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        ca: str | pathlib.Path | None = None,
        tls: bool | None = None,
        source: str = "python",
        correlation_id: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.channel = Endpoint(parse_addresses(server), ca, tls, source).open_async()
        terms = Terms(call_metadata(token, correlation_id), timeout)
        self.containers: ContainersAsyncStub = bind(ContainersStub(self.channel), terms)
        self.commands: CommandsAsyncStub = bind(CommandsStub(self.channel), terms)
        self.rollouts: RolloutsAsyncStub = bind(RolloutsStub(self.channel), terms)
        self.agents: AgentsAsyncStub = bind(AgentsStub(self.channel), terms)
        self.audit: AuditLogAsyncStub = bind(AuditLogStub(self.channel), terms)
        self.access: AccessAsyncStub = bind(AccessStub(self.channel), terms)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.channel.close()

    async def create(self, target: str, image: str, *, timeout: float | None = None, **what: Any) -> Command:
        return await self.containers.CreateContainer(requests.create(target, image, **what), timeout=timeout)

    async def start(self, target: str, *, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return await self.containers.StartContainer(requests.start(target, **how), timeout=timeout)

    async def stop(
        self, target: str, *, grace: float | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> Command:
        return await self.containers.StopContainer(requests.stop(target, grace=grace, **how), timeout=timeout)

    async def restart(
        self, target: str, *, grace: float | None = None, timeout: float | None = None, **how: Unpack[How]
    ) -> Command:
        return await self.containers.RestartContainer(requests.restart(target, grace=grace, **how), timeout=timeout)

    async def kill(self, target: str, *, signal: str = "", timeout: float | None = None, **how: Unpack[How]) -> Command:
        return await self.containers.KillContainer(requests.kill(target, signal=signal, **how), timeout=timeout)

    async def pause(self, target: str, *, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return await self.containers.PauseContainer(requests.pause(target, **how), timeout=timeout)

    async def unpause(self, target: str, *, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return await self.containers.UnpauseContainer(requests.unpause(target, **how), timeout=timeout)

    async def remove(
        self, target: str, *, force: bool = False, timeout: float | None = None, **how: Unpack[How]
    ) -> Command:
        return await self.containers.RemoveContainer(requests.remove(target, force=force, **how), timeout=timeout)

    async def pull(self, agent: str, image: str, *, timeout: float | None = None, **how: Unpack[How]) -> Command:
        return await self.containers.PullImage(requests.pull(agent, image, **how), timeout=timeout)

    async def logs(
        self, target: str, *, lost: Callable[[errors.LadingError], object] | None = None, **what: Any
    ) -> AsyncIterator[LogPiece]:
        reader = LogReader(requests.logs(target, **what))
        while True:
            answers = self.containers.StreamContainerLogs(reader.request())
            try:
                async for answer in answers:
                    if (piece := reader.take(answer)) is not None:
                        yield piece
                return
            except errors.LadingError as failure:
                delay = reader.delay(failure)
                if lost is not None and reader.failures == 1:
                    lost(failure)
            finally:
                answers.cancel()
            await asyncio.sleep(delay)

    def exec(self, target: str, command: Sequence[str], **what: Any) -> AsyncExecSession:
        """`async with` it, then iterate over what it writes."""
        return AsyncExecSession(self.containers, requests.exec_start(target, command, **what))

    async def list_containers(self, **which: Any) -> AsyncIterator[Container]:
        request = requests.list_containers(**which)
        while True:
            page = await self.containers.ListContainers(request)
            for container in page.containers:
                yield container
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def record(self, action: str, targets: Iterable[tuple[str, str] | str], **what: Any) -> int:
        return (await self.record_all([requests.record(action, targets, **what)]))[0]

    async def record_all(self, events: Sequence[audit_log_pb2.NewEvent]) -> Sequence[int]:
        return (await self.audit.RecordEvents(audit_log_pb2.RecordEventsRequest(events=events))).indexes

    async def receipt(self, operation: str) -> str:
        return receipts.write(await self.audit.GetReceipt(audit_log_pb2.GetReceiptRequest(id=operation)))

    def tail(
        self,
        filter: EventFilter | None = None,
        *,
        from_index: int | None = None,
        begun: Callable[[], object] = lambda: None,
        lost: Callable[[errors.LadingError], object] = lambda failure: None,
    ) -> AsyncIterator[Event]:
        return _follow_async(self.audit.TailEvents, Tail(filter or EventFilter(), from_index, begun=begun, lost=lost))

    def watch_agents(
        self,
        *,
        begun: Callable[[], object] = lambda: None,
        lost: Callable[[errors.LadingError], object] = lambda failure: None,
    ) -> AsyncIterator[Agent]:
        return _follow_async(self.agents.WatchAgents, AgentWatch(begun=begun, lost=lost))


async def _follow_async(call: Callable[..., Any], stream: Tail | AgentWatch) -> AsyncIterator[Any]:
    while True:
        answers = call(stream.request())
        try:
            async for answer in answers:
                for item in stream.take(answer):
                    yield item
            failure: errors.LadingError = errors.Unavailable("the server ended the stream")
        except errors.LadingError as error:
            failure = error
        finally:
            answers.cancel()
        await asyncio.sleep(stream.delay(failure))
