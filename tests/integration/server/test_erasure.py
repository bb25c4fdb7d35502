"""EraseEventDetails: what it erases is gone, what was proven stays proven, and it is recorded itself."""

import contextlib
import json
import pathlib
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from lading.transparency import note, receipt
from lading.v1 import audit_log_pb2 as pb
from lading_server.clock import new_id, now
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger.transaction import Transaction
from lading_server.services import erasure
from lading_server.settings import Settings
from lading_server.store import commands, requests, rollouts
from tests.faults import reader
from tests.integration.server.audit_log_server import ADA, AuditLogServer, event, match, reason_of
from tests.trees import check_trees

SECRET = "secret-4711"
EVE = Actor(ActorType.USER, "u-17", email=f"{SECRET}@acme.example", name=f"{SECRET} Eve")
DAY_AGO = 24 * 3600


@pytest.fixture
async def log(any_settings: Settings) -> AsyncIterator[AuditLogServer]:
    async with AuditLogServer(any_settings) as server:
        yield server


def secretive(**values: Any) -> Event:
    """An event that holds the secret wherever one can be."""
    given: dict[str, Any] = {
        "actor": EVE,
        "reason": f"because {SECRET}",
        "error": f"no {SECRET}",
        "request_id": f"{SECRET}-request",
        "source": f"{SECRET}-cli",
        "details": {"request": {"text": SECRET}, "peer": f"ipv4:{SECRET}"},
    }
    return event(targets=(("task", "1"), ("task", "2")), **(given | values))


async def erase(log: AuditLogServer, *ids: str, reason: str = "asked to", **request: Any) -> int:
    answer = await log.call("EraseEventDetails", pb.EraseEventDetailsRequest(ids=ids, reason=reason, **request))
    return int(answer.erased)


def everything(log: AuditLogServer) -> str:
    """All that the database holds, as text."""
    tables = ("events", "event_counts", "commands", "rollouts", "requests", "erasures", "logs")
    return "\n".join(str(reader.rows(log.settings.database_url, f"SELECT * FROM {table}")) for table in tables)


async def facet(log: AuditLogServer, field: str) -> dict[str, tuple[int, int]]:
    """Counts by the values of a field, of events of tasks."""
    request = pb.SummarizeEventsRequest(facets=[pb.Field.Value(f"FIELD_{field}")])
    request.filter.since.seconds = now() // 1_000_000 - DAY_AGO
    answer = await log.call("SummarizeEvents", request)
    return {value.value: (value.total, value.failed) for value in answer.facets[0].values}


async def test_erased_details_are_gone_and_the_rest_stays(log: AuditLogServer) -> None:
    one, other = secretive(), secretive()
    await log.record(one, other)
    before = await log.call("GetEvent", pb.GetEventRequest(id=one.id))
    assert before.entry_details
    assert await erase(log, one.id, reason="article 17") == 1
    found = await log.call("GetEvent", pb.GetEventRequest(id=one.id))
    assert (found.erasure.actor, found.erasure.reason) == ("ada", "article 17")
    assert found.erasure.erased_at.seconds > 0
    assert (found.entry, found.entry_details, found.salt) == (before.entry, b"", b"")
    assert (found.actor.id, found.actor.email, found.reason, found.error, found.request_id) == ("u-17", "", "", "", "")
    assert (found.user_agent, found.peer, found.action) == ("", "", "task.update")
    assert [target.id for target in found.targets] == ["1", "2"]
    assert not found.HasField("request")
    await erase(log, other.id)
    assert SECRET not in everything(log)


async def test_lists_tails_and_exports_say_what_was_erased(log: AuditLogServer) -> None:
    one, other = secretive(), secretive()
    await log.record(one, other)
    await erase(log, one.id)
    task = match("ACTION", "task.update")
    wanted = pb.EventFilter(matches=[task])
    tail = log.stub.TailEvents(pb.TailEventsRequest(filter=wanted, from_index=0), metadata=log.metadata(), timeout=20)
    await tail.read()  # where it begins
    tailed = (await tail.read()).events
    tail.cancel()
    export = log.stub.ExportEvents(pb.ExportEventsRequest(filter=wanted), metadata=log.metadata(), timeout=20)
    exported = [found async for message in export for found in message.events]
    listed = (await log.list(task)).events
    for found in (list(reversed(tailed)), exported, listed):
        assert [event.HasField("erasure") for event in found] == [False, True]


async def test_proofs_hold_after_erasure(log: AuditLogServer) -> None:
    events = [secretive() for _ in range(300)]
    await log.record(*events)
    await erase(log, *(one.id for one in events[::3]))
    key = note.parse_key((await log.call("GetCheckpoint", pb.GetCheckpointRequest())).log_key)
    check_trees(log.settings.database_url)
    for one in (events[0], events[1], events[299]):
        found = await log.call("GetReceipt", pb.GetReceiptRequest(id=one.id))
        receipt.verify_receipt(receipt.parse_receipt(found.proof), found.entry, key)
        assert bool(found.salt) == (one is not events[0])


