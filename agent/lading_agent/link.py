"""Channels to the server: TLS unless it is on this machine, and what keeps a broken one from looking alive."""

from importlib.metadata import version

import grpc

from lading_agent.settings import Settings

# The server must allow pings at least twice as often.
KEEPALIVE_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
MESSAGE_BYTES_MAX = 16 << 20


def open_channel(settings: Settings) -> grpc.aio.Channel:
    """A connection of its own: no other channel shares it, nor its memory of failures."""
    options: list[tuple[str, str | int]] = [
        ("grpc.primary_user_agent", f"lading-agent/{version('lading')}"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ]
    if settings.ca is None:
        return grpc.aio.insecure_channel(settings.server, [*options, ("grpc.enable_http_proxy", 0)])
    credentials = grpc.ssl_channel_credentials(settings.ca.read_bytes())
    return grpc.aio.secure_channel(settings.server, credentials, options)


def identity(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Metadata that says who calls; raises SettingsError when the token's file cannot be read any more."""
    return (("authorization", f"Bearer {settings.token()}"),)
