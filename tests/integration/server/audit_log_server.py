"""The service AuditLog behind the real interceptors, ledger and identity, on a database that `init` made."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError

from lading.v1 import audit_log_pb2 as pb
from lading.v1 import audit_log_pb2_grpc
from lading_server import signer, tokens
from lading_server.clock import new_id, now
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.identity import Identity, verifier_of
from lading_server.interceptors.audit import Audit
from lading_server.interceptors.methods import methods_of
from lading_server.ledger import counts
from lading_server.ledger.ledger import Ledger
from lading_server.services.audit_log import AuditLog
from lading_server.settings import Settings
from lading_server.store import database, tiles
from lading_server.store.reader import Reader
from tests.integration.server.running import sign

ADA = Actor(ActorType.USER, "ada", email="ada@acme.example", credential="token-1")


def event(action: str = "task.update", *, organization: str = "acme", actor: Actor = ADA, **values: Any) -> Event:
    """An event that ended well, unless told otherwise. `target`: a container of that id."""
    if "target" in values:
        values["targets"] = (("container", values.pop("target")),)
    others: dict[str, Any] = {"operation": new_id(), "stage": Stage.COMPLETED, "outcome": Outcome.SUCCESS}
    return Event(
        id=new_id(), organization=organization, occurred_at=now(), actor=actor, action=action, **(others | values)
    )


class AuditLogServer:
    """Organizations acme and globex; ada is admin of both, with the tokens `acme` and `globex`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def __aenter__(self) -> "AuditLogServer":
        settings = self.settings
        self.acme, self.globex = sign(settings), sign(settings, organization="globex")
        self.engine = database.open_engine(settings.database_url)
        self.reader = Reader(self.engine)
        self.signer, cache = signer.load(settings.data), tiles.Cache()
        self.ledger = Ledger(self.engine, self.signer, boot_id=new_id(), cache=cache)
        self.ledger.start()
        self.identity = Identity(verifier_of(settings, tokens.load_key(settings.data)), self.reader, development=False)
        self.ledger.on_commit(self.identity.committed)
        await self.identity.start()
        self.audit = Audit(self.ledger, self.identity, methods_of(["lading.v1.AuditLog"]))
        self.server = grpc.aio.server(interceptors=(self.audit,), options=(("grpc.so_reuseport", 0),))
        audit_log_pb2_grpc.add_AuditLogServicer_to_server(
            AuditLog(self.reader, self.ledger, self.signer, cache), self.server
        )
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub: Any = audit_log_pb2_grpc.AuditLogStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)
        await self.audit.drained()
        await self.identity.close()
        await self.ledger.close()
        self.reader.close()
        self.engine.dispose()

    def metadata(self, token: str | None = None) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {token or self.acme}"),)

    async def call(self, method: str, request: Any, token: str | None = None) -> Any:
        """The reply to a call as ada of acme, or with another token. Raises AioRpcError."""
        return await getattr(self.stub, method)(request, metadata=self.metadata(token), timeout=20)

    async def refused(self, method: str, request: Any, token: str | None = None) -> AioRpcError:
        """How a call fails that must."""
        try:
            reply = await self.call(method, request, token)
        except AioRpcError as failure:
            return failure
        raise AssertionError(f"{method} answered {reply}")

    async def record(self, *events: Event) -> list[int]:
        """Put events into the log; their indexes."""
        return await self.ledger.record(events)

    async def count(self, organization: str = "acme") -> None:
        """Bring the roll-ups up to date."""
        while await self.ledger.commit((organization,), lambda unit: counts.count(unit.connection, organization, 100)):
            pass

    async def list(
        self, *matches: pb.Match, token: str | None = None, size: int = 500, page: str = "", **of_filter: Any
    ) -> Any:
        """The answer of ListEvents, without what reading the log leaves in it."""
        unless_read = pb.Match(field=pb.FIELD_ACTION, values=["audit.*"], negate=True)
        wanted = pb.EventFilter(matches=[unless_read, *matches], **of_filter)
        return await self.call(
            "ListEvents", pb.ListEventsRequest(filter=wanted, page_size=size, page_token=page), token
        )

    async def indexes(self, *matches: pb.Match, **options: Any) -> Sequence[int]:
        """Indexes of the events that match, newest first."""
        return [found.index for found in (await self.list(*matches, **options)).events]


def with_email(actor: Actor, email: str) -> Actor:
    return dataclasses.replace(actor, email=email)


def match(field: str, *values: str, negate: bool = False) -> pb.Match:
    """`match("ACTOR", "ada")`."""
    return pb.Match(field=pb.Field.Value(f"FIELD_{field}"), values=values, negate=negate)


def reason_of(failure: AioRpcError) -> str:
    """ErrorInfo.reason of an answer."""
    trailing = dict(failure.trailing_metadata() or ())
    for detail in status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""
