"""What a unit sees of the transaction it runs in."""

from dataclasses import dataclass

import sqlalchemy as sa

from lading_server.event import Event
from lading_server.ledger import rows


@dataclass(slots=True)
class Head:
    """End of one log, locked: `size` is the index that the next event gets."""

    size: int
    size_before: int
    recorded_at: int
    edge: bytes
    """Roots of the complete subtrees of the log's tree, as `tree.Edge.pack` writes them; moved at the end."""
    sequence: int = 0
    """Number of the last event that this process wrote into this log."""


@dataclass(slots=True)
class Sight:
    """The tree that one witness was shown last; 0 for none. Moves as transactions commit, in their order. `turn`: how
    many proofs were made for it: they only hold in this order."""

    size: int = 0
    turn: int = 0


@dataclass(slots=True)
class Proof:
    """For one witness: a signed tree that extends the last one it was shown, and that an entry is in it.

    Filled in while the transaction commits. `index` is -1 when only the tree is to be shown. `hashes` is the inclusion
    proof, `consistency` the proof from `extends`, all for the `checkpoint` of `size` leaves. An empty checkpoint: it
    could not be signed.
    """

    organization: str
    sight: Sight
    index: int = -1
    entry: bytes = b""
    details: bytes = b""
    salt: bytes = b""
    hashes: tuple[bytes, ...] = ()
    extends: int = 0
    consistency: tuple[bytes, ...] = ()
    size: int = 0
    turn: int = 0
    checkpoint: str = ""


class Transaction:
    """An open transaction that holds the heads of the logs it may append to."""

    __slots__ = ("_boot_id", "_heads", "connection", "follows", "proofs", "recorded_at", "rows")

    def __init__(self, connection: sa.Connection, heads: dict[str, Head], boot_id: str, clock_at: int) -> None:
        self.connection = connection
        """For the statements of the store."""
        self.recorded_at = max([clock_at, *(head.recorded_at for head in heads.values())])
        """Time of this transaction, microseconds since the epoch; never before that of an earlier one of these logs."""
        self.rows: list[rows.Row] = []
        self.follows: list[rows.Follow] = []
        self.proofs: list[Proof] = []
        self._heads = heads
        self._boot_id = boot_id

    def append(self, event: Event) -> int:
        """Give the event its place in its organization's log, and return its index."""
        head = self._heads[event.organization]
        index = head.size
        head.size = index + 1
        head.sequence += 1
        self.rows.append(rows.encode(event, index, self.recorded_at, self._boot_id, head.sequence))
        if event.follows:
            self.follows.append((event.organization, event.operation, index))
        return index

    def size(self, organization: str) -> int:
        """Events in the log so far, those of this transaction too."""
        return self._heads[organization].size

    def sequences(self) -> dict[str, int]:
        """By log that this transaction holds, the number of the last event of this process there so far."""
        return {name: head.sequence for name, head in self._heads.items()}

    def prove(self, event: Event, sight: Sight) -> Proof:
        """Append an event, and have its proof for a witness once this is committed."""
        return self.prove_again(event.organization, self.append(event), sight)

    def prove_again(self, organization: str, index: int, sight: Sight) -> Proof:
        """Have the proof of an event that has its place already; index -1 shows the tree alone."""
        entry, details, salt = self._entry(organization, index) if index >= 0 else (b"", b"", b"")
        proof = Proof(organization, sight, index, entry, details, salt)
        self.proofs.append(proof)
        return proof

    def _entry(self, organization: str, index: int) -> tuple[bytes, bytes, bytes]:
        """Entry, details and salt of an event; those of this transaction are not in the database yet."""
        if index < self._heads[organization].size_before:
            return rows.read_entry(self.connection, organization, index)
        row = next(row for row in reversed(self.rows) if row[:2] == (organization, index))
        return row[rows.ENTRY], row[rows.DETAILS].encode(), row[rows.SALT]

    def mark(self) -> tuple[int, int, int, dict[str, tuple[int, int]]]:
        """Where things stand, for `reset`."""
        ends = {name: (head.size, head.sequence) for name, head in self._heads.items()}
        return len(self.rows), len(self.follows), len(self.proofs), ends

    def reset(self, mark: tuple[int, int, int, dict[str, tuple[int, int]]]) -> None:
        """Forget the events since `mark`."""
        length, follows, proofs, ends = mark
        del self.rows[length:]
        del self.follows[follows:]
        del self.proofs[proofs:]
        for name, (size, sequence) in ends.items():
            self._heads[name].size, self._heads[name].sequence = size, sequence
