"""A control plane written by hand: a real gRPC server that says what a test has it say."""

import asyncio
import base64
import json
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from lading.v1.agent_link_pb2 import (
    BulkRequest,
    BulkResponse,
    ConnectRequest,
    ConnectResponse,
    Dispatch,
    Envelope,
    Growth,
    Hello,
    OpenBulk,
    ResultReceipt,
    Welcome,
)
from lading.v1.agent_link_pb2_grpc import AgentLinkServicer, add_AgentLinkServicer_to_server
from lading_agent.settings import Settings
from tests.unit.agent.honest_log import AGENT, ORGANIZATION, HonestLog

Context = grpc.aio.ServicerContext[Any, Any]


def make_token(subject: str = AGENT) -> str:
    """Unsigned: the agent only reads it, and this control plane believes anyone."""
    payload = json.dumps({"sub": subject, "org": ORGANIZATION}).encode()
    return f"e30.{base64.urlsafe_b64encode(payload).decode().rstrip('=')}.c2ln"


def make_settings(server: str, data: pathlib.Path) -> Settings:
    return Settings(
        server=server,
        name=AGENT,
        organization=ORGANIZATION,
        data=data,
        token_value=make_token(),
        labels={"env": "test"},
    )


@dataclass
class Link:
    """One Connect stream, seen from the server."""

    context: Context
    hello: Hello
    metadata: dict[str, str]
    log: HonestLog
    # The tree that the agent was shown last.
    seen: int = 0
    epoch: int = 0
    sent: int = 0
    frames: list[ConnectRequest] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    passed: list[ConnectRequest] = field(default_factory=list)

    async def send(self, frame: ConnectResponse, *, epoch: int | None = None, skip: int = 0, ack: int = 0) -> None:
        self.sent += 1 + skip
        frame.epoch, frame.seq, frame.ack = self.epoch if epoch is None else epoch, self.sent, ack
        await self.context.write(frame)

    async def welcome(self, epoch: int, heartbeat: float = 15) -> None:
        self.epoch = epoch
        welcome = Welcome(window=64)
        welcome.heartbeat.FromMicroseconds(int(heartbeat * 1e6))
        await self.send(ConnectResponse(welcome=welcome))

    async def dispatch(self, envelope: Envelope) -> None:
        """Record it in the log, when it is not there yet, and send it with its proof."""
        await self.show(self.log.dispatch(envelope, self.seen))

    async def show(self, frame: Dispatch | Growth) -> None:
        """Send a frame of the log as it is; what it shows counts as seen."""
        self.seen = self.log.size
        if isinstance(frame, Growth):
            await self.send(ConnectResponse(growth=frame))
        else:
            await self.send(ConnectResponse(dispatch=frame))

    async def receipt(self, command: str) -> None:
        await self.send(ConnectResponse(result_receipt=ResultReceipt(command=command)))

    async def open_bulk(self, session: str, container: str = "web", **ask: Any) -> None:
        await self.send(ConnectResponse(open_bulk=OpenBulk(session=session, container=container, **ask)))

    async def next(self, kind: str) -> ConnectRequest:
        """The next frame of this kind; others are passed over, and kept in `passed`."""
        while True:
            frame = await self.context.read()
            assert isinstance(frame, ConnectRequest), f"the agent ended the stream before a {kind}"
            self.frames.append(frame)
            if frame.WhichOneof("frame") == kind:
                return frame
            self.passed.append(frame)

    async def end(self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", **trailing: bytes) -> None:
        """End the stream with this status."""
        metadata = [(key.replace("_", "-"), value) for key, value in trailing.items()]
        self.context.set_trailing_metadata(tuple(metadata))
        self.context.set_code(code)
        self.context.set_details(details)
        self.over.set()


@dataclass
class BulkLink:
    """One Bulk stream, seen from the server."""

    context: Context
    session: str
    peer: str
    first: BulkRequest
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self, *, take: bool = True) -> BulkRequest | None:
        """The next message; the agent is told that it was taken."""
        message = await self.context.read()
        if not isinstance(message, BulkRequest):
            return None
        if take and message.data:
            await self.say(received=message.offset + len(message.data))
        return message

    async def say(self, **what: Any) -> None:
        await self.context.write(BulkResponse(**what))

    async def stop(self) -> None:
        await self.context.write(BulkResponse(stop=True))

    async def cut(self) -> None:
        """Break the stream off, as a lost connection does."""
        self.context.set_code(grpc.StatusCode.UNAVAILABLE)
        self.over.set()


class ControlPlane(AgentLinkServicer):
    """`link()` waits for the next session, `bulk()` for the next Bulk stream."""

    def __init__(self) -> None:
        self.address = ""
        self.log = HonestLog()
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.refused = asyncio.Semaphore(0)
        self.bulk_refusal: tuple[grpc.StatusCode, str] | None = None
        self._links: asyncio.Queue[Link] = asyncio.Queue()
        self._bulks: asyncio.Queue[BulkLink] = asyncio.Queue()

    async def link(self) -> Link:
        return await self._links.get()

    async def bulk(self) -> BulkLink:
        return await self._bulks.get()

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        if self.refusal:
            self.refused.release()
            await context.abort(*self.refusal)
        first = await context.read()
        metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        link = Link(context, first.hello, metadata, self.log, first.hello.tree_size)
        link.frames.append(first)
        self._links.put_nowait(link)
        await link.over.wait()

    async def Bulk(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        if self.bulk_refusal:
            await context.abort(*self.bulk_refusal)
        first = await context.read()
        link = BulkLink(context, first.session, context.peer(), first)
        await link.say(received=first.offset)
        self._bulks.put_nowait(link)
        await link.over.wait()


@asynccontextmanager
async def control_plane(
    port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[ControlPlane]:
    """Serves on loopback until the block ends; by TLS when it has credentials."""
    plane = ControlPlane()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 5000)])
    add_AgentLinkServicer_to_server(plane, server)
    listen = f"127.0.0.1:{port}"
    bound = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    plane.address = f"127.0.0.1:{bound}"
    await server.start()
    try:
        yield plane
    finally:
        await server.stop(None)
