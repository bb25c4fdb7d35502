"""ListEvents and GetEvent."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lading.v1 import audit_log_pb2 as pb
from lading_server import paging
from lading_server.clock import new_id
from lading_server.event import ANONYMOUS, Actor, ActorType, Outcome, Stage
from lading_server.settings import Settings
from tests.integration.server.audit_log_server import ADA, AuditLogServer, event, match, reason_of

DEPLOYER = Actor(ActorType.SERVICE, "deployer")


@pytest.fixture
async def log(any_settings: Settings) -> AsyncIterator[AuditLogServer]:
    async with AuditLogServer(any_settings) as server:
        yield server


async def test_pages_go_back_to_the_oldest_and_forth_again_while_events_arrive(log: AuditLogServer) -> None:
    indexes = await log.record(*(event(reason=str(number)) for number in range(25)))
    task = match("ACTION", "task.update")
    first = await log.list(task, size=10)
    assert [found.index for found in first.events] == indexes[:14:-1]
    assert first.previous_page_token == ""
    await log.record(event(reason="new"))
    second = await log.list(task, size=10, page=first.next_page_token)
    third = await log.list(task, size=10, page=second.next_page_token)
    assert [found.index for found in (*second.events, *third.events)] == indexes[14::-1]
    assert third.next_page_token == ""
    back = await log.list(task, size=10, page=third.previous_page_token)
    assert back.events == second.events
    assert (await log.list(task, size=10, page=back.next_page_token)).events == third.events
    front = await log.list(task, size=10, page=back.previous_page_token)
    assert front.events == first.events
    newest = await log.list(task, size=10, page=front.previous_page_token)
    assert [found.reason for found in newest.events] == ["new"]
    assert newest.previous_page_token == ""


async def test_a_page_after_the_newest_is_empty_and_leads_back(log: AuditLogServer) -> None:
    await log.record(*(event() for _ in range(4)))
    task = match("ACTION", "task.update")
    first = await log.list(task, size=2)
    second = await log.list(task, size=2, page=first.next_page_token)
    front = await log.list(task, size=2, page=second.previous_page_token)
    assert (front.events, front.previous_page_token) == (first.events, "")
    assert (await log.list(task, size=2, page=front.next_page_token)).events == second.events


async def test_page_sizes_are_bounded(log: AuditLogServer) -> None:
    await log.record(*(event() for _ in range(520)))
    assert len((await log.list(size=0)).events) == 100
    assert len((await log.list(size=100_000)).events) == 500
    assert (await log.refused("ListEvents", pb.ListEventsRequest(page_size=-1))).code() == (
        grpc.StatusCode.INVALID_ARGUMENT
    )


@pytest.mark.parametrize(
    "shape", ["garbage", "negative", "huge", "float", "direction", "foreign", "other filter", "list"]
)
async def test_a_forged_page_token_is_refused(log: AuditLogServer, shape: str) -> None:
    await log.record(*(event() for _ in range(3)), *(event(organization="globex") for _ in range(3)))
    good = (await log.list(size=1)).next_page_token
    of, direction, index = json.loads(base64.urlsafe_b64decode(good + "=="))

    def token(*parts: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")

    forged = {
        "garbage": "' OR 1=1 --",
        "negative": token(of, direction, -1),
        "huge": token(of, direction, 2**70),
        "float": token(of, direction, 1.5),
        "direction": token(of, "sideways", index),
        "foreign": (await log.list(size=1, token=log.globex)).next_page_token,
        "other filter": (await log.list(size=1, latest_only=True)).next_page_token,
        "list": token(),
    }[shape]
    assert forged
    unless_read = pb.Match(field=pb.FIELD_ACTION, values=["audit.*"], negate=True)
    request = pb.ListEventsRequest(filter=pb.EventFilter(matches=[unless_read]), page_token=forged)
    failure = await log.refused("ListEvents", request)
    assert (failure.code(), reason_of(failure)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


async def test_nobody_sees_events_of_another_organization(log: AuditLogServer) -> None:
    (theirs,) = [event(organization="globex", request_id="shared", targets=(("task", "shared"),))]
    await log.record(theirs)
    assert await log.indexes(match("EVENT", theirs.id)) == []
    assert await log.indexes(match("OPERATION", theirs.operation)) == []
    assert await log.indexes(match("CORRELATION", "shared")) == []
    assert await log.indexes(words=["shared"]) == []
    assert await log.indexes(words=[theirs.id]) == []
    failure = await log.refused("GetEvent", pb.GetEventRequest(id=theirs.id))
    assert failure.code() == grpc.StatusCode.NOT_FOUND
    assert theirs.id in (failure.details() or "")
    assert (await log.call("GetEvent", pb.GetEventRequest(id=theirs.id), log.globex)).organization == "globex"


async def test_each_field_finds_its_events(log: AuditLogServer) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    start = event(
        "container.start",
        target="dock-1/web",
        agent="dock-1",
        reason="deploy 4711",
        request_id="req-1",
        source="cli/1",
        details={"peer": "ipv4:10.1.2.3:4567", "trace_id": trace},
    )
    stop = event(
        "container.stop",
        actor=DEPLOYER,
        target="dock-2/web",
        agent="dock-2",
        outcome=Outcome.FAILURE,
        code=5,
        error="no such container",
        parent=start.operation,
        details={"peer": "ipv6:%5B::1%5D:99"},
    )
    refused = event("container.stop", actor=ANONYMOUS, outcome=Outcome.DENIED, code=16, target="web")
    pending = event("agent.connect", outcome=Outcome.PENDING, stage=Stage.STARTED, targets=(("agent", "dock-1"),))
    a, b, c, d = await log.record(start, stop, refused, pending)

    async def among(*matches: pb.Match, **options: object) -> set[int]:
        return set(await log.indexes(*matches, **options)) & {a, b, c, d}

    assert await among(match("ACTOR", "ada")) == {a, d}
    assert await among(match("ACTOR", "ada@acme.example")) == {a, d}
    assert await among(match("ACTOR", "DEP*", "nobody")) == {b}
    assert await among(match("ACTOR", "")) == {c}
    assert await among(match("ACTOR", "ada", negate=True)) == {b, c}
    assert await among(match("ACTOR_TYPE", "service", "ANONYMOUS")) == {b, c}
    assert await among(match("ACTION", "container.stop")) == {b, c}
    assert await among(match("ACTION", "stop", "start")) == {a, b, c}
    assert await among(match("ACTION", "st*")) == {a, b, c}
    assert await among(match("ACTION", "container.*", negate=True)) == {d}
    assert await among(match("ACTION", "nothing.*")) == set()
    assert await among(match("TARGET", "web")) == {a, b, c}
    assert await among(match("TARGET", "dock-1/web")) == {a}
    assert await among(match("TARGET", "we*")) == {a, b, c}
    assert await among(match("TARGET", "dock-1*")) == {a, d}
    assert await among(match("AGENT", "dock-1", "dock-2")) == {a, b}
    assert await among(match("AGENT", "dock-1", negate=True)) == {b, c, d}
    assert await among(match("OUTCOME", "SUCCESS")) == {a}
    assert await among(match("OUTCOME", "failure", "DENIED")) == {b, c}
    assert await among(match("OUTCOME", "SUCCESS", negate=True)) == {b, c, d}
    assert await among(match("OUTCOME", "PENDING")) == {d}
    assert await among(match("CODE", "NOT_FOUND")) == {b}
    assert await among(match("CODE", "UN*")) == {c}
    assert await among(match("CODE", "OK", negate=True)) == {b, c}
    assert await among(match("REASON", "*4711")) == {a}
    assert await among(match("REASON", "")) == {b, c, d}
    assert await among(match("OPERATION", start.operation)) == {a, b}
    assert await among(match("OPERATION", f"commands/{stop.operation}")) == {b}
    assert await among(match("CORRELATION", "req-1")) == {a}
    assert await among(match("CORRELATION", trace)) == {a}
    assert await among(match("CORRELATION", "0af765*")) == {a}
    assert await among(match("EVENT", stop.id)) == {b}
    assert await among(match("PEER", "10.1.2.3")) == {a}
    assert await among(match("PEER", "10.1.*", "::1")) == {a, b}
    assert await among(match("PEER", "0.1.2.3")) == set()
    assert await among(match("PEER", "10.1.2.3", negate=True)) == {b, c, d}
    assert await among(match("SOURCE", "cli/*")) == {a}
    assert await among(match("ERROR", "*SUCH*")) == {b}
    assert await among(words=["DEPLOY", "dock-1"]) == {a}
    assert await among(words=["such"]) == {b}
    assert await among(words=["req-1"]) == {a}
    assert await among(words=[start.operation.upper()]) == {a, b}
    assert await among(match("ACTION", "stop"), match("ACTOR", "deployer")) == {b}


async def test_values_are_data(log: AuditLogServer) -> None:
    odd = ["100%", "100x", "a_b", "axb", "back\\slash", "o'clock", '"; DROP TABLE events; --', "ünï/côdé", "x" * 300]
    indexes = dict(zip(odd, await log.record(*(event(target=value, reason=value) for value in odd)), strict=True))
    for value in odd:
        assert await log.indexes(match("TARGET", value)) == [indexes[value]]
        assert await log.indexes(match("REASON", value)) == [indexes[value]]
        assert await log.indexes(match("REASON", f"{value}*")) == [indexes[value]]
        assert await log.indexes(words=[value[:256]]) == [indexes[value]]
    assert await log.indexes(match("TARGET", "côdé")) == [indexes["ünï/côdé"]]
    failure = await log.refused(
        "ListEvents", pb.ListEventsRequest(filter=pb.EventFilter(matches=[match("REASON", "a\0b")]))
    )
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (match("OUTCOME", "GREAT"), "SUCCESS"),
        (match("CODE", "TEAPOT"), "NOT_FOUND"),
        (match("ACTOR_TYPE", "robot"), "service"),
        (pb.Match(field=99, values=["x"]), "lading.v1.Field"),  # type: ignore[arg-type]
    ],
)
async def test_an_unknown_name_is_refused_with_the_known_ones(
    log: AuditLogServer, wanted: pb.Match, names: str
) -> None:
    failure = await log.refused("ListEvents", pb.ListEventsRequest(filter=pb.EventFilter(matches=[wanted])))
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert names in (failure.details() or "")


async def test_only_the_last_word_and_only_changes(log: AuditLogServer) -> None:
    command = new_id()
    stages: dict[str, Any] = {"operation": command, "outcome": Outcome.PENDING, "changes": True}
    (received,) = await log.record(event("container.start", **stages, stage=Stage.RECEIVED))
    (call,) = await log.record(event("container.start", changes=True, superseded_by=received))
    (started,) = await log.record(event("container.start", **stages, stage=Stage.STARTED, follows=True))
    (read,) = await log.record(event("container.list"))
    verb = match("ACTION", "container.*")
    assert await log.indexes(verb) == [read, started, call, received]
    assert await log.indexes(verb, latest_only=True) == [read, started]
    assert await log.indexes(verb, latest_only=True, changes_only=True) == [started]
    (ended,) = await log.record(event("container.start", operation=command, changes=True, follows=True))
    assert await log.indexes(verb, latest_only=True, changes_only=True) == [ended]
    assert await log.indexes(match("OPERATION", command)) == [ended, started, received]


async def test_times_are_those_of_recording(log: AuditLogServer) -> None:
    indexes = [(await log.record(event()))[0] for _ in range(3)]
    events = {found.index: found for found in (await log.list(match("ACTION", "task.update"))).events}
    second = events[indexes[1]].recorded_at
    after = Timestamp(seconds=second.seconds, nanos=second.nanos + 1000)
    task = match("ACTION", "task.update")
    assert await log.indexes(task, since=second) == indexes[:0:-1]
    assert await log.indexes(task, until=second) == [indexes[0]]
    assert await log.indexes(task, since=second, until=after) == [indexes[1]]
    assert await log.indexes(task, since=Timestamp(seconds=10**11)) == []
    assert await log.indexes(task, until=Timestamp(seconds=-1)) == []
    request = pb.ListEventsRequest(filter=pb.EventFilter(since=after, until=second))
    assert (await log.refused("ListEvents", request)).code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_event_is_given_whole(log: AuditLogServer) -> None:
    recorded = event(
        "container.start",
        actor=Actor(ActorType.SERVICE, "deployer", "d@acme.example", "Deployer", "token", "cred", "bob"),
        targets=(("container", "dock-1/web"), ("image", "web:1")),
        agent="dock-1",
        reason="because",
        outcome=Outcome.FAILURE,
        code=9,
        error="no",
        parent=new_id(),
        request_id="req",
        source="cli",
        changes=True,
        count=7,
        details={
            "method": "/lading.v1.Containers/StartContainer",
            "request": {"name": "x", "labels": {"a": [1, 2.5, None, True]}},
            "diff": [{"op": "replace", "path": "/state", "value": "up", "was": {"deep": [1]}}],
            "data": {"task": 1},
            "duration_us": 1_500_001,
            "messages_in": 1,
            "messages_out": 2,
            "peer": "ipv4:1.2.3.4:5",
            "trace_id": "abc",
            "claimed_address": "9.9.9.9",
            "agent_time": 1_700_000_000_000_001,
        },
    )
    (index,) = await log.record(recorded)
    found = await log.call("GetEvent", pb.GetEventRequest(id=recorded.id))
    assert (found.index, found.organization, found.operation) == (index, "acme", recorded.operation)
    assert found.actor == pb.Actor(
        type=pb.ACTOR_TYPE_SERVICE,
        id="deployer",
        email="d@acme.example",
        name="Deployer",
        auth_method="token",
        credential="cred",
        on_behalf_of="bob",
    )
    assert [(target.type, target.id) for target in found.targets] == list(recorded.targets)
    assert (found.outcome, found.code, found.error, found.count) == (pb.OUTCOME_FAILURE, 9, "no", 7)
    assert found.request["labels"]["a"][1] == 2.5
    assert found.diff[0]["was"]["deep"][0] == 1
    assert found.details["task"] == 1
    assert found.duration.ToMicroseconds() == 1_500_001
    assert found.agent_time.ToMicroseconds() == 1_700_000_000_000_001
    assert (found.messages_in, found.messages_out, found.peer) == (1, 2, "ipv4:1.2.3.4:5")
    assert (found.trace_id, found.claimed_address) == ("abc", "9.9.9.9")
    assert found.emitter.boot_id == log.ledger.boot_id
    assert not found.HasField("superseded_by")


async def test_reading_the_log_is_recorded(log: AuditLogServer) -> None:
    await log.list(match("ACTOR", "ada"))
    reads = (await log.call("ListEvents", pb.ListEventsRequest())).events
    assert reads[0].action == "audit.list"
    assert reads[0].request["filter"]["matches"][1]["values"][0] == ADA.id


@pytest.mark.parametrize("with_entries", [False, True])
async def test_pages_of_large_events_are_bounded_and_go_on_both_ways(
    log: AuditLogServer, with_entries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "BYTES", 50_000)
    large = {"data": {"note": "x" * 8_000}}
    indexes = await log.record(*(event(details=large) for _ in range(25)))
    request = pb.ListEventsRequest(
        filter=pb.EventFilter(matches=[match("ACTION", "task.update")]), page_size=500, with_entries=with_entries
    )
    pages = []
    while not pages or request.page_token:
        pages.append(await log.call("ListEvents", request))
        assert pages[-1].ByteSize() < 3 * paging.BYTES
        request.page_token = pages[-1].next_page_token
    assert [event.index for page in pages for event in page.events] == indexes[::-1]
    assert len(pages) > 2
    back = [pages[-1]]
    while token := back[-1].previous_page_token:
        request.page_token = token
        back.append(await log.call("ListEvents", request))
        if not back[-1].events:
            break
        assert back[-1].ByteSize() < 3 * paging.BYTES
    assert [event.index for page in back for event in page.events[::-1]] == indexes
