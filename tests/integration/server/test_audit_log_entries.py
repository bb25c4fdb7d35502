"""Entries, details and salts in the API, receipts, and what the tree's own methods answer."""

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError

from lading.transparency import merkle, note, receipt
from lading.transparency.entry import check_details, parse_entry
from lading.v1 import audit_log_pb2 as pb
from lading_server.clock import new_id
from lading_server.settings import Settings
from tests.integration.server.audit_log_server import AuditLogServer, event, match
from tests.trees import check_trees

TASK = match("ACTION", "task.update")


@pytest.fixture
async def log(any_settings: Settings) -> AsyncIterator[AuditLogServer]:
    async with AuditLogServer(any_settings) as server:
        yield server


def check(found: pb.Event) -> None:
    """Assert that an event has its entry, and the details that the entry commits to."""
    entry = parse_entry(found.entry)
    assert (entry["id"], entry["action"], entry["organization"]) == (found.id, found.action, "acme")
    check_details(entry, found.salt, json.loads(found.entry_details))


async def export(log: AuditLogServer, **request: Any) -> list[pb.Event]:
    asked = pb.ExportEventsRequest(**({"filter": pb.EventFilter(matches=[TASK])} | request))
    messages = log.stub.ExportEvents(asked, metadata=log.metadata(), timeout=20)
    return [event async for message in messages for event in message.events]


async def test_one_event_is_always_given_with_its_entry(log: AuditLogServer) -> None:
    one = event(reason="why", targets=(("task", "1"), ("task", "2")))
    await log.record(one)
    check(await log.call("GetEvent", pb.GetEventRequest(id=one.id)))


async def test_lists_and_exports_give_entries_where_they_are_asked_for(log: AuditLogServer) -> None:
    await log.record(*(event() for _ in range(3)))
    request = pb.ListEventsRequest(filter=pb.EventFilter(matches=[TASK]), with_entries=True)
    listed = (await log.call("ListEvents", request)).events
    for found in (listed, await export(log, with_entries=True)):
        assert len(found) == 3
        for one in found:
            check(one)
    request.with_entries = False
    for found in ((await log.call("ListEvents", request)).events, await export(log)):
        assert [(one.entry, one.entry_details, one.salt) for one in found] == [(b"", b"", b"")] * 3


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("skipped", [0, 700, 1199, 1200])
async def test_export_begins_at_an_index_in_either_order(log: AuditLogServer, skipped: int, oldest_first: bool) -> None:
    indexes = await log.record(*(event() for _ in range(1_200)))
    found = await export(log, from_index=indexes[0] + skipped, oldest_first=oldest_first)
    wanted = indexes[skipped:] if oldest_first else indexes[skipped:][::-1]
    assert [one.index for one in found] == wanted


async def test_export_oldest_first_keeps_to_its_limit(log: AuditLogServer) -> None:
    indexes = await log.record(*(event() for _ in range(700)))
    found = await export(log, from_index=indexes[3], oldest_first=True, limit=600)
    assert [one.index for one in found] == indexes[3:603]


async def test_whole_log_is_recomputed_from_an_export(log: AuditLogServer) -> None:
    await log.record(*(event() for _ in range(1_000)))
    answer = await log.call("GetCheckpoint", pb.GetCheckpointRequest())
    checkpoint = note.open_checkpoint(answer.checkpoint, note.parse_key(answer.log_key))
    frontier = merkle.Frontier()
    for one in await export(log, filter=pb.EventFilter(), with_entries=True, oldest_first=True):
        if one.index == frontier.size and one.index < checkpoint.size:
            frontier.append(merkle.leaf_hash(one.entry))
    assert (frontier.size, frontier.root()) == (checkpoint.size, checkpoint.root)


async def test_every_call_has_a_receipt_by_its_operation(log: AuditLogServer) -> None:
    call = log.stub.ListEvents(pb.ListEventsRequest(), metadata=log.metadata(), timeout=20)
    await call
    operation = dict(await call.trailing_metadata())["lading-operation"]
    found = await log.call("GetReceipt", pb.GetReceiptRequest(id=operation))
    key = note.parse_key(found.log_key)
    checkpoint = receipt.verify_receipt(receipt.parse_receipt(found.proof), found.entry, key)
    assert checkpoint.origin.endswith("/acme")
    entry = parse_entry(found.entry)
    assert (entry["operation"], entry["action"], entry["outcome"]) == (operation, "audit.list", "SUCCESS")
    check_details(entry, found.salt, json.loads(found.entry_details))


