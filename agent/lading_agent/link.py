"""Channels to the server: TLS unless it is on this machine, and what keeps a broken one from looking alive."""

import random
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any, TypeVar

import grpc

from lading_agent.errors import SettingsError
from lading_agent.settings import Settings, ip_version

Value = TypeVar("Value")

# The server must allow pings at least twice as often.
KEEPALIVE_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
MESSAGE_BYTES_MAX = 16 << 20


def open_channel(settings: Settings) -> grpc.aio.Channel:
    """A connection of its own: no other channel shares it, nor its memory of failures. Raises SettingsError when the
    file of certificates cannot be read any more."""
    options: list[tuple[str, str | int]] = [
        ("grpc.primary_user_agent", f"lading-agent/{version('lading')}"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ]
    addresses = settings.server.split(",")
    if len(addresses) > 1:
        # Whose certificate theirs must be.
        options.append(("grpc.default_authority", addresses[0].rpartition(":")[0].strip("[]")))
    server = target(addresses)
    if settings.ca is None:
        return grpc.aio.insecure_channel(server, [*options, ("grpc.enable_http_proxy", 0)])
    try:
        certificates = settings.ca.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read --ca {settings.ca}: {error.strerror}") from None
    return grpc.aio.secure_channel(server, grpc.ssl_channel_credentials(certificates), options)


class Line:
    """The connection of the sessions; `async with` opens it, and closes it unless it is to be `kept` for the next one.

    A server that sheds an agent gives it a turn, and on one address there may be several processes: only the one at
    the other end knows of it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channel: grpc.aio.Channel | None = None
        self.kept = False

    async def __aenter__(self) -> grpc.aio.Channel:
        """Raises SettingsError as `open_channel` does."""
        if self._channel is None:
            self._channel = open_channel(self._settings)
        self.kept = False
        return self._channel

    async def __aexit__(self, *_: object) -> None:
        if not self.kept:
            await self.close()

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def target(addresses: list[str]) -> str:
    """As grpc names these servers: it connects to the first that answers. Each time in another order, so that agents
    spread over those that are there."""
    if len(addresses) == 1:
        return addresses[0]
    return f"ipv{ip_version(addresses[0])}:{','.join(random.sample(addresses, len(addresses)))}"


def identity(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Metadata that says who calls; raises SettingsError when the token's file cannot be read any more."""
    return (("authorization", f"Bearer {settings.token()}"),)


def watch_status(call: grpc.aio.Call) -> list[grpc.aio.AioRpcError]:
    """The statuses that this call comes to have: the first is how it ended. When a frame is written just then, grpcio
    has that failure ("Internal error from Core") take the place of what the server said."""
    seen = []

    def keep(call: grpc.aio.Call) -> None:
        trailing = _now(call.trailing_metadata())
        seen.append(grpc.aio.AioRpcError(_now(call.code()), grpc.aio.Metadata(), trailing, _now(call.details())))

    call.add_done_callback(keep)
    return seen


def _now(asked: Coroutine[Any, Any, Value]) -> Value:
    """The answer of what has nothing to wait for: a call that has ended knows its status."""
    try:
        asked.send(None)
    except StopIteration as answered:
        return answered.value  # type: ignore[no-any-return]
    finally:
        asked.close()
    raise AssertionError("it waits")
