"""The whole log of a server, over its API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from lading.transparency.merkle import EMPTY_ROOT, InvalidProof, leaf_hash, verify_consistency
from lading.transparency.note import Checkpoint, InvalidNote, Key, open_checkpoint
from lading.transparency.tiles import WIDTH
from lading.v1 import audit_log_pb2 as pb
from lading_client.errors import DataLoss, OutOfRange, Unavailable
from lading_client.verify import pins, witnesses
from lading_client.verify.broken import Broken
from lading_client.verify.log_check import LogCheck
from lading_client.verify.proofs import Prover, edge_places
from lading_client.verify.served_tiles import TileCheck
from lading_client.verify.witnesses import Testimony

if TYPE_CHECKING:
    from lading_client.client import Client

TILES_MAX = 200
"""In one call."""
AT_ONCE = 512
"""Events that are asked for where one cannot be read."""
Told = Callable[[int, int], None]
"""How many events were checked, of how many."""


class TooShort(Exception):
    """The log ends before the first event that was asked for."""


@dataclass(frozen=True)
class Result:
    """What was found of a log that holds. `pin`: what to remember; `first_sight`: its key was not known before."""

    check: LogCheck
    key: Key
    checkpoint: Checkpoint
    testimony: Testimony
    pin: pins.Pin
    first_sight: bool


def ask_checkpoint(client: Client) -> pb.GetCheckpointResponse:
    """The newest checkpoint. Raises Broken where the server refuses its own log, for that went back."""
    try:
        return client.audit.GetCheckpoint(pb.GetCheckpointRequest())
    except Unavailable as failure:
        if failure.reason != "ROLLED_BACK":
            raise
        raise Broken(failure.message, part="checkpoint") from failure


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
    first: int = 0,
    wanted: int = 0,
    patience: float = 0.0,
    told: Told = lambda done, size: None,
) -> Result:
    """Check every event, the tree, the checkpoint, and that it extends what was seen before. Raises Broken.

    `pin`: what was seen of it before. `witness_keys` are trusted beside the pinned ones; where none is, those that
    the server shows are, this once. `first`: events before it are not read; that they are in the tree, as hashes from
    tiles, is proven by its root. `wanted`: wait until so many witnesses have cosigned this tree or a later one, at most
    `patience` seconds; whether they did is in the testimony. Raises TooShort.
    """
    answer = ask_checkpoint(client)
    key, seen = pins.believe(pin, answer.log_key, given_key)
    checkpoint = open_answer(answer, key)
    seen.check_size(checkpoint.size)
    if first > checkpoint.size:
        raise TooShort(f"the log has only {checkpoint.size} events")
    edge = read_edge(client, first, checkpoint.size)
    sizes = {seen.size, *(one.size for one in answer.cosignatures)}
    check = LogCheck(organization_of(key, organization), sizes, first=first, edge=edge)
    tiles = TileCheck(partial(read_tiles, client), checkpoint.size, first)
    for event in read_events(client, checkpoint.size, first):
        check.take_event(event)
        tiles.take(check.leaf)
        if check.size % 1000 == 0:
            told(check.size, checkpoint.size)
    told(check.size, checkpoint.size)
    if check.frontier.root() != checkpoint.root:
        raise locate(client, checkpoint.size, first)
    tiles.finish()
    if tiles.broken is not None:
        raise tiles.broken
    if check.erasures:
        read_on(client, key, check)
        check.erasures.check(checkpoint.size)

    @cache
    def root_at(size: int, root: bytes) -> bytes:
        """As recomputed, else as given, if the two trees are proven to be of one log; else empty."""
        if size == checkpoint.size or size in check.roots:
            return check.roots.get(size, checkpoint.root)
        (before, small), (after, large) = sorted(((size, root), (checkpoint.size, checkpoint.root)))
        try:
            if before:
                verify_consistency(before, after, small, large, prove(client, before, after))
        except (InvalidProof, OutOfRange):
            return b""
        return root if before or small == EMPTY_ROOT else b""

    if seen.size:
        seen.check_root(root_at(seen.size, bytes.fromhex(seen.root)))
    seen = seen.knows(witness_keys)
    trusted = seen.witnesses or {key.partition("+")[0]: key for key in (one.witness_key for one in answer.cosignatures)}

    testimony = witnesses.hear(key.name, answer.cosignatures, trusted, root_at)
    # Agents are shown the log every few seconds. Who is shown another one will never cosign this tree.
    deadline = time.monotonic() + patience
    while len(testimony.since(checkpoint.size)) < wanted <= len(trusted) and time.monotonic() < deadline:
        time.sleep(1)
        answer = ask_checkpoint(client)
        testimony = witnesses.hear(key.name, answer.cosignatures, trusted, root_at)
    remembered = pins.Pin(str(key), checkpoint.size, checkpoint.root.hex(), trusted)
    return Result(check, key, checkpoint, testimony, remembered, pin is None and given_key is None)


def read_on(client: Client, key: Key, check: LogCheck) -> None:
    """Take the events that came meanwhile: they tell of what was erased meanwhile."""
    checkpoint = open_answer(ask_checkpoint(client), key)
    for event in read_events(client, checkpoint.size, check.size):
        check.take_event(event)
    if check.frontier.root() != checkpoint.root:
        raise locate(client, checkpoint.size, check.first)


def read_edge(client: Client, first: int, size: int) -> list[bytes]:
    """The edge of the first leaves of a tree of `size`, from its tiles: who uses it must recompute the root."""
    prover = Prover(size)
    try:
        prover.tiles.update(read_tiles(client, edge_places(first, size)))
        return prover.edge(first)
    except (OutOfRange, DataLoss, KeyError) as missing:
        raise Broken(f"the server does not give a tile: {missing}") from missing


def prove(client: Client, first: int, second: int) -> Sequence[bytes]:
    """What the server gives as proof that one tree extends another."""
    return client.audit.GetConsistencyProof(pb.GetConsistencyProofRequest(first=first, second=second)).hashes


def read_events(client: Client, size: int, first: int = 0) -> Iterator[pb.Event]:
    """The events of the log up to `size`, from `first`, with their entries, oldest first. Raises Broken for fewer."""
    done = first
    while done < size:
        begun = done
        try:
            for answer in client.audit.ExportEvents(_entries(done, size)):
                yield from answer.events
                done += len(answer.events)
        except DataLoss as failure:
            raise Broken(f"the server cannot read it: {failure}", find_damaged(client, done, size)) from failure
        # The server may give fewer in one answer than were asked for; none at all is the end.
        if done == begun:
            raise Broken("it is missing: the server shows no more events", done)


def find_damaged(client: Client, begin: int, end: int) -> int:
    """The first event from `begin` on that the server cannot read, where it failed to read those from there."""
    while end - begin > 1:
        middle = min(begin + AT_ONCE, (begin + end) // 2)
        try:
            for _answer in client.audit.ExportEvents(_entries(begin, middle)):
                pass
            begin = middle
        except DataLoss:
            end = middle
    return begin


def _entries(begin: int, end: int) -> pb.ExportEventsRequest:
    return pb.ExportEventsRequest(
        limit=end - begin, format="verify", with_entries=True, oldest_first=True, from_index=begin
    )


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


def locate(client: Client, size: int, first: int = 0) -> Broken:
    """What to say of a log whose root is not that of its checkpoint: the first entry that is not the leaf it was."""
    hashes = b""
    tiles = read_tiles(client, ((0, index, WIDTH) for index in range(first // WIDTH, size // WIDTH)))
    for event in read_events(client, size, first // WIDTH * WIDTH):
        at = event.index % WIDTH
        if at == 0:
            try:
                hashes = next(tiles, (None, b""))[1]
            except (OutOfRange, DataLoss):
                hashes = b""
        if hashes and leaf_hash(event.entry) != hashes[at * 32 : at * 32 + 32]:
            return Broken("the content does not match its leaf", event.index, event.id)
    return Broken(f"the root of all {size} events is not that of the checkpoint")
