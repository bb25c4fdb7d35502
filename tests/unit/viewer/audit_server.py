"""A server of AuditLog and Access over a list of events, in this process: what the viewer reads, without a database.

It filters by time, outcome, action, actor, target and words; pages by index; counts; and can be told to fail.
"""

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc

from lading.v1 import access_pb2, access_pb2_grpc, audit_log_pb2, audit_log_pb2_grpc
from lading.v1.audit_log_pb2 import Event, EventFilter, Outcome
from lading_client import requests
from tests.unit.client.made_log import MadeLog

ORGANIZATION = "acme"
WIDTH = timedelta(minutes=30)


def token(subject: str = "ada", lifetime: timedelta = timedelta(hours=1), **claims: object) -> str:
    """A token whose claims can be read; nobody here checks its signature."""
    ends = int((datetime.now(UTC) + lifetime).timestamp())
    body = {"sub": subject, "email": f"{subject}@acme.example", "org": ORGANIZATION, "exp": ends} | claims
    return ".".join(_base64(part) for part in (b'{"alg":"EdDSA"}', json.dumps(body).encode(), b"signature"))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def event(index: int, at: datetime, action: str = "container.start", **fields: object) -> Event:
    """A terminal event with success, unless `fields` say otherwise."""
    email = str(fields.pop("email", "ada@acme.example"))
    target = str(fields.pop("target", "dock-1/web"))
    outcome = fields.pop("outcome", audit_log_pb2.OUTCOME_SUCCESS)
    made = Event(
        id=f"01990000-0000-7000-8000-{index:012d}",
        index=index,
        organization=ORGANIZATION,
        operation=f"01990000-0000-7000-9000-{index:012d}",
        stage=audit_log_pb2.STAGE_COMPLETED,
        actor=audit_log_pb2.Actor(type=audit_log_pb2.ACTOR_TYPE_USER, id=email.partition("@")[0], email=email),
        action=action,
        method=f"/lading.v1.Containers/{action.rpartition('.')[2].capitalize()}Container",
        targets=[audit_log_pb2.Target(type="container", id=target)] if target else [],
        outcome=outcome,  # type: ignore[arg-type]
        changes=not action.endswith((".list", ".get")),
        agent=target.partition("/")[0],
        count=1,
        user_agent="lading-cli/0.1.0 grpc-python/1.83.2",
        peer="ipv4:10.0.3.59:51620",
        recorded_at=requests.timestamp(at),
        occurred_at=requests.timestamp(at),
        duration=requests.duration(0.041),
    )
    made.MergeFrom(Event(**fields))  # type: ignore[arg-type]
    return made


@dataclass
class Log:
    """The events, oldest first; what each call was; and what is to go wrong: by method, an error code.

    `made` gives the proofs; without it they are not implemented.
    """

    events: list[Event] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    fails: dict[str, grpc.StatusCode] = field(default_factory=dict)
    made: MadeLog | None = None
    permissions: Sequence[str] = ("audit.read", "audit.export")

    grown: threading.Condition = field(default_factory=threading.Condition)

    def proofs(self, name: str, context: grpc.ServicerContext) -> MadeLog:
        self.called(name, context)
        if self.made is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "there are no proofs")
        return self.made

    def append(self, event: Event) -> None:
        """Add an event and tell the tails."""
        with self.grown:
            self.events.append(event)
            self.grown.notify_all()

    def called(self, name: str, context: grpc.ServicerContext) -> None:
        metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        self.calls.append((name, metadata.get("authorization", "")))
        if code := self.fails.get(name, self.fails.get("*")):
            context.abort(code, f"{name} was told to fail")

    def matching(self, filter: EventFilter) -> list[Event]:
        """Newest first."""
        return [event for event in reversed(self.events) if matches(event, filter)]


