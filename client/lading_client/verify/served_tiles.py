"""Whether the tiles of a server are those of the events it shows: proofs are made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256

from lading.transparency.tiles import WIDTH, path_of
from lading_client.errors import DataLoss, OutOfRange
from lading_client.verify.broken import Broken

HASH_BYTES = 32
Place = tuple[int, int, int]
"""Level, number and width of a tile."""
Read = Callable[[Iterable[Place]], Iterator[tuple[Place, bytes]]]
"""The tiles of these places, in their order."""


class TileCheck:
    """Takes the leaves of a tree of `size` in their order, from number `first`. Tiles that begin before are not read.

    What is found is only kept: whether an event or a tile is wrong, the root says. Memory: 32 bytes for each tile.
    """

    def __init__(self, read: Read, size: int, first: int = 0) -> None:
        self._read = read
        self._size = size
        self._next = -(-first // WIDTH) * WIDTH
        self._begin = self._next // WIDTH
        self._skipped = self._next - first
        self._leaves: list[bytes] = []
        self._roots: list[bytes] = []
        self._tiles = self._level(0, self._begin)
        self.broken: Broken | None = None
        """What is wrong of the first tile that is not that of the leaves."""

    def take(self, leaf: bytes) -> None:
        """The hash of the next leaf; those beyond `size` are not looked at."""
        if self._skipped:
            self._skipped -= 1
        elif self._next + len(self._leaves) < self._size:
            self._leaves.append(leaf)
            if len(self._leaves) == WIDTH or self._next + len(self._leaves) == self._size:
                self._compare()

    def finish(self) -> None:
        """Check the tiles above, once all leaves are taken."""
        level, begin, known = 1, self._begin, self._roots
        while self._size >> 8 * level and self.broken is None:
            above, above_begin = [], -(-begin // WIDTH)
            for (_level, number, width), data in self._level(level, begin // WIDTH):
                at = max(begin, number * WIDTH)
                wanted = known[at - begin : number * WIDTH + width - begin]
                self._check(level, number, width, at, wanted, data)
                if width == WIDTH and number >= above_begin:
                    above.append(root_of(wanted))
            level, begin, known = level + 1, above_begin, above

    def _compare(self) -> None:
        (_level, number, width), data = next(self._tiles)
        self._check(0, number, width, self._next, self._leaves, data)
        if len(self._leaves) == WIDTH:
            self._roots.append(root_of(self._leaves))
        self._next += len(self._leaves)
        self._leaves = []

    def _level(self, level: int, begin: int) -> Iterator[tuple[Place, bytes]]:
        """The tiles of a level from number `begin` on; of those that the server does not give the data is empty."""
        count = self._size >> 8 * level
        places = [(level, number, min(WIDTH, count - number * WIDTH)) for number in range(begin, -(-count // WIDTH))]
        given = self._read(places)
        for place in places:
            try:
                yield next(given)
            except (OutOfRange, DataLoss, StopIteration):
                yield place, b""

    def _check(self, level: int, number: int, width: int, at: int, wanted: list[bytes], data: bytes) -> None:
        """Compare the hashes from `at` on with those in a tile."""
        if self.broken is not None or data[(at - number * WIDTH) * HASH_BYTES :] == b"".join(wanted):
            return
        path, skipped = path_of(level, number, width), at - number * WIDTH
        first = next(
            at + offset
            for offset in range(len(wanted) + 1)
            if offset == len(wanted)
            or data[(skipped + offset) * HASH_BYTES : (skipped + offset + 1) * HASH_BYTES] != wanted[offset]
        )
        self.broken = Broken(f"{path} does not hold the hashes of its events", first << 8 * level)


def root_of(hashes: list[bytes]) -> bytes:
    """Root over a power of two of hashes."""
    while len(hashes) > 1:
        hashes = [sha256(b"\x01" + hashes[at] + hashes[at + 1]).digest() for at in range(0, len(hashes), 2)]
    return hashes[0]
