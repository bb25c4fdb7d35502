"""The service Access behind the real interceptors, ledger and identity, on a database that `init` made."""

import json
from typing import Any

import grpc
import sqlalchemy as sa
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError

from lading.v1 import access_pb2, access_pb2_grpc, audit_log_pb2
from lading_server import bootstrap, signer, tokens
from lading_server.clock import new_id
from lading_server.identity import Identity, verifier_of
from lading_server.interceptors.audit import Audit
from lading_server.interceptors.methods import methods_of
from lading_server.ledger.ledger import Ledger
from lading_server.services.access import Access
from lading_server.settings import Settings
from lading_server.store import database, schema
from lading_server.store.reader import Reader
from tests.integration.server.running import sign

OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_metadata_size", 32 * 1024))


class AccessServer:
    """Organization acme, whose admin ada has the token `ada`; and system, whose admin she is too, with `root`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def __aenter__(self) -> "AccessServer":
        settings = self.settings
        self.ada, self.root = sign(settings), sign(settings, organization="system")
        self.key = tokens.load_key(settings.data)
        self.engine = database.open_engine(settings.database_url)
        self.reader = Reader(self.engine)
        self.ledger = Ledger(self.engine, signer.load(settings.data), boot_id=new_id())
        self.ledger.start()
        self.identity = Identity(verifier_of(settings, self.key), self.reader, development=settings.development)
        self.ledger.on_commit(self.identity.committed)
        await self.identity.start()
        self.audit = Audit(self.ledger, self.identity, methods_of(["lading.v1.Access"]))
        self.server = grpc.aio.server(interceptors=(self.audit,), options=OPTIONS)
        service = Access(self.reader, self.identity, self.key, settings.audience)
        access_pb2_grpc.add_AccessServicer_to_server(service, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub: Any = access_pb2_grpc.AccessStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)
        await self.audit.drained()
        await self.identity.close()
        await self.ledger.close()
        self.reader.close()
        self.engine.dispose()

    async def call(self, method: str, request: Any, token: str | None = None) -> Any:
        """The reply to a call as ada of acme, or with another token (none when empty). Raises AioRpcError."""
        held = self.ada if token is None else token
        metadata = (("authorization", f"Bearer {held}"),) if held else ()
        return await getattr(self.stub, method)(request, metadata=metadata, timeout=20)

    async def refused(self, method: str, request: Any, token: str | None = None) -> tuple[grpc.StatusCode, str]:
        """Code and message of a call that must fail."""
        try:
            reply = await self.call(method, request, token)
        except AioRpcError as failure:
            return failure.code(), failure.details() or ""
        raise AssertionError(f"{method} answered {reply}")

    async def issue(
        self, subject: str, type: int = audit_log_pb2.ACTOR_TYPE_USER, token: str | None = None, **more: Any
    ) -> str:
        """A new token for `subject`."""
        request = access_pb2.IssueTokenRequest(type=type, subject=subject, **more)  # type: ignore[arg-type]
        secret: str = (await self.call("IssueToken", request, token)).secret
        return secret

    async def assign(self, subject: str, role: int, token: str | None = None) -> Any:
        request = access_pb2.AssignRoleRequest(subject=subject, role=role)  # type: ignore[arg-type]
        return await self.call("AssignRole", request, token)

    async def events(self, organization: str = "acme") -> list[Any]:
        """The log of an organization since `init`, oldest first, each with its `details` as values."""
        events = schema.events

        def read(connection: sa.Connection) -> list[Any]:
            query = sa.select(events).where(events.c.organization == organization).order_by(events.c.index)
            return list(connection.execute(query).all())

        return [Recorded(row) for row in await self.reader.read(read) if row.actor != bootstrap.ACTOR_ID]


class Recorded:
    """A row of the log."""

    def __init__(self, row: Any) -> None:
        self.row = row
        self.details = json.loads(row.details)
        self.diff = self.details.get("diff")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.row, name)

    def __repr__(self) -> str:
        return f"<{self.row.action} {self.row.target} {self.row.outcome} {self.row.error}>"


def violations_of(failure: AioRpcError) -> dict[str, str]:
    """Fields that the answer says are wrong."""
    trailing = dict(failure.trailing_metadata() or ())
    answer = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    for detail in answer.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            return {violation.field: violation.description for violation in bad.field_violations}
    return {}
