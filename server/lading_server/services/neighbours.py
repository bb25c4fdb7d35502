"""The other processes of this server, as this one calls them."""

import asyncio
import contextlib
import logging
import pathlib
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc.aio import EOF

from lading.v1 import agent_link_pb2, replicas_pb2, replicas_pb2_grpc
from lading_server import errors, tokens
from lading_server.clock import new_id, now
from lading_server.event import SYSTEM, ActorType
from lading_server.settings import ISSUER, Settings, is_loopback
from lading_server.store import agents, boots
from lading_server.store.reader import Reader

log = logging.getLogger(__name__)

TOKEN_SECONDS = 120
CALL_SECONDS = 5.0
LOOKS = 3
LOOK_AGAIN_SECONDS = 0.25
"""An agent that is not where it was a moment ago is on its way."""
CHANNELS_MAX = 64


class Neighbours:
    """Finds the process that has a session, by the database, and calls it at its private address."""

    def __init__(self, reader: Reader, boot_id: str, key: Ed25519PrivateKey, settings: Settings) -> None:
        self._reader, self._boot_id, self._key, self._settings = reader, boot_id, key, settings
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: asyncio.Task[None] | None = None
        self._token, self._token_until = "", 0.0

    async def close(self) -> None:
        """End the connections."""
        for channel in self._channels.values():
            await channel.close()

    async def open_log(self, organization: str, agent: str, ask: agent_link_pb2.OpenBulk) -> None:
        """Have an agent that is connected to another process open a log. Raises AgentOffline."""
        request = replicas_pb2.OpenLogRequest(organization=organization, agent=agent, open=ask)
        for look in range(LOOKS):
            await asyncio.sleep(LOOK_AGAIN_SECONDS * look)
            row = await self._reader.read(agents.get, organization, agent)
            if row is None or not row.connected or row.lease_until <= now():
                break
            address = await self._reader.read(boots.address_of, row.replica)
            if not address:
                continue
            try:
                await self._stub(address).OpenLog(request, metadata=self._who(), timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as failure:
                if failure.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                    log.error("replica %s answered %s: %s", address, failure.code().name, failure.details())
                    raise errors.Error(f"the process that has the agent answered {failure.code().name}") from failure
            else:
                return
        raise errors.AgentOffline(f"agent {agent} is not connected: its logs cannot be read now")

    async def pass_on(
        self,
        organization: str,
        agent: str,
        first: agent_link_pb2.BulkRequest,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Bring an agent's Bulk stream, from its first message on, to the process that has its reader, and what comes
        back to the agent. Raises NotFound when there is none; what else breaks ends the stream, and the agent comes
        again."""
        reader = await self._reader.read(boots.reader_of, organization, first.session)
        address = "" if reader in ("", self._boot_id) else await self._reader.read(boots.address_of, reader)
        if not address:
            raise errors.NotFound("no such bulk session: it was not asked for, or its reader is gone")
        call: Any = self._stub(address).Relay(metadata=self._who())
        rising = asyncio.create_task(rise(call, organization, agent, first, read))
        try:
            while (answer := await call.read()) is not EOF:
                await write(answer.down)
            await call.code()
            if rising.done() and (failed := rising.exception()):
                raise failed
        except grpc.aio.AioRpcError as failure:
            if failure.code() is grpc.StatusCode.NOT_FOUND:
                raise errors.NotFound("no such bulk session: its reader is gone") from None
            if failure.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise errors.InvalidArgument(failure.details() or "") from None
            raise errors.AgentOffline(f"the way to the session's reader broke: {failure.code().name}") from failure
        finally:
            rising.cancel()
            call.cancel()
            await asyncio.gather(rising, return_exceptions=True)

    def _stub(self, address: str) -> Any:
        channel = self._channels.pop(address, None) or self._open(address)
        self._channels[address] = channel  # the last one used is the last one here
        if len(self._channels) > CHANNELS_MAX:
            oldest = self._channels.pop(next(iter(self._channels)))
            self._closing = asyncio.create_task(oldest.close())
        return replicas_pb2_grpc.ReplicasStub(channel)

    def _open(self, address: str) -> grpc.aio.Channel:
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", 16 << 20),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.enable_http_proxy", 0),
        )
        if is_loopback(address.rpartition(":")[0]):
            return grpc.aio.insecure_channel(address, options)
        assert self._settings.tls_cert is not None, "settings are checked"
        return grpc.aio.secure_channel(address, trust_of(self._settings.tls_cert), options)

    def _who(self) -> tuple[tuple[str, str]]:
        if time.monotonic() > self._token_until:
            self._token_until = time.monotonic() + TOKEN_SECONDS / 2
            at = now() // tokens.MICROSECONDS * tokens.MICROSECONDS
            ends = at + TOKEN_SECONDS * tokens.MICROSECONDS
            claims = tokens.Claims(
                ISSUER, SYSTEM, ActorType.SERVICE, f"replica-{self._boot_id}", new_id(), at, ends, replica=True
            )
            self._token = tokens.sign(self._key, claims, self._settings.audience)
        return (("authorization", f"Bearer {self._token}"),)


async def rise(call: Any, organization: str, agent: str, piece: Any, read: Callable[[], Awaitable[Any]]) -> None:
    """What the agent sends, to the reader's process; its pace is the reader's. Raises MessageTooLarge,
    MalformedRequest."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        start = replicas_pb2.RelayStart(organization=organization, agent=agent)
        await call.write(replicas_pb2.RelayRequest(start=start))
        while piece is not EOF:
            await call.write(replicas_pb2.RelayRequest(up=piece))
            try:
                piece = await read()
            except errors.Error:
                await call.done_writing()  # else nobody would end the call
                raise
        await call.done_writing()


def trust_of(certificates: pathlib.Path) -> grpc.ChannelCredentials:
    """Believes certificates that the system's authorities signed, or one in the chain that this process shows."""
    system = ssl.get_default_verify_paths().cafile
    more = pathlib.Path(system).read_bytes() if system else b""
    return grpc.ssl_channel_credentials(certificates.read_bytes() + b"\n" + more)
