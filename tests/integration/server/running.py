"""A whole server in this process, as `lading server run` runs it, and what callers and readers see of it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import psycopg
from google.rpc import error_details_pb2, status_pb2

from lading.v1 import (
    access_pb2_grpc,
    agents_pb2_grpc,
    audit_log_pb2_grpc,
    commands_pb2_grpc,
    containers_pb2_grpc,
)
from lading_server import tokens
from lading_server.clock import new_id, now
from lading_server.event import ActorType, Outcome, Stage
from lading_server.ledger.ledger import Ledger
from lading_server.root import Server
from lading_server.settings import ISSUER, Settings
from tests.faults import reader

ORGANIZATION = "acme"
OTHER_ORGANIZATION = "globex"
ADMIN = "ada"

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Recorded:
    """One event, as an independent reader finds it in the database."""

    index: int
    id: str
    operation: str
    parent: str
    stage: Stage
    outcome: Outcome
    code: int
    action: str
    actor: str
    target: str
    agent: str
    reason: str
    error: str
    request_id: str
    count: int
    superseded_by: int | None
    recorded_at: int
    boot_id: str
    sequence: int
    details: dict[str, Any]

    @property
    def summary(self) -> tuple[Stage, Outcome, int]:
        return self.stage, self.outcome, self.code


COLUMNS = list(Recorded.__dataclass_fields__)


def read_events(settings: Settings, organization: str = ORGANIZATION, **equal: Any) -> list[Recorded]:
    """The log of an organization, oldest first; only the events whose fields are `equal` to these."""
    quoted = ", ".join(f'"{name}"' for name in COLUMNS)
    found = reader.rows(
        settings.database_url,
        f"SELECT {quoted} FROM events WHERE organization = '{organization}' ORDER BY \"index\"",
    )
    events = []
    for row in found:
        values = dict(zip(COLUMNS, row, strict=True))
        values |= {"stage": Stage(values["stage"]), "outcome": Outcome(values["outcome"])}
        values["details"] = json.loads(values["details"])
        events.append(Recorded(**values))
    return [event for event in events if all(getattr(event, name) == value for name, value in equal.items())]


def sign(
    settings: Settings,
    subject: str = ADMIN,
    kind: ActorType = ActorType.USER,
    organization: str = ORGANIZATION,
    lifetime_seconds: int = 3600,
) -> str:
    """A token that the server believes."""
    at = now() // tokens.MICROSECONDS * tokens.MICROSECONDS
    email = f"{subject}@acme.example" if kind is ActorType.USER else ""
    claims = tokens.Claims(
        ISSUER, organization, kind, subject, new_id(), at, at + lifetime_seconds * tokens.MICROSECONDS, email
    )
    return tokens.sign(tokens.load_key(settings.data), claims, settings.audience)


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


class Stubs:
    """Every service, over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.access: Any = access_pb2_grpc.AccessStub(channel)
        self.agents: Any = agents_pb2_grpc.AgentsStub(channel)
        self.audit_log: Any = audit_log_pb2_grpc.AuditLogStub(channel)
        self.commands: Any = commands_pb2_grpc.CommandsStub(channel)
        self.containers: Any = containers_pb2_grpc.ContainersStub(channel)


class Running:
    """A server that serves. `me`: call metadata of the admin."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.server = Server(settings)
        self.me = bearer(sign(settings))
        self._committed = asyncio.Condition()
        self._channels: list[grpc.aio.Channel] = []
        self.is_up = False

    async def __aenter__(self) -> "Running":
        await self.server.start()
        self.is_up = True
        self.server._ledger.on_commit(lambda _sizes: self._noted())
        self.stubs = Stubs(self.channel())
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()
        await self.stop(0)

    async def stop(self, seconds: float) -> None:
        if self.is_up:
            self.is_up = False
            await self.server.stop(seconds)

    @property
    def address(self) -> str:
        return self.server.address

    def channel(self) -> grpc.aio.Channel:
        """A new connection to the server."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.aio.insecure_channel(self.address, options=options)
        self._channels.append(channel)
        return channel

    def events(self, organization: str = ORGANIZATION, **equal: Any) -> list[Recorded]:
        return read_events(self.settings, organization, **equal)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What a query finds, read past the server."""
        return reader.rows(self.settings.database_url, statement)

    def write(self, statement: str) -> None:
        """Change the database behind the server's back."""
        url = self.settings.database_url
        if url.startswith("postgresql"):
            with psycopg.connect(url) as database:
                database.execute(statement.encode())
            return
        import sqlite3

        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as embedded, embedded:
            embedded.execute(statement)

    async def until(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        """What `condition()` gives once it is true; looked at after each commit that adds events."""
        async with asyncio.timeout(seconds), self._committed:
            while not (found := condition()):
                await self._committed.wait()
            return found

    @property
    def ledger(self) -> Ledger:
        return self.server._ledger

    async def waiting(self, count: int) -> None:
        """Wait until so many units wait for the ledger, which is `busy`."""
        async with asyncio.timeout(30):
            while len(self.ledger._waiting) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def event(self, organization: str = ORGANIZATION, **equal: Any) -> Recorded:
        """The first event with these fields, once it is there."""
        found: list[Recorded] = await self.until(lambda: self.events(organization, **equal))
        return found[0]

    def _noted(self) -> None:
        async def notify() -> None:
            async with self._committed:
                self._committed.notify_all()

        asyncio.ensure_future(notify())  # noqa: RUF006


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    async with Running(settings) as server:
        yield server


def detail(failure: grpc.aio.AioRpcError, kind: Any) -> Any:
    """The detail of this kind that a refusal carries; None when it has none."""
    trailing: dict[str, Any] = dict(failure.trailing_metadata() or ())
    if "grpc-status-details-bin" not in trailing:
        return None
    for one in status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details:
        found = kind()
        if one.Unpack(found):
            return found
    return None


def info(failure: grpc.aio.AioRpcError) -> Any:
    """ErrorInfo of a refusal."""
    return detail(failure, error_details_pb2.ErrorInfo)
