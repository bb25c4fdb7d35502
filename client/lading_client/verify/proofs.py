"""Inclusion proofs from tiles (C2SP tlog-tiles) that a server or a folder gives, for a tree of one size. Pure.

Whoever gets such a proof verifies it with `lading.transparency.merkle`, which shares no code with this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lading.transparency.merkle import node_hash
from lading.transparency.tiles import HEIGHT, WIDTH

Place = tuple[int, int, int]
"""Level, number and width of a tile."""


def path_ranges(index: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges of leaves whose roots prove a leaf, from the leaf up (RFC 9162 section 2.1.3.1)."""
    found = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + (1 << ((end - begin - 1).bit_length() - 1))
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((begin, middle))
            begin = middle
    return reversed(found)


def subtrees(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees that make up a range, from the left: level, and number among those of the level."""
    while begin < end:
        level = (end - begin).bit_length() - 1
        yield level, begin >> level
        begin += 1 << level


def place_of(level: int, number: int, size: int) -> tuple[Place, int, int]:
    """In which tile the hashes of a subtree are, and which of them: place, offset, count."""
    tile_level, rise = divmod(level, HEIGHT)
    index, offset = divmod(number << rise, WIDTH)
    width = min(WIDTH, (size >> (HEIGHT * tile_level)) - index * WIDTH)
    return (tile_level, index, width), offset, 1 << rise


def places(indexes: Iterable[int], size: int) -> set[Place]:
    """All tiles that the proofs of these leaves need."""
    found: set[Place] = set()
    tiles = set()
    for index in indexes:
        # Leaves of one tile need the same ones.
        if index // WIDTH not in tiles:
            tiles.add(index // WIDTH)
            found.add(place_of(0, index, size)[0])
            for begin, end in path_ranges(index, size):
                found.update(place_of(level, number, size)[0] for level, number in subtrees(begin, end))
    return found


def edge_places(count: int, size: int) -> list[Place]:
    """The tiles that hold the edge of the first `count` leaves of a tree of `size`."""
    return sorted({place_of(level, number, size)[0] for level, number in subtrees(0, count)})


class Prover:
    """Makes proofs for the tree of `size` from `tiles`, which whoever uses it fills; keeps the nodes it computed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tiles: dict[Place, bytes] = {}
        self._nodes: dict[tuple[int, int], bytes] = {}

    def forget(self) -> None:
        """Drop all tiles of the lowest level, which the next leaves hardly need."""
        self.tiles = {place: hashes for place, hashes in self.tiles.items() if place[0] > 0}
        self._nodes.clear()

    def missing(self, indexes: Iterable[int]) -> list[Place]:
        """The tiles that the proofs of these leaves still need."""
        return sorted(places(indexes, self.size) - self.tiles.keys())

    def prove(self, index: int) -> list[bytes]:
        """The inclusion proof. Raises KeyError for a tile that is not there."""
        proof = []
        for begin, end in path_ranges(index, self.size):
            roots = [self._root(level, number) for level, number in subtrees(begin, end)]
            found = roots.pop()
            while roots:
                found = node_hash(roots.pop(), found)
            proof.append(found)
        return proof

    def edge(self, count: int) -> list[bytes]:
        """Roots of the complete subtrees over the first leaves, from the left. Raises KeyError likewise."""
        return [self._root(level, number) for level, number in subtrees(0, count)]

    def _root(self, level: int, number: int) -> bytes:
        found = self._nodes.get((level, number))
        if found is None:
            place, offset, count = place_of(level, number, self.size)
            if count == 1:
                return self.tiles[place][offset * 32 : offset * 32 + 32]
            found = node_hash(self._root(level - 1, number * 2), self._root(level - 1, number * 2 + 1))
            self._nodes[level, number] = found
        return found