def matches(event: Event, filter: EventFilter) -> bool:
    recorded = event.recorded_at.ToNanoseconds()
    if filter.HasField("since") and recorded < filter.since.ToNanoseconds():
        return False
    if filter.HasField("until") and recorded >= filter.until.ToNanoseconds():
        return False
    if (filter.changes_only and not event.changes) or (filter.latest_only and event.HasField("superseded_by")):
        return False
    text = " ".join((event.targets[0].id if event.targets else "", event.actor.email, event.reason, event.error))
    return all(word in text for word in filter.words) and all(
        any(fits(value, each) for each in _values(event, match.field) for value in match.values) != match.negate
        for match in filter.matches
    )


def fits(pattern: str, value: str) -> bool:
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else pattern == value


def _values(event: Event, field: int) -> list[str]:
    match field:
        case audit_log_pb2.FIELD_ACTOR:
            return [event.actor.id, event.actor.email]
        case audit_log_pb2.FIELD_ACTION:
            return [event.action, event.action.rpartition(".")[2]]
        case audit_log_pb2.FIELD_TARGET:
            return [event.targets[0].id, event.targets[0].id.rpartition("/")[2]] if event.targets else []
        case audit_log_pb2.FIELD_AGENT:
            return [event.agent]
        case audit_log_pb2.FIELD_OUTCOME:
            return [Outcome.Name(event.outcome).removeprefix("OUTCOME_").replace("UNSPECIFIED", "PENDING")]
        case audit_log_pb2.FIELD_SOURCE:
            return [event.user_agent]
        case audit_log_pb2.FIELD_OPERATION:
            return [event.operation, event.parent]
        case _:
            return []


