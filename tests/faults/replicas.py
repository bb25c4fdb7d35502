"""Several replicas of one database as real processes, and what lies between them and their agents."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio

from lading.v1 import audit_log_pb2
from tests.process import Process, free_port
from tests.stack import Stack

CONNECT = "/lading.v1.AgentLink/Connect"


class Replicas(Stack):
    """`start_replica` as often as you like; the first one makes the database, and is `address`."""

    def __init__(self, folder: pathlib.Path, database: str) -> None:
        super().__init__(folder, database)
        self.addresses: dict[str, str] = {}

    def start_replica(self, name: str, *options: str) -> Process:
        """One that serves at `addresses[name]`, where it served before if it did."""
        if not self.admin_token:
            self.admin_token = self._initialize()
        port_file = self.folder / f"{name}.port"
        port_file.unlink(missing_ok=True)
        listen = self.addresses.get(name) or f"127.0.0.1:{free_port()}"
        where = ("--listen", listen, "--port-file", str(port_file))
        server = self._start(name, "server", "run", *self._where(), *where, *options)
        server.wait_until(lambda: port_file.exists() and port_file.read_text().strip(), f"{name} serves")
        self.addresses[name] = port_file.read_text().strip()
        self.address = self.address or self.addresses[name]
        return server

    def start_agent_by_way_of(self, server: str, name: str, processes: Mapping[str, list[str]]) -> Process:
        """An agent whose server is another, a crossing or several, while callers go on to call `address`."""
        token_file = self.folder / f"{name}.token"
        token_file.touch(0o600)
        token_file.write_text(self.issue_token(name, audit_log_pb2.ACTOR_TYPE_AGENT))
        direct, self.address = self.address, server
        try:
            return self.start_agent(name, processes=processes)
        finally:
            self.address = direct


class Crossing:
    """Passes the sessions of agents on to the replica that is `upstream`, and can hold back what that one sends.

    What a replica sent to an agent that went elsewhere is not lost here, as in an honest network: it comes out on the
    agent's newest stream. Nothing may come of that.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._holding = False
        self._downstream: Any = None
        self._moved = asyncio.Event()
        self._pumps: set[asyncio.Task[None]] = set()
        self._channels: list[grpc.aio.Channel] = []
        self.held: list[bytes] = []
        """Frames that are held back."""
        self.address = ""

    def hold(self) -> None:
        """Keep what the replica sends from here on."""
        self._holding = True

    def move(self, upstream: str) -> None:
        """End the agent's stream, and no replica's; the next one goes to `upstream`, of which nothing is held."""
        self._upstream = upstream
        self._moved.set()

    async def release(self) -> None:
        """Deliver what was held."""
        self._holding = False
        for frame in self.held:
            await self._downstream.write(frame)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Crossing"]:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(self._connect)  # bytes, as they come
        service = grpc.method_handlers_generic_handler("lading.v1.AgentLink", {"Connect": handler})
        server.add_generic_rpc_handlers((service,))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield self
        finally:
            for task in self._pumps:
                task.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)
            for channel in self._channels:
                await channel.close()
            await server.stop(0)

    async def _connect(self, _requests: Any, context: Any) -> None:
        channel = grpc.aio.insecure_channel(self._upstream, options=(("grpc.use_local_subchannel_pool", 1),))
        self._channels.append(channel)
        who = tuple(pair for pair in context.invocation_metadata() if pair[0] == "authorization")
        call: Any = channel.stream_stream(CONNECT)(metadata=who)
        self._downstream, self._moved = context, asyncio.Event()
        down = asyncio.create_task(self._pass_down(call, holdable=not self._holding))
        self._pumps.add(down)
        up = asyncio.create_task(pass_up(context, call))
        moved = asyncio.create_task(self._moved.wait())
        await asyncio.wait((up, moved, down), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        moved.cancel()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the network went away")

    async def _pass_down(self, call: Any, *, holdable: bool) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError):
            while (frame := await call.read()) is not grpc.aio.EOF:
                if holdable and self._holding:
                    self.held.append(frame)
                else:
                    await self._downstream.write(frame)


async def pass_up(context: Any, call: Any) -> None:
    """What the agent sends, to a replica."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while (frame := await context.read()) is not grpc.aio.EOF:
            await call.write(frame)
        await call.done_writing()
