"""The service AuditLog: the log of the caller's organization, read and added to."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from sys import getsizeof
from typing import Any

from lading.v1 import audit_log_pb2 as pb
from lading.v1 import audit_log_pb2_grpc
from lading_server import call as calls
from lading_server import clock, errors, paging
from lading_server.call import Change
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.services import domain_events
from lading_server.services.erasure import Erasure
from lading_server.services.messages import event_of, field_of, filter_of, summary_of
from lading_server.services.transparency import Transparency
from lading_server.signer import Signer
from lading_server.store import erasures, summary
from lading_server.store import events as log
from lading_server.store.event_counts import FACETS, HOUR
from lading_server.store.event_filter import EventFilter
from lading_server.store.reader import Reader
from lading_server.store.tiles import Cache

CHUNK = 500
"""Events in one message of a stream."""
EXPORT_MAX = 1_000_000
POLL_SECONDS = 1.0
"""Another replica may have committed, of which no listener here is told."""
REST_SECONDS = 0.05
"""Between two reads of one tail, however fast the log grows."""
SILENCE_SECONDS = 10.0
"""After this long without a match a tail says how far it is."""
SILENCE_MAX = 20_000
"""And after so many events."""
BUCKETS, BUCKETS_MAX = 60, 500
VALUES, VALUES_MAX = 20, 100


class AuditLog(Transparency, Erasure, audit_log_pb2_grpc.AuditLogServicer):
    """See protos/lading/v1/audit_log.proto."""

    def __init__(self, reader: Reader, ledger: Ledger, signer: Signer, cache: Cache) -> None:
        super().__init__(ledger, signer, cache)
        self._reader = reader
        self._tails: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        ledger.on_commit(self._wake)

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsResponse:
        organization = calls.current().organization
        wanted = filter_of(request.filter)
        of = f"events {wanted.digest(organization)}"
        direction, index = paging.key(of, request.page_token, str, int) or ("", None)
        if direction not in ("", "older", "newer"):
            raise errors.InvalidPageToken
        before, after = (index, None) if direction == "older" else (None, index)
        size = paging.size(request.page_size)
        found, older, newer = await self._reader.read(
            page, organization, wanted, size, before=before, after=after, with_entries=request.with_entries
        )
        return pb.ListEventsResponse(
            events=found,
            next_page_token="" if older is None else paging.token(of, "older", older),
            previous_page_token="" if newer is None else paging.token(of, "newer", newer),
        )

    async def GetEvent(self, request: pb.GetEventRequest, context: Any) -> pb.Event:
        found = await self._reader.read(one, calls.current().organization, request.id)
        if found is None:
            raise errors.NotFound(f"there is no event {request.id} in your organization")
        return found

    async def SummarizeEvents(self, request: pb.SummarizeEventsRequest, context: Any) -> pb.SummarizeEventsResponse:
        wanted = filter_of(request.filter)
        until = clock.now() if wanted.until is None else wanted.until
        since = until - 24 * HOUR if wanted.since is None else wanted.since
        if since >= until:
            raise errors.InvalidArgument(
                "filter.since: must be before until (now, when there is none)",
                violations={"filter.since": "must be before until"},
            )
        fields = list(dict.fromkeys(field_of(number) for number in request.facets)) or list(FACETS)
        if others := [field for field in fields if field not in FACETS]:
            names = ", ".join(field.name for field in FACETS)
            raise errors.InvalidArgument(
                f"facets: {others[0].name} is not counted: use {names}", violations={"facets": f"must be of {names}"}
            )
        grid = summary.grid(since, until, min(request.buckets or BUCKETS, BUCKETS_MAX))
        values_max = min(request.values_max or VALUES, VALUES_MAX)
        return summary_of(
            await self._reader.read(summary.summarize, calls.current().organization, wanted, grid, fields, values_max)
        )

    async def RecordEvents(  # type: ignore[override]
        self, request: pb.RecordEventsRequest, context: Any
    ) -> Change[pb.RecordEventsResponse]:
        events = domain_events.events_of(calls.current(), request, clock.now())
        timed = {message.id: message.HasField("occurred_at") for message in request.events}
        call = calls.current()

        def apply(transaction: Transaction) -> pb.RecordEventsResponse:
            indexes = domain_events.record(transaction, events, timed)
            call.superseded_by = max(indexes)  # lists show what the service recorded, not that it did
            return pb.RecordEventsResponse(indexes=indexes)

        return Change(apply)

    async def ExportEvents(
        self, request: pb.ExportEventsRequest, context: Any
    ) -> AsyncIterator[pb.ExportEventsResponse]:
        call = calls.current()
        wanted = filter_of(request.filter)
        as_of = (await self._reader.read(log.log, call.organization)).size
        older: int | None = as_of
        newer: int | None = request.from_index - 1
        left = request.limit or EXPORT_MAX
        exported = 0
        while (newer if request.oldest_first else older) is not None and left > exported:
            place: dict[str, int | None] = {"before": older, "low": request.from_index}
            if request.oldest_first:
                place = {"after": newer}
            answer, older, newer = await self._reader.read(
                batch,
                call.organization,
                wanted,
                min(CHUNK, left - exported),
                as_of=as_of,
                oldest_first=request.oldest_first,
                with_entries=request.with_entries,
                **place,
            )
            exported += len(answer.events)
            call.details["data"] = {"exported": exported}
            if answer.events:
                yield answer

    async def TailEvents(self, request: pb.TailEventsRequest, context: Any) -> AsyncIterator[pb.TailEventsResponse]:
        organization = calls.current().organization
        wanted = filter_of(request.filter)
        if wanted.since is not None or wanted.until is not None:
            raise errors.InvalidArgument(
                "filter: since and until are not for a tail: say from_index",
                violations={"filter": "must not have since or until"},
            )
        size = (await self._reader.read(log.log, organization)).size
        position = request.from_index if request.HasField("from_index") else size
        if not 0 <= position <= size:
            raise errors.InvalidArgument(
                f"from_index: the log has {size} events: begin at one of them, or at {size} for what comes",
                violations={"from_index": f"must be from 0 to {size}"},
            )
        calls.current().endless = True
        grown = asyncio.Event()
        self._tails[organization].add(grown)
        try:
            # At once: from here the caller can resume, and knows that it is served.
            yield pb.TailEventsResponse(next_index=position)
            told, told_at = position, time.monotonic()
            while True:
                grown.clear()
                found, position, size = await self._reader.read(following, organization, wanted, position)
                silent = position - told >= SILENCE_MAX or time.monotonic() - told_at >= SILENCE_SECONDS
                if found or (silent and position > told):
                    yield pb.TailEventsResponse(events=found, next_index=position)
                    told, told_at = position, time.monotonic()
                if position == size:
                    await rest(grown)
        finally:
            self._tails[organization].discard(grown)
            if not self._tails[organization]:
                del self._tails[organization]

    def _wake(self, sizes: dict[str, int]) -> None:
        for organization in sizes:
            for grown in self._tails.get(organization, ()):
                grown.set()


async def rest(grown: asyncio.Event) -> None:
    """Wait until the log has grown, or may have."""
    await asyncio.sleep(REST_SECONDS)
    try:
        async with asyncio.timeout(POLL_SECONDS):
            await grown.wait()
    except TimeoutError:
        pass


def page(
    connection: Any,
    /,
    organization: str,
    wanted: EventFilter,
    limit: int,
    *,
    with_entries: bool = False,
    **place: Any,
) -> tuple[list[pb.Event], int | None, int | None]:
    """A page of messages, made in the reader's thread: the loop has other things to do."""
    large = bytes_of if with_entries else bytes_of_details
    found = log.page(connection, organization, wanted, limit, **place)
    found = bounded(found, large, upwards=place.get("after") is not None)
    return shown(connection, organization, found.rows, with_entries=with_entries), found.older, found.newer


