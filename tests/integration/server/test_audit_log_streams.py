"""TailEvents and ExportEvents."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import AioRpcError

from lading.v1 import audit_log_pb2 as pb
from lading_server.clock import new_id
from lading_server.event import Outcome
from lading_server.ledger.ledger import Ledger
from lading_server.services import audit_log
from lading_server.settings import Settings
from tests.integration.server.audit_log_server import AuditLogServer, event, match

TASK = match("ACTION", "task.update")


@pytest.fixture
async def log(any_settings: Settings) -> AsyncIterator[AuditLogServer]:
    async with AuditLogServer(any_settings) as server:
        yield server


def tail(log: AuditLogServer, *matches: pb.Match, from_index: int | None = None, **of_filter: Any) -> Any:
    request = pb.TailEventsRequest(filter=pb.EventFilter(matches=matches, **of_filter), from_index=from_index)
    return log.stub.TailEvents(request, metadata=log.metadata(), timeout=20)


async def take(call: Any, count: int) -> list[int]:
    """Indexes of the next `count` events of a tail."""
    found: list[int] = []
    while len(found) < count:
        found += [event.index for event in (await call.read()).events]
    return found


async def begin(call: Any) -> Any:
    """The tail, when it has said where it begins."""
    answer = await call.read()
    assert list(answer.events) == []
    return call


async def test_a_tail_gives_what_is_there_and_what_comes_once_and_in_order(log: AuditLogServer) -> None:
    before = await log.record(*(event() for _ in range(1_200)))
    call = tail(log, TASK, from_index=0)
    assert await take(call, 700) == before[:1000][: 2 * audit_log.CHUNK]
    writers = [asyncio.create_task(log.record(event(), event())) for _ in range(50)]
    rest = await take(call, 200 + 100)
    after = sorted(index for indexes in await asyncio.gather(*writers) for index in indexes)
    assert rest == before[1000:] + after
    call.cancel()


async def test_a_tail_resumes_without_gap_or_repeat(log: AuditLogServer) -> None:
    indexes = await log.record(*(event() for _ in range(20)))
    position, found = indexes[0], []
    for _ in range(4):
        call = await begin(tail(log, TASK, from_index=position))
        answer = await call.read()
        found += [event.index for event in answer.events]
        position = answer.next_index
        call.cancel()
        indexes += (await log.record(event(), event(organization="globex")))[:1]
    assert found == indexes[: len(found)]
    assert len(found) >= 20


async def test_a_tail_begins_with_what_comes(log: AuditLogServer) -> None:
    before = await log.record(event())
    call = tail(log, TASK)
    first = await call.read()
    assert (list(first.events), first.next_index > before[0]) == ([], True)
    (index,) = await log.record(event())
    assert await take(call, 1) == [index]
    call.cancel()


async def test_a_tail_is_of_the_callers_organization_and_filtered(log: AuditLogServer) -> None:
    call = await begin(tail(log, TASK, match("OUTCOME", "FAILURE"), from_index=0))
    await log.record(event(organization="globex", outcome=Outcome.FAILURE), event())
    (index,) = await log.record(event(outcome=Outcome.FAILURE))
    answer = await call.read()
    assert [found.index for found in answer.events] == [index]
    assert answer.next_index > index
    call.cancel()


async def test_a_silent_tail_says_how_far_it_is(log: AuditLogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "SILENCE_MAX", 30)
    call = await begin(tail(log, match("ACTION", "nothing.happens"), from_index=0))
    indexes = await log.record(*(event() for _ in range(40)))
    answer = await call.read()
    assert list(answer.events) == []
    assert answer.next_index >= indexes[29]
    call.cancel()


async def test_a_tail_sees_what_another_replica_commits(log: AuditLogServer) -> None:
    call = tail(log, TASK, from_index=0)
    await log.record(event())
    await take(call, 1)
    other = Ledger(log.engine, log.signer, boot_id=new_id())
    other.start()
    try:
        (index,) = await other.record([event()])
        assert await take(call, 1) == [index]
    finally:
        await other.close()
    call.cancel()


@pytest.mark.parametrize("place", [-1, 10_000, None])
async def test_a_tail_from_nowhere_or_within_times_is_refused(log: AuditLogServer, place: int | None) -> None:
    call = tail(log, since=Timestamp(seconds=1)) if place is None else tail(log, from_index=place)
    with pytest.raises(AioRpcError) as failure:
        await call.read()
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "from_index" in (failure.value.details() or "")


async def test_a_cancelled_tail_ends_and_is_recorded(log: AuditLogServer) -> None:
    call = tail(log, TASK, from_index=0)
    await log.record(event())
    await take(call, 1)
    call.cancel()
    watch = await begin(tail(log, match("ACTION", "audit.tail"), match("OUTCOME", "CANCELLED"), from_index=0))
    (ended,) = (await watch.read()).events
    assert ended.code == grpc.StatusCode.CANCELLED.value[0]
    watch.cancel()


async def export(log: AuditLogServer, *matches: pb.Match, limit: int = 0, **of_filter: Any) -> list[int]:
    request = pb.ExportEventsRequest(filter=pb.EventFilter(matches=matches, **of_filter), limit=limit, format="csv")
    call = log.stub.ExportEvents(request, metadata=log.metadata(), timeout=20)
    return [found.index async for answer in call for found in answer.events]


async def test_an_export_has_every_event_once_newest_first(log: AuditLogServer) -> None:
    indexes = await log.record(*(event() for _ in range(1_101)))
    await log.record(event(organization="globex"))
    assert await export(log, TASK) == indexes[::-1]
    assert await export(log, TASK, limit=501) == indexes[:-502:-1]
    (recorded,) = (await log.call("ListEvents", pb.ListEventsRequest(page_size=1))).events
    assert (recorded.action, recorded.details["exported"]) == ("audit.export", 501)


async def test_an_export_is_of_the_log_as_it_was_when_it_began(log: AuditLogServer) -> None:
    operation = new_id()
    (pending,) = await log.record(event(operation=operation, outcome=Outcome.PENDING))
    indexes = [pending, *(await log.record(*(event() for _ in range(600))))]
    request = pb.ExportEventsRequest(filter=pb.EventFilter(matches=[TASK], latest_only=True))
    call = log.stub.ExportEvents(request, metadata=log.metadata(), timeout=20)
    found = [event.index for event in (await call.read()).events]
    await log.record(event(operation=operation, follows=True))
    found += [event.index for event in (await call.read()).events]
    assert found == indexes[::-1]
    assert await call.read() == grpc.aio.EOF


async def test_large_events_come_in_answers_that_grpc_takes(log: AuditLogServer) -> None:
    many = {"data": {"numbers": [1.0] * 8_000}}  # as JSON 16 kB, as a message 88 kB
    indexes = await log.record(*(event(details=many) for _ in range(60)))
    assert await export(log, TASK) == indexes[::-1]
    request = pb.ExportEventsRequest(filter=pb.EventFilter(matches=[TASK]), with_entries=True, oldest_first=True)
    answers = [answer async for answer in log.stub.ExportEvents(request, metadata=log.metadata(), timeout=20)]
    assert [event.index for answer in answers for event in answer.events] == indexes
    assert max(answer.ByteSize() for answer in answers) < 4 << 20 < sum(answer.ByteSize() for answer in answers)
    call = tail(log, TASK, from_index=0)
    assert await take(call, 60) == indexes
    call.cancel()
