"""Whether a log holds, checked in the viewer's own process and shared by all who look at the same log.

Checked are: the signature of the checkpoint by a key that is pinned at first sight, that it extends the last one seen,
the cosignatures, and of each row on a page that its entry is a leaf of that tree and says what the row shows.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lading.transparency.merkle import InvalidProof, leaf_hash, verify_consistency
from lading.transparency.note import Checkpoint, InvalidNote, Key
from lading.transparency.receipt import Receipt, parse_receipt, verify_receipt
from lading.transparency.tiles import WIDTH, InvalidTile, Tiles
from lading.v1 import audit_log_pb2 as pb
from lading.v1.agents_pb2 import ListAgentsRequest
from lading_client import Client
from lading_client.errors import LadingError, OutOfRange
from lading_client.verify import pins, receipts, witnesses
from lading_client.verify.broken import Broken
from lading_client.verify.log_check import check_event
from lading_client.verify.served_log import open_answer, organization_of
from lading_client.verify.witnesses import Testimony
from lading_viewer import pinned
from lading_viewer.connection import TIMEOUT_S, Connection

log = logging.getLogger("lading.viewer")
REFRESH_S = 15.0
TILES_MAX = 512
ROOTS_MAX = 4096
AGENTS_MAX = 500
SHORTER = "The log is shorter than a checkpoint this viewer saw"

Place = tuple[int, int, int]
"""Level, number and width of a tile."""


class Unproven(Exception):
    """The server gives nothing that could be checked."""


@dataclass(frozen=True)
class Verified:
    """A checkpoint that holds. `agents`: how many there are, 0 when that is not known; `at`: of the monotonic clock."""

    checkpoint: Checkpoint
    testimony: Testimony
    agents: int
    at: float


@dataclass(frozen=True)
class Proof:
    """One event that is proven to be in the log. `file`: a `.tlog-proof` that stands alone."""

    receipt: Receipt
    leaf: bytes
    checkpoint: Checkpoint
    entry: bytes
    details: bytes
    file: str
    verified: Verified


class Log:
    """The log of one organization. What was found broken stays broken, for everybody, until it is rechecked."""

    def __init__(self, connection: Connection, organization: str) -> None:
        self._organization = organization
        self._folder, self._name = connection.data, f"{connection.address}/{organization}"
        # Raises Unreadable.
        self._pin = pinned.read(self._folder, self._name)
        # Held while the server is asked: answers that overtake each other would look like a log that shrank.
        self._lock = threading.Lock()
        self._verified: Verified | None = None
        self._tiles: OrderedDict[Place, bytes] = OrderedDict()
        self._roots: dict[int, bytes] = {}
        self.broken: Broken | None = None

    @property
    def pin(self) -> pins.Pin | None:
        """What was seen of it so far; None before the first time."""
        return self._pin

    @property
    def verified(self) -> Verified | None:
        """What the last check found, however long ago."""
        return self._verified

    def check(self, client: Client, events: Sequence[pb.Event]) -> Verified:
        """Check the log and these rows of it. Raises Broken, Unproven, LadingError."""
        with self._lock:
            if self.broken:
                raise self.broken
            if any(not event.entry for event in events):
                raise Unproven("this server does not give the entries of its log")
            try:
                found = self._fresh(client, max((event.index for event in events), default=-1))
                self._check_rows(client, found.checkpoint, events)
            except Broken as failure:
                self.broken = failure
                raise
            return found

    def prove(self, client: Client, event: pb.Event) -> Proof:
        """Check one event by a proof of its own. Raises Broken, LadingError."""
        with self._lock:
            try:
                found = self._fresh(client)
                answer = client.audit.GetReceipt(pb.GetReceiptRequest(id=event.id))
                key = self._believe(answer.log_key)
                receipt = parse_receipt(answer.proof)
                checkpoint = verify_receipt(receipt, answer.entry, key)
                if receipt.index != event.index:
                    raise ValueError(f"the proof is that of #{receipt.index}")
                shown = pb.Event(entry=answer.entry, entry_details=answer.entry_details, salt=answer.salt)
                shown.MergeFrom(event)
                check_row(shown, organization_of(key, self._organization), leaf_hash(answer.entry))
                self._advance(client, checkpoint)
                file = receipts.write(answer)
            except Broken as failure:
                self.broken = failure
                raise
            except ValueError as failure:
                self.broken = Broken(str(failure), event.index, event.id)
                raise self.broken from failure
            leaf = leaf_hash(answer.entry)
            return Proof(receipt, leaf, checkpoint, answer.entry, answer.entry_details, file, found)

    def recheck(self, index: int | None) -> None:
        """Forget what was found of this event, of all with None, and of the checkpoint: the next check looks anew."""
        with self._lock:
            self._verified = None
            self._tiles.clear()
            if self.broken and (index is None or self.broken.index in (None, index)):
                self.broken = None

    def _fresh(self, client: Client, index: int = -1) -> Verified:
        """A checkpoint not older than REFRESH_S, with this leaf in it."""
        known = self._verified
        if known and known.checkpoint.size > index and time.monotonic() - known.at < REFRESH_S:
            return known
        answer = client.audit.GetCheckpoint(pb.GetCheckpointRequest())
        key = self._believe(answer.log_key)
        organization_of(key, self._organization)
        checkpoint = open_answer(answer, key)
        self._advance(client, checkpoint)
        testimony = self._hear(client, checkpoint, answer.cosignatures)
        self._verified = Verified(checkpoint, testimony, _count_agents(client), time.monotonic())
        return self._verified

    def _believe(self, shown: str) -> Key:
        try:
            key, self._pin = pins.believe(self._pin, shown, None)
        except InvalidNote as failure:
            raise Broken(str(failure), part="checkpoint") from failure
        return key

    def _advance(self, client: Client, checkpoint: Checkpoint) -> None:
        """Take a checkpoint for the last one seen, if it extends the one before."""
        pin = self._pin
        assert pin is not None
        if checkpoint.size < pin.size:
            raise Broken(SHORTER, part="checkpoint")
        if pin.size and not self._extends(client, (pin.size, bytes.fromhex(pin.root)), checkpoint):
            raise Broken(f"The first {pin.size} events are not those that this viewer saw", part="checkpoint")
        self._keep(pin.grown(checkpoint))

    def _extends(self, client: Client, first: tuple[int, bytes], second: Checkpoint) -> bool:
        size, root = first
        hashes: Sequence[bytes] = ()
        if size != second.size:
            request = pb.GetConsistencyProofRequest(first=size, second=second.size)
            hashes = client.audit.GetConsistencyProof(request).hashes
        try:
            verify_consistency(size, second.size, root, second.root, hashes)
        except InvalidProof:
            return False
        return True

    def _keep(self, pin: pins.Pin) -> None:
        if pin == self._pin:
            return
        self._pin = pin
        try:
            pinned.write(self._folder, self._name, pin)
        except OSError:
            # What was seen is still known until this process ends.
            log.exception("what was seen of %s could not be kept", self._name)

    def _hear(self, client: Client, checkpoint: Checkpoint, cosignatures: Iterable[pb.Cosignature]) -> Testimony:
        """Who cosigned this log. Witnesses are believed at first sight too, and kept by name."""
        pin = self._pin
        assert pin is not None
        shown = {one.witness_key.partition("+")[0]: one.witness_key for one in cosignatures}
        trusted = {**shown, **pin.witnesses}

        def root_at(size: int, root: bytes) -> bytes:
            if size == 0 or self._roots.get(size) == root:
                return root
            try:
                if size > checkpoint.size:
                    cosigned = Checkpoint(checkpoint.origin, size, root)
                    same = not checkpoint.size or self._extends(client, (checkpoint.size, checkpoint.root), cosigned)
                else:
                    same = self._extends(client, (size, root), checkpoint)
            except OutOfRange:
                # A witness saw a log of this size, and now it has none.
                return b""
            if same and size <= checkpoint.size:
                if len(self._roots) >= ROOTS_MAX:
                    self._roots.clear()
                self._roots[size] = root
            return root if same else b""

        testimony = witnesses.hear(checkpoint.origin, cosignatures, trusted, root_at)
        self._keep(replace(pin, witnesses={**pin.witnesses, **{name: trusted[name] for name in testimony.names}}))
        return testimony

    def _check_rows(self, client: Client, checkpoint: Checkpoint, events: Sequence[pb.Event]) -> None:
        organization = checkpoint.origin.rpartition("/")[2]
        for event in events:
            if not 0 <= event.index < checkpoint.size:
                raise Broken(f"it is not in the tree of {checkpoint.size}", event.index, event.id)
        if not events:
            return
        index = None
        try:
            tree = self._tree(client, checkpoint, [event.index for event in events])
            for event in events:
                index = event.index
                check_row(event, organization, tree.leaf(index))
        except ValueError as failure:
            if isinstance(failure, InvalidTile):
                self._tiles.clear()
            raise Broken(str(failure), index, event.id if index is not None else "") from failure

    def _tree(self, client: Client, checkpoint: Checkpoint, indexes: Iterable[int]) -> Tiles:
        """The tree, with all tiles that these leaves need: read at once, those that are not known yet."""
        needed = places(checkpoint.size, indexes)
        missing = sorted(needed - self._tiles.keys())
        tiles = {place: self._tiles[place] for place in needed - set(missing)}
        if missing:
            asked = [pb.TileCoordinate(level=level, index=index, width=width) for level, index, width in missing]
            for answer in client.audit.ReadTiles(pb.ReadTilesRequest(tiles=asked), timeout=TIMEOUT_S):
                tiles[answer.tile.level, answer.tile.index, answer.tile.width] = answer.data
        tree = Tiles(checkpoint.size, checkpoint.root, lambda *place: tiles.get(place, b""))
        for place in needed:
            self._tiles[place] = tiles[place]
            self._tiles.move_to_end(place)
        while len(self._tiles) > TILES_MAX:
            self._tiles.popitem(last=False)
        return tree


def places(size: int, indexes: Iterable[int]) -> set[Place]:
    """The tiles that `Tiles` reads for these leaves of a tree: its right edge, and those up from each leaf."""
    found: set[Place] = set()
    leaves = set(indexes)
    level, count = 0, size
    while count:
        if count % WIDTH:
            found.add((level, count // WIDTH, count % WIDTH))
        leaves = {index // WIDTH for index in leaves if index // WIDTH < count // WIDTH}
        found.update((level, index, WIDTH) for index in leaves)
        level, count = level + 1, count // WIDTH
    return found


def check_row(event: pb.Event, organization: str, leaf: bytes) -> None:
    """Check that an event shows what its entry says, and that this is the leaf. Raises ValueError."""
    if leaf_hash(event.entry) != leaf:
        raise ValueError("its entry is not the one in the tree")
    _, erased = check_event(event, organization)
    actor = event.actor
    texts = (event.reason, event.error, actor.email, actor.name, actor.on_behalf_of)
    if erased and (any(texts) or event.HasField("request") or event.HasField("diff") or event.HasField("details")):
        raise ValueError("it shows details, which were erased")


def _count_agents(client: Client) -> int:
    """0 when the server does not say, or there are more than one page."""
    try:
        answer = client.agents.ListAgents(ListAgentsRequest(page_size=AGENTS_MAX))
    except LadingError:
        return 0
    return 0 if answer.next_page_token else len(answer.agents)


_logs: dict[tuple[Connection, str], Log] = {}
_opening = threading.Lock()


def log_of(connection: Connection, organization: str) -> Log:
    """The log of an organization whose events this server gave. Raises pinned.Unreadable."""
    with _opening:
        where = (connection, organization)
        if where not in _logs:
            _logs[where] = Log(*where)
        return _logs[where]


def broken_of(connection: Connection, organization: str) -> Broken | None:
    """What was found broken before, without asking anybody."""
    found = _logs.get((connection, organization))
    return found.broken if found else None
