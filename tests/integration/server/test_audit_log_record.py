"""RecordEvents."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from lading.v1 import audit_log_pb2 as pb
from lading_server.clock import new_id, now
from lading_server.settings import Settings
from tests.integration.server.audit_log_server import AuditLogServer, match


@pytest.fixture
async def log(any_settings: Settings) -> AsyncIterator[AuditLogServer]:
    async with AuditLogServer(any_settings) as server:
        yield server


def new(**fields: Any) -> pb.NewEvent:
    return ParseDict({"id": new_id(), "action": "task.update"} | fields, pb.NewEvent())


def request(*events: pb.NewEvent) -> pb.RecordEventsRequest:
    return pb.RecordEventsRequest(events=events)


async def stored(log: AuditLogServer) -> list[Any]:
    """What services recorded, oldest first."""
    return list((await log.list(match("ACTION", "task.*"))).events)[::-1]


async def test_an_event_of_a_service_is_recorded_as_the_callers(log: AuditLogServer) -> None:
    sent = new(
        targets=[{"type": "task", "id": "42"}, {"type": "container", "id": "dock-1/web"}],
        reason="asked",
        outcome="OUTCOME_FAILURE",
        error="no",
        occurredAt="2026-01-02T03:04:05.678901Z",
        onBehalfOf="bob",
        diff=[{"op": "replace", "path": "/state", "value": "done", "was": "open"}],
        details={"queue": "default", "tries": 3, "ratio": 0.5, "none": None},
        requestId="req-1",
    )
    (index,) = (await log.call("RecordEvents", request(sent))).indexes
    (found,) = await stored(log)
    assert (found.index, found.id, found.operation, found.stage) == (index, sent.id, sent.id, pb.STAGE_COMPLETED)
    assert (found.actor.id, found.actor.email, found.actor.on_behalf_of) == ("ada", "ada@acme.example", "bob")
    assert (found.targets, found.agent, found.changes) == (sent.targets, "dock-1", True)
    assert (found.reason, found.outcome, found.error, found.request_id) == ("asked", sent.outcome, "no", "req-1")
    assert (found.occurred_at, found.diff, found.details) == (sent.occurred_at, sent.diff, sent.details)
    (call,) = (await log.call("ListEvents", pb.ListEventsRequest(page_size=2))).events[1:]
    assert (call.action, call.recorded_at, call.operation) == ("audit.record", found.recorded_at, found.parent)


async def test_the_same_event_again_is_not_recorded_twice(log: AuditLogServer) -> None:
    first, second = new(reason="a", details={"n": 1}), new(occurredAt="2026-01-02T03:04:05Z")
    indexes = (await log.call("RecordEvents", request(first, second))).indexes
    third = new()
    again = (await log.call("RecordEvents", request(third, second, first))).indexes
    assert again[1:] == indexes[::-1]
    assert again[0] > max(indexes)
    assert [found.id for found in await stored(log)] == [first.id, second.id, third.id]


async def test_the_same_event_at_the_same_time_is_recorded_once(log: AuditLogServer) -> None:
    sent = new(reason="once")
    answers = await asyncio.gather(*(log.call("RecordEvents", request(sent)) for _ in range(20)))
    assert len({answer.indexes[0] for answer in answers}) == 1
    assert len(await stored(log)) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"reason": "b"},
        {"details": {"n": 2}},
        {"action": "task.create"},
        {"onBehalfOf": "eve"},
        {"targets": [{"type": "task", "id": "1"}]},
        {"diff": [{"op": "add", "path": "/a", "value": 1}]},
        {"occurredAt": "2026-01-02T03:04:05Z"},
    ],
)
async def test_an_id_stands_for_one_event(log: AuditLogServer, other: dict[str, Any]) -> None:
    sent = new(reason="a", details={"n": 1})
    await log.call("RecordEvents", request(sent))
    changed = ParseDict(
        {"id": sent.id, "action": "task.update", "reason": "a", "details": {"n": 1}} | other, pb.NewEvent()
    )
    failure = await log.refused("RecordEvents", request(new(), changed))
    assert failure.code() == grpc.StatusCode.ALREADY_EXISTS
    assert sent.id in (failure.details() or "")
    assert [found.id for found in await stored(log)] == [sent.id]


async def test_an_id_of_another_organization_says_nothing_of_it(log: AuditLogServer) -> None:
    sent = new(reason="theirs")
    await log.call("RecordEvents", request(sent), log.globex)
    same = await log.refused("RecordEvents", request(sent))
    other = await log.refused("RecordEvents", request(new(id=sent.id, reason="ours")))
    assert same.code() == other.code() == grpc.StatusCode.ALREADY_EXISTS
    assert same.details() == other.details()
    assert "theirs" not in (same.details() or "")
    assert await stored(log) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"diff": ["replace"]}, "diff"),
        ({"diff": [{"op": "become", "path": "/a"}]}, "diff"),
        ({"diff": [{"op": "add"}]}, "diff"),
        ({"diff": [{"op": "add", "path": "a"}]}, "diff"),
        ({"details": {"text": "x" * 33_000}}, "events[1]"),
        ({"outcome": 99}, "outcome"),
        ({"id": "1"}, "id"),
        ({"action": "Update"}, "action"),
        ({"targets": [{"type": "task"}]}, "targets"),
    ],
)
async def test_an_event_that_makes_no_sense_is_refused_with_all_others(
    log: AuditLogServer, fields: dict[str, Any], field: str
) -> None:
    failure = await log.refused("RecordEvents", request(new(), new(**fields)))
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in (failure.details() or "")
    assert await stored(log) == []


async def test_an_event_of_the_future_is_refused(log: AuditLogServer) -> None:
    soon, late = (new() for _ in range(2))
    soon.occurred_at.FromMicroseconds(now() + 4 * 60_000_000)
    late.occurred_at.FromMicroseconds(now() + 6 * 60_000_000)
    failure = await log.refused("RecordEvents", request(soon, late))
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "events[1].occurred_at" in (failure.details() or "")
    await log.call("RecordEvents", request(soon))
    assert isinstance((await stored(log))[0].occurred_at, Timestamp)


async def test_two_events_of_a_request_with_one_id_are_refused(log: AuditLogServer) -> None:
    sent = new()
    failure = await log.refused("RecordEvents", request(sent, sent))
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert await stored(log) == []


async def test_numbers_that_json_has_not_are_refused(log: AuditLogServer) -> None:
    sent = new()
    sent.details["n"] = float("nan")
    failure = await log.refused("RecordEvents", request(sent))
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_five_hundred_events_go_in_at_once(log: AuditLogServer) -> None:
    indexes = (await log.call("RecordEvents", request(*(new() for _ in range(500))))).indexes
    assert list(indexes) == list(range(indexes[0], indexes[0] + 500))
    failure = await log.refused("RecordEvents", request(*(new() for _ in range(501))))
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT
