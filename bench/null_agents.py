"""Program: a fleet of agents with nothing behind them, each with a connection: every command succeeds at once.

`python -m bench.null_agents ADDRESS DATA FIRST COUNT [witnesses]`: agents of acme, numbered from FIRST on, each with
one container `web`. They do what agents do on the wire: epoch, sequence, acknowledgements, results kept until their
receipt, reconnects with full jitter, RetryInfo and Drain; `witnesses` also cosign what they are shown of the log, and
bring canaries back. They have no journal on disk, and do not verify proofs.
Says `all` whenever each of them has its Welcome, and `lost` when the first one after that has not, each with the time
(seconds, monotonic). DATA is the server's, whose key signs their tokens.
"""

import asyncio
import base64
import pathlib
import random
import sys
import time
from typing import Any

import grpc
import grpc.aio
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc.error_details_pb2 import RetryInfo

from lading.transparency import note
from lading.v1 import agent_link_pb2 as link
from lading.v1 import agent_link_pb2_grpc, commands_pb2, containers_pb2
from lading_agent.session import read_detail
from lading_server import tokens
from lading_server.clock import new_id, now
from lading_server.event import ActorType
from lading_server.settings import AUDIENCE, ISSUER

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.keepalive_time_ms", 60_000))
DAY = 24 * 3600 * tokens.MICROSECONDS
DELAY, DELAY_MAX = 0.25, 30.0
CONTAINER = "web"


class Fleet:
    """Counts who is connected, and says so."""

    def __init__(self, address: str, data: pathlib.Path, total: int, *, witnesses: bool) -> None:
        self.address, self.key, self.total = address, tokens.load_key(data), total
        self.private = Ed25519PrivateKey.generate() if witnesses else None
        self._count = 0
        self._whole = False

    def change(self, by: int) -> None:
        self._count += by
        whole = self._count == self.total
        if whole != self._whole:
            self._whole = whole
            print(f"{'all' if whole else 'lost'} {time.monotonic()}", flush=True)


