"""The whole log of a server, over its API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lading.transparency.merkle import InvalidProof, leaf_hash, verify_consistency
from lading.transparency.note import Checkpoint, InvalidNote, Key, open_checkpoint
from lading.transparency.tiles import WIDTH
from lading.v1 import audit_log_pb2 as pb
from lading_client.verify import pins, witnesses
from lading_client.verify.broken import Broken
from lading_client.verify.log_check import LogCheck
from lading_client.verify.witnesses import Testimony

if TYPE_CHECKING:
    from lading_client.client import Client

TILES_MAX = 200
"""In one call."""
Told = Callable[[int, int], None]
"""How many events were checked, of how many."""


@dataclass(frozen=True)
class Result:
    """What was found of a log that holds. `pin`: what to remember; `first_sight`: its key was not known before."""

    check: LogCheck
    key: Key
    checkpoint: Checkpoint
    testimony: Testimony
    pin: pins.Pin
    first_sight: bool


def open_answer(answer: pb.GetCheckpointResponse, key: Key) -> Checkpoint:
    """The checkpoint that a server shows. Raises Broken."""
    try:
        return open_checkpoint(answer.checkpoint, key)
    except InvalidNote as failure:
        raise Broken(str(failure), part="checkpoint") from failure


def organization_of(key: Key, wanted: str = "") -> str:
    """Whose log it is: the end of its origin. Raises Broken when it is another one's than `wanted`."""
    organization = key.name.rpartition("/")[2]
    if wanted and organization != wanted:
        raise Broken(f"the log {key.name} is not that of {wanted}", part="checkpoint")
    return organization


def verify_log(
    client: Client,
    pin: pins.Pin | None,
    *,
    organization: str = "",
    given_key: str | None = None,
    witness_keys: Iterable[Key] = (),
    told: Told = lambda done, size: None,
) -> Result:
    """Check every event, the tree, the checkpoint, and that it extends what was seen before. Raises Broken.

    `pin`: what was seen of it before. `witness_keys` are trusted beside the pinned ones; where none is, those that
    the server shows are, this once.
    """
    answer = client.audit.GetCheckpoint(pb.GetCheckpointRequest())
    key, seen = pins.believe(pin, answer.log_key, given_key)
    checkpoint = open_answer(answer, key)
    seen.check_size(checkpoint.size)
    check = LogCheck(organization_of(key, organization), {seen.size, *(one.size for one in answer.cosignatures)})
    for event in read_events(client, checkpoint.size):
        check.take_event(event)
        if check.size % 1000 == 0:
            told(check.size, checkpoint.size)
    told(check.size, checkpoint.size)
    seen.check_root(check.roots.get(seen.size, b""))
    if check.frontier.root() != checkpoint.root:
        raise locate(client, checkpoint.size)
    seen = seen.knows(witness_keys)
    trusted = seen.witnesses or {key.partition("+")[0]: key for key in (one.witness_key for one in answer.cosignatures)}

    def root_at(size: int, root: bytes) -> bytes:
        if size <= checkpoint.size:
            return check.roots.get(size, b"")
        # Cosigned after the checkpoint was made: a tree that must extend it.
        request = pb.GetConsistencyProofRequest(first=checkpoint.size, second=size)
        proof = client.audit.GetConsistencyProof(request).hashes if checkpoint.size else ()
        try:
            verify_consistency(checkpoint.size, size, checkpoint.root, root, proof)
        except InvalidProof:
            return b""
        return root

    testimony = witnesses.hear(key.name, answer.cosignatures, trusted, root_at)
    remembered = pins.Pin(str(key), checkpoint.size, checkpoint.root.hex(), trusted)
    return Result(check, key, checkpoint, testimony, remembered, pin is None and given_key is None)


def read_events(client: Client, size: int) -> Iterator[pb.Event]:
    """The first `size` events of the log with their entries, oldest first; fewer when the server has no more."""
    done = 0
    while done < size:
        request = pb.ExportEventsRequest(
            limit=size - done, format="verify", with_entries=True, oldest_first=True, from_index=done
        )
        begun = done
        for answer in client.audit.ExportEvents(request):
            yield from answer.events
            done += len(answer.events)
        # The server may give fewer in one answer than were asked for; none at all is the end.
        if done == begun:
            raise Broken("it is missing: the server shows no more events", done)


def read_tiles(client: Client, places: Iterable[tuple[int, int, int]]) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    """Tiles by level (-1: entries), number and width, in the order asked for."""
    waiting = list(places)
    for begin in range(0, len(waiting), TILES_MAX):
        tiles = [
            pb.TileCoordinate(level=level, index=index, width=width)
            for level, index, width in waiting[begin : begin + TILES_MAX]
        ]
        for answer in client.audit.ReadTiles(pb.ReadTilesRequest(tiles=tiles)):
            yield (answer.tile.level, answer.tile.index, answer.tile.width), answer.data


def locate(client: Client, size: int) -> Broken:
    """What to say of a log whose root is not that of its checkpoint: the first entry that is not the leaf it was."""
    hashes = b""
    tiles = read_tiles(client, ((0, index, WIDTH) for index in range(size // WIDTH)))
    for event in read_events(client, size):
        at = event.index % WIDTH
        if at == 0:
            hashes = next(tiles, (None, b""))[1]
        if hashes and leaf_hash(event.entry) != hashes[at * 32 : at * 32 + 32]:
            return Broken("the content does not match its leaf", event.index, event.id)
    return Broken(f"the root of all {size} events is not that of the checkpoint")
