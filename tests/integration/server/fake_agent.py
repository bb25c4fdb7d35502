"""An agent by hand: a gRPC client of AgentLink.Connect that does what the test says, and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio

from lading.v1 import agent_link_pb2, agent_link_pb2_grpc, commands_pb2, containers_pb2
from lading_server.clock import new_id
from lading_server.event import ActorType
from tests.integration.server.running import ORGANIZATION, Running, bearer, sign

SUCCEEDED = commands_pb2.COMMAND_STATE_SUCCEEDED


class FakeAgent:
    """One session after another of the agent `name`; every frame must be taken in its order."""

    def __init__(self, server: Running, name: str = "dock-1", organization: str = ORGANIZATION) -> None:
        self.name = name
        self.epoch = 0
        self.seq = 0
        self.seen = 0
        self.metadata = bearer(sign(server.settings, name, ActorType.AGENT, organization))
        self._stub: Any = agent_link_pb2_grpc.AgentLinkStub(server.channel())
        self.call: Any = None

    async def connect(self, held: Iterable[agent_link_pb2.HeldCommand] = (), **hello: Any) -> Any:
        """Begin a session; returns the Welcome."""
        self.open()
        return await self.hello(held, **hello)

    async def hello(
        self,
        held: Iterable[agent_link_pb2.HeldCommand] = (),
        *,
        journal: str = "journal-1",
        labels: dict[str, str] | None = None,
        **hello: Any,
    ) -> Any:
        """Say Hello on the stream; returns the Welcome."""
        await self.send(
            hello=agent_link_pb2.Hello(
                version="1", journal_id=journal, epoch=self.epoch, held=held, runtime="fake", labels=labels, **hello
            )
        )
        welcome = await self.take("welcome")
        self.epoch = self.last.epoch
        return welcome

    def open(self) -> None:
        """Begin a stream, and say nothing yet."""
        self.seq = 0
        self.call = self._stub.Connect(metadata=self.metadata)

    async def send(self, **frame: Any) -> None:
        """Send a frame of the session's epoch (0 in Hello), unless told another one."""
        self.seq += 1
        frame.setdefault("epoch", 0 if "hello" in frame else self.epoch)
        await self.call.write(agent_link_pb2.ConnectRequest(**{"seq": self.seq, "ack": self.seen, **frame}))

    async def take(self, kind: str) -> Any:
        """What the next frame carries, which must be of this kind; canaries come between others at any time."""
        while True:
            frame = await self.next()
            if frame is grpc.aio.EOF:
                raise AssertionError(f"instead of {kind} the stream ended: {await self.ended()}")
            self.last = frame
            self.seen = frame.seq
            found = frame.WhichOneof("frame")
            if found != "canary" or kind == "canary":
                break
        assert found == kind, f"{found} came instead of {kind}: {frame}"
        return getattr(frame, kind)

    async def next(self) -> Any:
        """The next frame that is no show of the log's growth, or EOF."""
        while True:
            frame: Any = grpc.aio.EOF
            async with asyncio.timeout(30):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    frame = await self.call.read()
            if frame is grpc.aio.EOF or frame.WhichOneof("frame") != "growth":
                return frame

    async def envelope(self) -> agent_link_pb2.Envelope:
        """The command that comes next."""
        return agent_link_pb2.Envelope.FromString((await self.take("dispatch")).envelope)

    async def dispatched(self) -> str:
        """Id of the command that comes next."""
        return (await self.envelope()).command

    async def acknowledge(self, command: str) -> None:
        await self.send(acknowledge=agent_link_pb2.Acknowledge(command=command))

    async def finish(self, command: str, **result: Any) -> Any:
        """Send the command's result, SUCCEEDED unless told otherwise; returns the receipt."""
        await self.send(result=result_of(command, **result))
        return await self.receipt(command)

    async def receipt(self, command: str) -> Any:
        receipt = await self.take("result_receipt")
        assert receipt.command == command
        return receipt

    async def report(self, *containers: str) -> None:
        """Report that these containers, and no others, run; returns once the server knows."""
        found = [containers_pb2.Container(name=name, id=f"id-{name}", state="running") for name in containers]
        await self.send(inventory=agent_link_pb2.Inventory(snapshot=True, containers=found, version=1))
        await self.sync()

    async def echo(self) -> None:
        """Bring back the canary that comes next."""
        await self.send(canary_echo=agent_link_pb2.CanaryEcho(nonce=(await self.take("canary")).nonce))

    async def sync(self) -> None:
        """Wait until the server has applied every frame so far: it answers them in their order."""
        await self.finish(new_id())

    async def bulk(self, session: str, **first: Any) -> Any:
        """Open the stream for the bytes of a log or an exec session."""
        call = self._stub.Bulk(metadata=self.metadata)
        await call.write(agent_link_pb2.BulkRequest(session=session, **first))
        return call

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """How the server ended the stream. What it sent before that is read: gRPC says how it ended only after it."""
        async with asyncio.timeout(30):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details() or ""

    async def leave(self) -> None:
        """Say Goodbye, and wait until the session is over."""
        await self.send(goodbye=agent_link_pb2.Goodbye(reason="bye"))
        assert await self.next() is grpc.aio.EOF
        assert (await self.ended())[0] is grpc.StatusCode.OK

    def vanish(self) -> None:
        """Be gone without a word."""
        self.call.cancel()


def result_of(command: str, **result: Any) -> agent_link_pb2.Result:
    return agent_link_pb2.Result(**{"command": command, "state": SUCCEEDED, "evidence": "executed", **result})


def held(command: str, **result: Any) -> agent_link_pb2.HeldCommand:
    """What Hello says of a command in the journal, with its result if there is one."""
    return agent_link_pb2.HeldCommand(command=command, result=result_of(command, **result) if result else None)


@contextlib.asynccontextmanager
async def connected(server: Running, name: str = "dock-1", **hello: Any) -> AsyncIterator[FakeAgent]:
    """An agent in its first session, with a container `web`."""
    agent = FakeAgent(server, name)
    await agent.connect(**hello)
    await agent.report("web")
    try:
        yield agent
    finally:
        agent.vanish()
