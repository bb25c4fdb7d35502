"""Tiles authenticate every leaf, and nothing that was changed."""

import hashlib

import pytest

from lading.transparency import merkle, tiles

SIZES = [0, 1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 65_793, 70_000]


@pytest.fixture(scope="module")
def leaves() -> list[bytes]:
    return [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(70_000)]


def levels_of(leaves: list[bytes]) -> list[list[bytes]]:
    """The hashes of each level of tiles: every 256 below make one, by the definition of tlog-tiles."""
    levels = [leaves]
    while len(levels[-1]) >= tiles.WIDTH:
        below, above = levels[-1], []
        for begin in range(0, len(below) // tiles.WIDTH * tiles.WIDTH, tiles.WIDTH):
            row = below[begin : begin + tiles.WIDTH]
            while len(row) > 1:
                row = [merkle.node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
            above.append(row[0])
        levels.append(above)
    return levels


def fetch_from(levels: list[list[bytes]], change: tuple[int, int] | None = None) -> tiles.Fetch:
    """Reads tiles of these levels; one bit of the hash at `change` (level, number) is flipped."""

    def fetch(level: int, index: int, width: int) -> bytes:
        begin = index * tiles.WIDTH
        found = list(levels[level][begin : begin + width])
        if change is not None and change[0] == level and begin <= change[1] < begin + len(found):
            at = change[1] - begin
            found[at] = bytes([found[at][0] ^ 1]) + found[at][1:]
        return b"".join(found)

    return fetch


def root_of(leaves: list[bytes]) -> bytes:
    frontier = merkle.Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


@pytest.mark.parametrize("size", SIZES)
def test_every_leaf_is_found_in_its_tree(size: int, leaves: list[bytes]) -> None:
    found = tiles.Tiles(size, root_of(leaves[:size]), fetch_from(levels_of(leaves[:size])))
    for index in {0, 1, 254, 255, 256, 257, size // 2, size - 257, size - 256, size - 2, size - 1}:
        if 0 <= index < size:
            assert found.leaf(index) == leaves[index]
    with pytest.raises(tiles.InvalidTile):
        found.leaf(size)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_a_changed_hash_is_found(level: int, at: str, leaves: list[bytes]) -> None:
    levels = levels_of(leaves)
    numbers = {"first": 0, "middle": len(levels[level]) // 2, "last": len(levels[level]) - 1}
    changed = numbers[at]
    index = min(changed * 256**level, len(leaves) - 1)
    with pytest.raises(tiles.InvalidTile):
        tiles.Tiles(len(leaves), root_of(leaves), fetch_from(levels, (level, changed))).leaf(index)


def test_paths_are_those_of_tlog_tiles() -> None:
    assert tiles.path_of(0, 1234067) == "tile/0/x001/x234/067"
    assert tiles.path_of(1, 1, 17) == "tile/1/001.p/17"
    assert tiles.path_of("entries", 0, 5) == "tile/entries/000.p/5"


def test_tiles_of_70000_are_those_of_the_specification() -> None:
    found = tiles.tiles_of(70_000)
    assert sum(level == 0 and width == 256 for level, _, width in found) == 273
    assert (0, 273, 112) in found
    assert [(index, width) for level, index, width in found if level == 1] == [(0, 256), (1, 17)]
    assert [(index, width) for level, index, width in found if level == 2] == [(0, 1)]
    assert tiles.tiles_of(256) == [(0, 0, 256), (1, 0, 1)]