async def test_refused_call_has_a_receipt_too(log: AuditLogServer) -> None:
    refusal = await log.refused("GetEvent", pb.GetEventRequest(id=new_id()))
    operation = dict(refusal.trailing_metadata() or ())["lading-operation"]
    found = await log.call("GetReceipt", pb.GetReceiptRequest(id=operation))
    receipt.verify_receipt(receipt.parse_receipt(found.proof), found.entry, note.parse_key(found.log_key))
    assert parse_entry(found.entry)["code"] == grpc.StatusCode.NOT_FOUND.value[0]


async def test_receipt_of_another_organization_is_not_given(log: AuditLogServer) -> None:
    one = event()
    await log.record(one)
    refusal = await log.refused("GetReceipt", pb.GetReceiptRequest(id=one.id), log.globex)
    assert refusal.code() == grpc.StatusCode.NOT_FOUND


async def test_proofs_of_old_and_new_trees_verify(log: AuditLogServer) -> None:
    await log.record(*(event() for _ in range(600)))
    await log.call("GetCheckpoint", pb.GetCheckpointRequest())
    leaves = check_trees(log.settings.database_url)["acme"].leaves
    for first, second in ((1, 2), (3, 256), (255, 257), (256, 512), (400, 600), (600, 600)):
        roots = []
        for size in (first, second):
            frontier = merkle.Frontier()
            for leaf in leaves[:size]:
                frontier.append(leaf)
            roots.append(frontier.root())
        proof = await log.call("GetConsistencyProof", pb.GetConsistencyProofRequest(first=first, second=second))
        merkle.verify_consistency(first, second, roots[0], roots[1], proof.hashes)
        for index in (0, first - 1, second // 2, second - 1):
            proof = await log.call("GetInclusionProof", pb.GetInclusionProofRequest(index=index, size=second))
            merkle.verify_inclusion(leaves[index], index, second, proof.hashes, roots[1])


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetInclusionProof", pb.GetInclusionProofRequest(index=10_000)),
        ("GetInclusionProof", pb.GetInclusionProofRequest(index=0, size=10_000)),
        ("GetInclusionProof", pb.GetInclusionProofRequest(index=2, size=2)),
        ("GetConsistencyProof", pb.GetConsistencyProofRequest(first=1, second=10_000)),
        ("GetConsistencyProof", pb.GetConsistencyProofRequest(first=3, second=2)),
    ],
)
async def test_proof_beyond_the_log_is_out_of_range(log: AuditLogServer, method: str, request_: Any) -> None:
    assert (await log.refused(method, request_)).code() == grpc.StatusCode.OUT_OF_RANGE


@pytest.mark.parametrize("width", [1, 3, 255, 256])
async def test_tiles_are_those_of_the_entries(log: AuditLogServer, width: int) -> None:
    await log.record(*(event() for _ in range(600)))
    leaves = check_trees(log.settings.database_url)["acme"].leaves
    request = pb.ReadTilesRequest(
        tiles=[pb.TileCoordinate(level=level, index=1, width=width % 256) for level in (-1, 0)]
    )
    entries, hashes = [answer.data async for answer in log.stub.ReadTiles(request, metadata=log.metadata(), timeout=20)]
    assert hashes == b"".join(leaves[256 : 256 + width])
    found = []
    while entries:
        length = int.from_bytes(entries[:2], "big")
        found.append(merkle.leaf_hash(entries[2 : 2 + length]))
        entries = entries[2 + length :]
    assert found == leaves[256 : 256 + width]


@pytest.mark.parametrize(
    "tile", [{"level": 0, "index": 9}, {"level": 1, "index": 0, "width": 9}, {"level": -1, "index": 9, "width": 1}]
)
async def test_tile_that_is_not_there_yet_is_out_of_range(log: AuditLogServer, tile: dict[str, int]) -> None:
    request = pb.ReadTilesRequest(tiles=[pb.TileCoordinate(**tile)])
    with pytest.raises(AioRpcError) as refusal:
        await log.stub.ReadTiles(request, metadata=log.metadata(), timeout=20).read()
    assert refusal.value.code() == grpc.StatusCode.OUT_OF_RANGE
