"""Where the hashes of a tree are in tiles: C2SP tlog-tiles. Height 8: a full tile holds 256 hashes, 8,192 bytes."""

from collections.abc import Callable

from lading.transparency.merkle import EMPTY_ROOT, HASH_BYTES, node_hash

WIDTH = 256
HEIGHT = 8


def path_of(level: int | str, index: int, width: int = WIDTH) -> str:
    """Path of a tile: (0, 1234067) → `tile/0/x001/x234/067`; a partial one ends in `.p/W`. Level `entries` likewise."""
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03d}")
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(groups)}{partial}"


def tiles_of(size: int) -> list[tuple[int, int, int]]:
    """All tiles of a tree of `size` leaves: (level, index, width), lowest level first."""
    found = []
    level, count = 0, size
    while count:
        full, partial = divmod(count, WIDTH)
        found += [(level, index, WIDTH) for index in range(full)]
        if partial:
            found.append((level, full, partial))
        level, count = level + 1, count // WIDTH
    return found


class InvalidTile(ValueError):
    """A tile does not belong to the tree."""


Fetch = Callable[[int, int, int], bytes]
"""The bytes of a tile: level, index, width."""


class Tiles:
    """The leaves of one signed tree, each authenticated against its root by the tiles above it.

    Reads the right edge at once and other tiles when they are asked for, each one once. Sizes and roots as in a
    checkpoint. Raises InvalidTile as soon as something does not fit, at the begin too.
    """

    def __init__(self, size: int, root: bytes, fetch: Fetch) -> None:
        self.size = size
        self._fetch = fetch
        self._known: dict[tuple[int, int], list[bytes]] = {}
        edge: list[tuple[int, bytes]] = []
        counts = [size]
        while counts[-1] >= WIDTH:
            counts.append(counts[-1] // WIDTH)
        self._top = len(counts) - 1
        for level in range(self._top, -1, -1):
            tile, width = divmod(counts[level], WIDTH)
            if not width:
                continue
            hashes = self._read(level, tile, width)
            self._known[level, tile] = hashes
            for one in hashes:
                _push(edge, HEIGHT * level, one)
        found = _fold(edge)
        if found != root:
            raise InvalidTile(f"the tiles of a tree of {size} do not give its root")

    def leaf(self, index: int) -> bytes:
        """Hash of the leaf with this number."""
        if not 0 <= index < self.size:
            raise InvalidTile(f"there is no leaf {index} in a tree of {self.size}")
        return self._tile(0, index // WIDTH)[index % WIDTH]

    def _tile(self, level: int, tile: int) -> list[bytes]:
        known = self._known.get((level, tile))
        if known is None:
            hashes = self._read(level, tile, WIDTH)
            above = self._tile(level + 1, tile // WIDTH)
            edge: list[tuple[int, bytes]] = []
            for one in hashes:
                _push(edge, 0, one)
            if _fold(edge) != above[tile % WIDTH]:
                raise InvalidTile(f"tile {tile} of level {level} does not belong to the tree")
            known = self._known[level, tile] = hashes
        return known

    def _read(self, level: int, tile: int, width: int) -> list[bytes]:
        raw = self._fetch(level, tile, width)
        if len(raw) != width * HASH_BYTES:
            raise InvalidTile(f"tile {tile} of level {level} has {len(raw)} bytes, not {width * HASH_BYTES}")
        return [raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)]


def _push(edge: list[tuple[int, bytes]], level: int, found: bytes) -> None:
    """Append a complete subtree to those on the edge, and join what is complete."""
    while edge and edge[-1][0] == level:
        found = node_hash(edge.pop()[1], found)
        level += 1
    edge.append((level, found))


def _fold(edge: list[tuple[int, bytes]]) -> bytes:
    """Root over the subtrees on the edge."""
    if not edge:
        return EMPTY_ROOT
    found = edge[-1][1]
    for _, left in reversed(edge[:-1]):
        found = node_hash(left, found)
    return found