@dataclass
class AuditLog(audit_log_pb2_grpc.AuditLogServicer):
    log: Log

    def ListEvents(
        self, request: audit_log_pb2.ListEventsRequest, context: grpc.ServicerContext
    ) -> audit_log_pb2.ListEventsResponse:
        self.log.called("ListEvents", context)
        found = self.log.matching(request.filter)
        size = request.page_size or 100
        begin = 0
        if request.page_token:
            if not request.page_token.isdecimal():
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "page_token: not from an answer of this server")
            begin = next((at for at, event in enumerate(found) if event.index <= int(request.page_token)), len(found))
        page = found[begin : begin + size]
        older, newer = found[begin + size : begin + size + 1], found[max(0, begin - size) : begin]
        return audit_log_pb2.ListEventsResponse(
            events=page if request.with_entries else map(bare, page),
            next_page_token=str(older[0].index) if older else "",
            previous_page_token=str(newer[0].index) if newer else "",
        )

    def GetEvent(self, request: audit_log_pb2.GetEventRequest, context: grpc.ServicerContext) -> Event:
        self.log.called("GetEvent", context)
        found = next((event for event in self.log.events if event.id == request.id), None)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such event")
        return bare(found)

    def GetCheckpoint(
        self, request: audit_log_pb2.GetCheckpointRequest, context: grpc.ServicerContext
    ) -> audit_log_pb2.GetCheckpointResponse:
        return self.log.proofs("GetCheckpoint", context).GetCheckpoint(request)

    def GetConsistencyProof(
        self, request: audit_log_pb2.GetConsistencyProofRequest, context: grpc.ServicerContext
    ) -> audit_log_pb2.ConsistencyProof:
        return self.log.proofs("GetConsistencyProof", context).GetConsistencyProof(request)

    def ReadTiles(
        self, request: audit_log_pb2.ReadTilesRequest, context: grpc.ServicerContext
    ) -> Iterator[audit_log_pb2.ReadTilesResponse]:
        yield from self.log.proofs("ReadTiles", context).ReadTiles(request)

    def GetReceipt(
        self, request: audit_log_pb2.GetReceiptRequest, context: grpc.ServicerContext
    ) -> audit_log_pb2.Receipt:
        return self.log.proofs("GetReceipt", context).GetReceipt(request)

    def SummarizeEvents(
        self, request: audit_log_pb2.SummarizeEventsRequest, context: grpc.ServicerContext
    ) -> audit_log_pb2.SummarizeEventsResponse:
        self.log.called("SummarizeEvents", context)
        found = self.log.matching(request.filter)
        answer = audit_log_pb2.SummarizeEventsResponse(total=len(found), failed=sum(map(failed, found)))
        answer.width.CopyFrom(requests.duration(WIDTH.total_seconds()))
        counts: Counter[int] = Counter()
        bad: Counter[int] = Counter()
        step = int(WIDTH.total_seconds())
        for each in found:
            counts[each.recorded_at.seconds // step] += 1
            bad[each.recorded_at.seconds // step] += failed(each)
        for at in range(min(counts), max(counts) + 1) if counts else ():
            bucket = answer.buckets.add(total=counts[at], failed=bad[at])
            bucket.begins_at.FromSeconds(at * step)
        for kind in request.facets:
            facet = answer.facets.add(field=kind)
            values = Counter(
                _values(each, kind)[-1] if kind == audit_log_pb2.FIELD_ACTOR else _values(each, kind)[0]
                for each in found
                if _values(each, kind)
            )
            for value, total in values.most_common(request.values_max or 20):
                facet.values.add(
                    value=value,
                    total=total,
                    failed=sum(failed(each) for each in found if value in _values(each, kind)),
                )
        return answer

    def TailEvents(
        self, request: audit_log_pb2.TailEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[audit_log_pb2.TailEventsResponse]:
        position = len(self.log.events)
        self.log.called("TailEvents", context)
        context.add_callback(self._wake)
        while context.is_active():
            with self.log.grown:
                self.log.grown.wait_for(lambda: len(self.log.events) > position or not context.is_active())  # noqa: B023
                new, position = self.log.events[position:], len(self.log.events)
            if found := [event for event in new if matches(event, request.filter)]:
                yield audit_log_pb2.TailEventsResponse(events=found)

    def _wake(self) -> None:
        with self.log.grown:
            self.log.grown.notify_all()

    def ExportEvents(
        self, request: audit_log_pb2.ExportEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[audit_log_pb2.ExportEventsResponse]:
        self.log.called("ExportEvents", context)
        found = self.log.matching(request.filter)
        for begin in range(0, len(found), 200):
            yield audit_log_pb2.ExportEventsResponse(events=found[begin : begin + 200])


@dataclass
class Access(access_pb2_grpc.AccessServicer):
    log: Log

    def WhoAmI(self, request: access_pb2.WhoAmIRequest, context: grpc.ServicerContext) -> access_pb2.WhoAmIResponse:
        self.log.called("WhoAmI", context)
        return access_pb2.WhoAmIResponse(
            organization=ORGANIZATION, roles=[access_pb2.ROLE_AUDITOR], permissions=self.log.permissions
        )


def bare(event: Event) -> Event:
    """Without the entry."""
    found = Event()
    found.CopyFrom(event)
    for name in ("entry", "entry_details", "salt"):
        found.ClearField(name)
    return found


def failed(event: Event) -> bool:
    return event.outcome in (
        audit_log_pb2.OUTCOME_FAILURE,
        audit_log_pb2.OUTCOME_DENIED,
        audit_log_pb2.OUTCOME_DEADLINE,
        audit_log_pb2.OUTCOME_UNKNOWN,
    )


def serve(log: Log, address: str = "127.0.0.1:0") -> tuple[str, Callable[[], object]]:
    """HOST:PORT of a server over the log, and what stops it."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    audit_log_pb2_grpc.add_AuditLogServicer_to_server(AuditLog(log), server)  # type: ignore[abstract]
    access_pb2_grpc.add_AccessServicer_to_server(Access(log), server)  # type: ignore[abstract]
    port = server.add_insecure_port(address)
    server.start()
    return f"127.0.0.1:{port}", lambda: server.stop(None).wait(5)
