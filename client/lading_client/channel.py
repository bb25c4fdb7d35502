"""Connections to the server: address, TLS, keepalive, retries, and the metadata that goes with each call."""

from __future__ import annotations

import importlib.metadata
import ipaddress
import json
import pathlib
import ssl
from dataclasses import dataclass

import grpc
import grpc.aio

from lading.v1 import (
    access_pb2,
    agents_pb2,
    audit_log_pb2,
    commands_pb2,
    containers_pb2,
    options_pb2,
    rollouts_pb2,
)

DEFAULT_PORT = 7443
SERVICES = tuple(
    service
    for file in (containers_pb2, commands_pb2, agents_pb2, audit_log_pb2, access_pb2, rollouts_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Of `HOST`, `HOST:PORT` or `[IPV6]:PORT`; ValueError when it is none of these."""
        host, colon, port = text.strip().rpartition(":")
        if not colon or "]" in port:
            host, port = text.strip(), str(DEFAULT_PORT)
        host = host.removeprefix("[").removesuffix("]")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not HOST:PORT, as in 127.0.0.1:{DEFAULT_PORT}")
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether what is sent there stays on this machine."""
        return self.host == "localhost" or (bool(self.version) and ipaddress.ip_address(self.host).is_loopback)

    @property
    def version(self) -> int:
        """4 or 6 for an IP address, 0 for a name."""
        try:
            return ipaddress.ip_address(self.host).version
        except ValueError:
            return 0

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Of one address, or of those of several servers with commas between; ValueError when it is none of these.

    Several are numbers of one kind, all IPv4 or all IPv6: servers that share a name need no list, as one name may have
    many addresses. Where they speak TLS, the certificate of each is checked against the host of the first.
    """
    found = tuple(Address.parse(part) for part in text.split(","))
    if len(found) > 1 and {address.version for address in found} not in ({4}, {6}):
        raise ValueError(f"{text!r}: several servers are given by IP addresses, all IPv4 or all IPv6, not by names")
    return found


@dataclass(frozen=True)
class Endpoint:
    """A server, or several with one database behind them, and how to speak with it.

    `ca`: file with the certificates (PEM) that may sign the server's; with none, the system's are used, and plaintext
    on loopback. `tls` overrides that: False is plaintext, a ValueError but on loopback.
    `source`: what the caller is, in the user agent: `cli`.
    """

    addresses: tuple[Address, ...]
    ca: str | pathlib.Path | None = None
    tls: bool | None = None
    source: str = "python"

    def __post_init__(self) -> None:
        away = [address for address in self.addresses if not address.loopback]
        if self.tls is False and away:
            raise ValueError(f"plaintext is for loopback only, and {away[0]} is not: use TLS (--ca FILE)")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials; None means plaintext. OSError when `ca` cannot be read."""
        if self.ca is not None:
            return grpc.ssl_channel_credentials(pathlib.Path(self.ca).expanduser().read_bytes())
        if not self.tls and all(address.loopback for address in self.addresses):
            return None
        system = ssl.get_default_verify_paths().cafile
        return grpc.ssl_channel_credentials(pathlib.Path(system).read_bytes() if system else None)

    def open(self) -> grpc.Channel:
        """A channel for blocking calls; it connects at the first one."""
        credentials = self.credentials()
        if credentials is None:
            return grpc.insecure_channel(self.target, options=self._options())
        return grpc.secure_channel(self.target, credentials, options=self._options())

    def open_async(self) -> grpc.aio.Channel:
        """A channel for asyncio; it connects at the first call."""
        credentials = self.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=self._options())
        return grpc.aio.secure_channel(self.target, credentials, options=self._options())

    @property
    def target(self) -> str:
        """As grpc names it."""
        first = self.addresses[0]
        return f"ipv{first.version}:{','.join(map(str, self.addresses))}" if len(self.addresses) > 1 else str(first)

    def _options(self) -> list[tuple[str, str | int]]:
        several = len(self.addresses) > 1
        return [
            *([("grpc.default_authority", self.addresses[0].host)] if several else []),
            ("grpc.primary_user_agent", f"lading-{self.source}/{importlib.metadata.version('lading')}"),
            # Without it a channel may wait for two minutes after the server is back.
            ("grpc.max_reconnect_backoff_ms", 5_000),
            # A server that is restarted, or one of several behind an address: sooner than the retries of a call end.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", 16 << 20),
            ("grpc.service_config", service_config(several)),
        ]


def service_config(several: bool = False) -> str:
    """Retries (gRFC A6) on UNAVAILABLE for what is safe to ask twice: reads, by the methods' own audit rules, and
    changes that carry a request_id. CANCELLED too: it is how a call ends that reaches a server which has just begun to
    stop, before it is served. The server says when not to (gRFC A6, pushback): an agent that is away stays so, and
    what it has answered with CANCELLED is its answer. With `several` servers, each call goes to the next one that is
    there.
    """
    repeatable = [
        {"service": service.full_name, "method": method.name}
        for service in SERVICES
        for method in service.methods
        if "request_id" in method.input_type.fields_by_name
        or not method.GetOptions().Extensions[options_pb2.audit].changes
    ]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    }
    balancing: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]} if several else {}
    return json.dumps({"methodConfig": [{"name": repeatable, "retryPolicy": policy}], **balancing})


def call_metadata(token: str | None, correlation_id: str | None) -> tuple[tuple[str, str], ...]:
    """What goes with every call: the bearer token and the correlation id.

    Plain metadata, not gRPC call credentials: those refuse a plaintext channel, also on loopback.
    """
    pairs = [("authorization", f"Bearer {token}" if token else ""), ("x-request-id", correlation_id or "")]
    return tuple((key, value) for key, value in pairs if value)