async def test_erasure_is_recorded_with_its_reason_and_without_its_filter(log: AuditLogServer) -> None:
    await log.record(secretive())
    wanted = pb.EventFilter(matches=[match("ACTOR", EVE.email)])
    assert await erase(log, filter=wanted, reason="she asked") == 1
    erasures = pb.EventFilter(matches=[match("ACTION", "audit.erase")])
    (found,) = (await log.call("ListEvents", pb.ListEventsRequest(filter=erasures))).events
    assert (found.reason, found.changes, found.outcome) == ("she asked", True, pb.OUTCOME_SUCCESS)
    assert found.details["erased"] == 1
    assert EVE.email not in everything(log)


async def test_events_that_are_erased_already_are_not_counted_again(log: AuditLogServer) -> None:
    one = secretive()
    await log.record(one)
    assert [await erase(log, one.id), await erase(log, one.id, reason="again")] == [1, 0]
    found = await log.call("GetEvent", pb.GetEventRequest(id=one.id))
    assert found.erasure.reason == "asked to"


async def test_filter_erases_all_that_match_in_parts_that_are_recorded(
    log: AuditLogServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "CHUNK", 10)
    await log.record(*(secretive() for _ in range(35)), *(event() for _ in range(5)))
    assert await erase(log, filter=pb.EventFilter(matches=[match("ACTOR", EVE.email)])) == 35
    query = "SELECT details FROM events WHERE action = 'audit.erase' ORDER BY \"index\""
    parts = [json.loads(details)["data"]["erased"] for (details,) in reader.rows(log.settings.database_url, query)]
    assert parts == [10, 10, 10, 5]
    assert len(reader.rows(log.settings.database_url, "SELECT * FROM erasures")) == 35


@pytest.mark.parametrize("counted", ["before", "after", "partly", "never"])
async def test_counts_move_to_the_actors_id(log: AuditLogServer, counted: str) -> None:
    kept = secretive(actor=EVE)
    started = secretive(stage=Stage.STARTED, outcome=Outcome.PENDING, count=2)
    await log.record(*(secretive(outcome=Outcome.FAILURE) for _ in range(3)), started, kept)
    if counted in ("before", "partly"):
        await log.count()
    await log.record(secretive(operation=started.operation, follows=True))
    wanted = pb.EventFilter(matches=[match("ACTOR", EVE.email)])
    wanted.matches.append(match("EVENT", kept.id, negate=True))
    actors, sources = await facet(log, "ACTOR"), await facet(log, "SOURCE")
    assert actors[EVE.email] == (5, 3)
    assert sources[f"{SECRET}-cli"] == (5, 3)
    assert await erase(log, filter=wanted) == 5
    if counted in ("after", "partly"):
        await log.count()
    actors, sources = await facet(log, "ACTOR"), await facet(log, "SOURCE")
    assert (actors[EVE.email], actors["u-17"]) == ((1, 0), (4, 3))
    assert sources[f"{SECRET}-cli"] == (1, 0)
    await erase(log, kept.id)
    if counted != "never":
        await log.count()
        assert SECRET not in everything(log)
    assert (await facet(log, "ACTOR"))["u-17"] == (5, 3)


async def test_nobody_but_an_admin_of_the_organization_erases(log: AuditLogServer) -> None:
    one = secretive()
    await log.record(one)
    request = pb.EraseEventDetailsRequest(ids=[one.id], reason="curious")
    refusal = await log.refused("EraseEventDetails", request, log.globex)
    assert refusal.code() == grpc.StatusCode.NOT_FOUND
    assert await erase(log, one.id) == 1


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.EraseEventDetailsRequest(reason="all of it"), "ids"),
        (pb.EraseEventDetailsRequest(ids=[new_id()], filter=pb.EventFilter(), reason="both"), "ids"),
        (pb.EraseEventDetailsRequest(ids=[new_id()]), "reason"),
    ],
    ids=["neither", "both", "no reason"],
)
async def test_erasure_must_say_what_and_why(
    log: AuditLogServer, request_: pb.EraseEventDetailsRequest, field: str
) -> None:
    refusal = await log.refused("EraseEventDetails", request_)
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in (refusal.details() or "")


async def test_event_that_is_unknown_is_named_and_nothing_is_erased(log: AuditLogServer) -> None:
    one, unknown = secretive(), new_id()
    await log.record(one)
    refusal = await log.refused("EraseEventDetails", pb.EraseEventDetailsRequest(ids=[one.id, unknown], reason="x"))
    assert refusal.code() == grpc.StatusCode.NOT_FOUND
    assert unknown in (refusal.details() or "")
    assert not (await log.call("GetEvent", pb.GetEventRequest(id=one.id))).HasField("erasure")