class NullAgent:
    """One agent; `live` for ever."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self._fleet, self._name = fleet, name
        at = now()
        claims = tokens.Claims(ISSUER, "acme", ActorType.AGENT, name, new_id(), at, at + DAY)
        self._who = (("authorization", f"Bearer {tokens.sign(fleet.key, claims, AUDIENCE)}"),)
        self._held: dict[str, link.Result] = {}
        self._told: dict[str, int] = {}
        self._size = 0
        self._epoch = self._sent = self._processed = 0
        self._failures = 0
        self._shed = False
        self._key: note.Key | None = None
        if fleet.private is not None:
            self._key = note.Key(f"acme/{name}", note.COSIGNATURE, fleet.private.public_key().public_bytes_raw())

    async def live(self) -> None:
        while True:
            async with grpc.aio.insecure_channel(self._fleet.address, OPTIONS) as channel:
                self._shed = True
                while self._shed:  # the turn that it was given is known at the other end of this connection
                    self._shed = False
                    wait = await self._session(channel)
                    self._failures += 1
                    ceiling = min(DELAY_MAX, DELAY * 2 ** min(self._failures, 16))
                    await asyncio.sleep(random.uniform(0, ceiling) if wait is None else wait)

    async def _session(self, channel: grpc.aio.Channel) -> float | None:
        """One life of the stream; the seconds that the server asked to wait, if it did."""
        call: Any = agent_link_pb2_grpc.AgentLinkStub(channel).Connect(metadata=self._who)
        self._epoch = self._sent = self._processed = 0
        self._told.clear()
        connected, beats = False, None
        try:
            held = [link.HeldCommand(command=command, result=result) for command, result in self._held.items()]
            hello = link.Hello(version="bench", boot_id=self._name, journal_id=self._name, runtime="null", held=held)
            hello.tree_size = self._size
            hello.capabilities.append("ack-receipts")
            if self._key is not None:
                hello.witness_key = str(self._key)
                hello.capabilities.append("canary")
            await self._write(call, hello=hello)
            if (first := await call.read()) is grpc.aio.EOF:
                return await self._wait(call)
            self._epoch, self._processed = first.epoch, first.seq
            connected = True
            self._fleet.change(1)
            self._failures = 0
            await self._write(call, inventory=INVENTORY)
            beats = asyncio.create_task(self._beat(call, first.welcome.heartbeat.seconds or 15))
            while (frame := await call.read()) is not grpc.aio.EOF:
                self._processed = frame.seq
                self._receipt(*(command for command, seq in self._told.items() if seq <= frame.ack))
                if frame.HasField("drain"):
                    return float(frame.drain.reconnect_after.ToTimedelta().total_seconds())
                await self._take(call, frame)
            return await self._wait(call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            return await self._wait(call)
        finally:
            if beats is not None:
                beats.cancel()
            if connected:
                self._fleet.change(-1)
            call.cancel()

    async def _take(self, call: Any, frame: link.ConnectResponse) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "dispatch":
            self._size = size_of(frame.dispatch.growth)
            command = link.Envelope.FromString(frame.dispatch.envelope).command
            await self._write(call, acknowledge=link.Acknowledge(command=command))
            result = link.Result(command=command, state=commands_pb2.COMMAND_STATE_SUCCEEDED, evidence="executed")
            self._held[command] = result
            self._told[command] = self._sent + 1
            await self._write(call, result=result)
        elif kind == "growth":
            self._size = size_of(frame.growth)
            if self._key is not None:
                await self._write(call, witness_signature=self._cosign(frame.growth.checkpoint))
        elif kind == "canary":
            await self._write(call, canary_echo=link.CanaryEcho(nonce=frame.canary.nonce))
        elif kind == "result_receipt":
            self._receipt(frame.result_receipt.command)

    def _receipt(self, *commands: str) -> None:
        for command in commands:
            self._told.pop(command, None)
            self._held.pop(command, None)

    def _cosign(self, checkpoint: str) -> link.WitnessSignature:
        assert self._key is not None
        assert self._fleet.private is not None
        text, at = checkpoint.partition("\n\n")[0] + "\n", int(time.time())
        blob = at.to_bytes(8, "big") + self._fleet.private.sign(note.cosigned(text, at))
        root = base64.b64decode(text.split("\n")[2])
        return link.WitnessSignature(size=self._size, root=root, signature=note.format_signature(self._key, blob))

    async def _beat(self, call: Any, every: float) -> None:
        while True:
            await asyncio.sleep(every * random.uniform(0.9, 1.1))
            await self._write(call, heartbeat=link.Heartbeat())

    async def _write(self, call: Any, **frame: Any) -> None:
        self._sent += 1
        await call.write(link.ConnectRequest(epoch=self._epoch, seq=self._sent, ack=self._processed, **frame))

    async def _wait(self, call: Any) -> float | None:
        self._shed = await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        metadata = await call.trailing_metadata()
        error = grpc.aio.AioRpcError(await call.code(), grpc.aio.Metadata(), metadata or grpc.aio.Metadata())
        retry = read_detail(error, RetryInfo)
        return None if retry is None else float(retry.retry_delay.ToTimedelta().total_seconds())


INVENTORY = link.Inventory(
    snapshot=True, version=1, containers=[containers_pb2.Container(name=CONTAINER, id="0" * 64, state="running")]
)


def size_of(growth: link.Growth) -> int:
    """Entries of the tree that a checkpoint names."""
    return int(growth.checkpoint.split("\n", 2)[1])


async def live(address: str, data: pathlib.Path, numbers: range, *, witnesses: bool) -> None:
    """All of them, until SIGTERM."""
    fleet = Fleet(address, data, len(numbers), witnesses=witnesses)
    await asyncio.gather(*(NullAgent(fleet, f"agent-{number}").live() for number in numbers))


def main(address: str, data: str, first: str, count: str, kind: str = "") -> None:
    numbers = range(int(first), int(first) + int(count))
    uvloop.run(live(address, pathlib.Path(data), numbers, witnesses=kind == "witnesses"))


if __name__ == "__main__":
    main(*sys.argv[1:])
