"""Program: a fleet of agents that do nothing, each with a connection of its own.

`python -m bench.agents ADDRESS DATA FIRST COUNT AT_ONCE [CERTIFICATE]`: agents of the organization acme, numbered from
FIRST, AT_ONCE of them connecting at a time. Says `connected N` when each has its Welcome or has failed, then beats
until SIGTERM. DATA is the server's, whose key signs their tokens.
"""

import asyncio
import contextlib
import pathlib
import sys
from typing import Any

import grpc
import uvloop
from google.rpc import error_details_pb2, status_pb2

from lading.v1 import agent_link_pb2, agent_link_pb2_grpc
from lading_server import tokens
from lading_server.clock import new_id, now
from lading_server.event import ActorType
from lading_server.settings import AUDIENCE, ISSUER

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.keepalive_time_ms", 60_000))
DAY = 24 * 3600 * tokens.MICROSECONDS
WELCOME_SECONDS = 150.0


class Fleet:
    """Agents by the numbers of their names."""

    def __init__(self, address: str, data: pathlib.Path, certificate: bytes | None, at_once: int) -> None:
        self._address, self._certificate = address, certificate
        self._key = tokens.load_key(data)
        self._slots = asyncio.Semaphore(at_once)
        self._beats: list[asyncio.Task[None]] = []

    async def connect(self, number: int) -> None:
        """One agent: Hello, Welcome, then a heartbeat whenever the server wants one."""
        name = f"agent-{number}"
        at = now()
        claims = tokens.Claims(ISSUER, "acme", ActorType.AGENT, name, new_id(), at, at + DAY)
        metadata = (("authorization", f"Bearer {tokens.sign(self._key, claims, AUDIENCE)}"),)
        channel = self._open()
        while True:
            first: Any = grpc.aio.EOF
            async with self._slots, asyncio.timeout(WELCOME_SECONDS):
                call: Any = agent_link_pb2_grpc.AgentLinkStub(channel).Connect(metadata=metadata, wait_for_ready=True)
                hello = agent_link_pb2.Hello(version="bench", boot_id=name, journal_id=name, runtime="process")
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(agent_link_pb2.ConnectRequest(seq=1, hello=hello))
                    first = await call.read()
            if first is not grpc.aio.EOF:
                break
            seconds = turn_of(await call.trailing_metadata())
            if seconds is None:
                raise RuntimeError(f"{name}: {await call.code()} {await call.details()}")
            await asyncio.sleep(seconds)
        self._beats.append(asyncio.create_task(self._beat(call, first)))

    def _open(self) -> grpc.aio.Channel:
        if self._certificate is None:
            return grpc.aio.insecure_channel(self._address, OPTIONS)
        return grpc.aio.secure_channel(self._address, grpc.ssl_channel_credentials(self._certificate), OPTIONS)

    async def _beat(self, call: Any, first: agent_link_pb2.ConnectResponse) -> None:
        sent = 1
        while True:
            await asyncio.sleep(first.welcome.heartbeat.seconds)
            sent += 1
            beat = agent_link_pb2.Heartbeat()
            await call.write(agent_link_pb2.ConnectRequest(epoch=first.epoch, seq=sent, ack=first.seq, heartbeat=beat))


def turn_of(trailing: Any) -> float | None:
    """Seconds after which the server lets this one in, that has shed it; None when it said nothing of that."""
    for key, value in trailing or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                found = error_details_pb2.RetryInfo()
                if detail.Unpack(found):
                    return float(found.retry_delay.ToTimedelta().total_seconds())
    return None


async def live(fleet: Fleet, numbers: range) -> None:
    """Connect them all, say how many could, and keep them until SIGTERM."""
    ends = await asyncio.gather(*(fleet.connect(number) for number in numbers), return_exceptions=True)
    failures = [end for end in ends if end is not None]
    for failure in failures[:3]:
        print(repr(failure), file=sys.stderr)
    print(f"connected {len(ends) - len(failures)}", flush=True)
    await asyncio.Event().wait()


def main(address: str, data: str, first: str, count: str, at_once: str, *certificate: str) -> None:
    pem = pathlib.Path(certificate[0]).read_bytes() if certificate else None
    fleet = Fleet(address, pathlib.Path(data), pem, int(at_once))
    uvloop.run(live(fleet, range(int(first), int(first) + int(count))))


if __name__ == "__main__":
    main(*sys.argv[1:])
