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


class Transaction:
    """An open transaction that holds the heads of the logs it may append to."""

    __slots__ = ("_boot_id", "_heads", "connection", "follows", "recorded_at", "rows", "sequence")

    def __init__(
        self, connection: sa.Connection, heads: dict[str, Head], boot_id: str, sequence: int, clock_at: int
    ) -> None:
        self.connection = connection
        """For the statements of the store."""
        self.recorded_at = max([clock_at, *(head.recorded_at for head in heads.values())])
        """Time of this transaction, microseconds since the epoch; never before that of an earlier one of these logs."""
        self.rows: list[rows.Row] = []
        self.follows: list[rows.Follow] = []
        self.sequence = sequence
        self._heads = heads
        self._boot_id = boot_id

    def append(self, event: Event) -> int:
        """Give the event its place in its organization's log, and return its index."""
        head = self._heads[event.organization]
        index = head.size
        head.size = index + 1
        self.sequence += 1
        self.rows.append(rows.encode(event, index, self.recorded_at, self._boot_id, self.sequence))
        if event.follows:
            self.follows.append((event.organization, event.operation, index))
        return index

    def mark(self) -> tuple[int, int, int, dict[str, int]]:
        """Where things stand, for `reset`."""
        return (
            len(self.rows),
            len(self.follows),
            self.sequence,
            {name: head.size for name, head in self._heads.items()},
        )

    def reset(self, mark: tuple[int, int, int, dict[str, int]]) -> None:
        """Forget the events since `mark`."""
        length, follows, self.sequence, sizes = mark
        del self.rows[length:]
        del self.follows[follows:]
        for name, size in sizes.items():
            self._heads[name].size = size