def batch(
    connection: Any,
    /,
    organization: str,
    wanted: EventFilter,
    limit: int,
    *,
    oldest_first: bool,
    with_entries: bool,
    **place: Any,
) -> tuple[pb.ExportEventsResponse, int | None, int | None]:
    """As much of a page as one answer of an export takes."""
    found = bounded(log.page(connection, organization, wanted, limit, **place), bytes_of, upwards=oldest_first)
    rows, answer = found.rows[::-1] if oldest_first else found.rows, pb.ExportEventsResponse()
    shown(connection, organization, rows, with_entries=with_entries, make=answer.events.add)
    return answer, found.older, found.newer


def bounded(found: log.Page, large: Callable[[log.Row], int], *, upwards: bool) -> log.Page:
    """As much of a page as one answer takes; `upwards`: from its oldest event on."""
    rows = list(paging.portion(found.rows[::-1] if upwards else found.rows, large))
    if len(rows) == len(found.rows):
        return found
    edge = rows[-1].index
    return log.Page(rows[::-1], found.older, edge) if upwards else log.Page(rows, edge, found.newer)


def bytes_of(row: log.Row) -> int:
    """Of what is large in an event. No `len`: they may be damaged."""
    return getsizeof(row.details) + getsizeof(row.entry)


def bytes_of_details(row: log.Row) -> int:
    """The same of an answer without entries."""
    return getsizeof(row.details)


def following(
    connection: Any, /, organization: str, wanted: EventFilter, position: int
) -> tuple[list[pb.Event], int, int]:
    """The next messages of a tail, where to go on, and the size of the log."""
    found, position, size = log.following(connection, organization, wanted, position, CHUNK)
    rows = paging.portion(found, bytes_of)
    if len(rows) < len(found):
        position = rows[-1].index + 1
    return shown(connection, organization, rows), position, size


def one(connection: Any, /, organization: str, id: str) -> pb.Event | None:
    """The message of one event, with its entry."""
    row = log.get(connection, organization, id)
    return None if row is None else shown(connection, organization, [row], with_entries=True)[0]


def shown(
    connection: Any,
    organization: str,
    rows: Sequence[log.Row],
    *,
    with_entries: bool = False,
    make: Callable[..., pb.Event] = pb.Event,
) -> list[pb.Event]:
    """Messages of rows; those that were erased say so."""
    erased = [row.index for row in rows if row.salt is None]
    known = erasures.of_events(connection, organization, erased) if erased else {}
    found = []
    for row in rows:
        try:
            found.append(event_of(row, known.get(row.index) if known else None, with_entry=with_entries, make=make))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as failure:
            raise errors.Damaged(
                f"what is stored of the event #{row.index} is damaged ({type(failure).__name__}): "
                "`lading audit verify` checks all of them",
                metadata={"index": str(row.index)},
            ) from failure
    return found