async def make_command(log: AuditLogServer, id: str, state: int) -> Event:
    """A command with its intent, both with secrets."""
    intent = secretive(operation=id, stage=Stage.RECEIVED, outcome=Outcome.PENDING)

    def apply(transaction: Transaction) -> None:
        texts = ("agent", "container", "action", "actor", "parent", "container_id", "request_id")
        secrets = ("reason", "actor_email", "source", "correlation", "error", "evidence")
        numbers = ("verb", "epoch", "actor_type", "created_at", "deliver_by", "execute_within", "code", "event_index")
        values = {
            **dict.fromkeys(texts, ""),
            **dict.fromkeys(secrets, SECRET),
            **dict.fromkeys(numbers, 1),
            **dict.fromkeys(("envelope", "arguments_shown"), SECRET.encode()),
            **dict.fromkeys(("fingerprint", "precondition"), b""),
        }
        commands.insert(transaction.connection, {"id": id, "organization": "acme", "state": state, **values})
        transaction.append(intent)

    await log.ledger.commit(("acme",), apply)
    return intent


async def test_command_of_an_erased_intent_repeats_nothing(log: AuditLogServer) -> None:
    intent = await make_command(log, new_id(), 5)
    assert SECRET in everything(log)
    await erase(log, intent.id)
    assert SECRET not in everything(log)


@pytest.mark.parametrize("of", ["id", "parent"])
async def test_rollout_and_kept_answer_of_an_erased_call_repeat_nothing(log: AuditLogServer, of: str) -> None:
    asked = secretive()

    def apply(transaction: Transaction) -> None:
        rollout = {
            **dict.fromkeys(("id", "state_reason", "actor", "request_id", "parent", "retry_of", "replica"), ""),
            **dict.fromkeys(("reason", "actor_email", "source", "correlation"), SECRET),
            **dict.fromkeys(("state", "wave", "actor_type", "created_at", "replica_until"), 1),
            **dict.fromkeys(("plan", "targets_sha256"), b""),
            "wave_ends": "[1]",
            "organization": "acme",
            of: asked.operation,
        }
        target = {"agent": "dock-1", "container": "web", "wave": 1}
        rollouts.insert(transaction.connection, rollout, [target])
        kept = {"method": "/m", "fingerprints": "{}", "reply": SECRET.encode(), "recorded_at": 1}
        key = {"organization": "acme", "actor": "ada", "request_id": "r", "operation": asked.operation}
        requests.insert(transaction.connection, {**key, **kept})
        transaction.append(asked)

    await log.ledger.commit(("acme",), apply)
    await erase(log, asked.id)
    assert SECRET not in everything(log)


@pytest.mark.parametrize("state", [1, 2])
async def test_intent_of_a_command_on_its_way_is_not_erased(log: AuditLogServer, state: int) -> None:
    id = new_id()
    intent = await make_command(log, id, state)
    refusal = await log.refused("EraseEventDetails", pb.EraseEventDetailsRequest(ids=[intent.id], reason="now"))
    assert (refusal.code(), reason_of(refusal)) == (grpc.StatusCode.FAILED_PRECONDITION, "COMMAND_NEEDS_DETAILS")
    assert id in (refusal.details() or "")
    assert not (await log.call("GetEvent", pb.GetEventRequest(id=intent.id))).HasField("erasure")


async def test_same_event_of_a_service_again_is_known_after_its_erasure(log: AuditLogServer) -> None:
    new = pb.NewEvent(id=new_id(), action="task.update", reason=SECRET, request_id="r")
    request = pb.RecordEventsRequest(events=[new])
    (index,) = (await log.call("RecordEvents", request)).indexes
    await erase(log, new.id)
    assert (await log.call("RecordEvents", request)).indexes == [index]


def secrets_in(folder: pathlib.Path) -> list[str]:
    """Files of the embedded database that hold the secret after a checkpoint."""
    with contextlib.closing(sqlite3.connect(folder / "lading.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return [file.name for file in folder.glob("lading.db*") if SECRET.encode() in file.read_bytes()]


async def test_erased_bytes_are_gone_from_the_file(settings: Settings) -> None:
    """Events of many sizes, so that pages split and overflow, erased in parts that follow no order."""
    async with AuditLogServer(settings) as log:
        events = [
            secretive(
                actor=Actor(ActorType.USER, f"u-{number}", email=f"{SECRET}-{number * 7919 % 1000}@acme.example"),
                request_id=f"{SECRET}-{number * 104_729 % 1000}",
                details={"request": {"text": f"{SECRET} " * (number % 50 * 20)}},
            )
            for number in range(1000)
        ]
        for at in range(0, 1000, 50):
            await log.record(*events[at : at + 50])
        await log.count()
        order = sorted(events, key=lambda one: one.id[-6:])
        for at in range(0, 1000, 100):
            await erase(log, *(one.id for one in order[at : at + 100]))
        await log.count()
    assert secrets_in(settings.data) == []


async def test_actor_without_an_email_keeps_its_counts(log: AuditLogServer) -> None:
    one = event(actor=Actor(ActorType.SERVICE, "deployer"))
    await log.record(one)
    await log.count()
    await erase(log, one.id)
    assert (await facet(log, "ACTOR"))["deployer"] == (1, 0)
    assert ADA.email in (await facet(log, "ACTOR"))
