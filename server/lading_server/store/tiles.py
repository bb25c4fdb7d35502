"""Hashes of the trees, in the tiles of C2SP tlog-tiles, and proofs from them.

The table holds every full tile of level 0, and of the levels above also the one that still fills. The open tile of
level 0 is not stored: its hashes are those of the newest entries. Full tiles never change, and are kept in memory with
all nodes inside them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from lading_server.store.schema import cosignatures, events, logs, tiles
from lading_server.tree import Edge, grow, hash_leaf, hash_pair, prove_consistency, prove_inclusion, unpack

WIDTH = 256
HEIGHT = 8
HASH_BYTES = 32
CACHED_MAX = 2_000
"""About 16 KB each."""
CHECKED_AT_ONCE = 4_096

Partial = dict[tuple[int, int], list[bytes]]
"""Hashes of tiles, by level and index."""
Pyramid = list[list[bytes]]
"""The hashes of a tile, and above them the nodes of each level up to its root."""


class Cache:
    """Full tiles by log, level and index; shared by threads."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, int, int], Pyramid] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple[str, int, int]) -> Pyramid | None:
        """The tile, if it is here."""
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
            return found

    def put(self, key: tuple[str, int, int], tile: Pyramid) -> None:
        """Keep it."""
        with self._lock:
            self._found[key] = tile
            if len(self._found) > CACHED_MAX:
                self._found.popitem(last=False)

    def clear(self) -> None:
        """Forget all: the database went back, with leave."""
        with self._lock:
            self._found.clear()


class Nodes:
    """The nodes of one log's tree, as `tree.Node`. `partial`: tiles that still fill, for whoever knows when they do."""

    def __init__(
        self, connection: sa.Connection, organization: str, cache: Cache, partial: Partial | None = None
    ) -> None:
        self._connection, self._organization, self._cache = connection, organization, cache
        self._open: Partial = {} if partial is None else partial

    def __call__(self, level: int, index: int) -> bytes:
        """Raises LookupError when the tree is not that large."""
        tile_level, rise = divmod(level, HEIGHT)
        tile, offset = divmod(index << rise, WIDTH)
        key = (self._organization, tile_level, tile)
        pyramid = self._cache.get(key)
        if pyramid is None:
            hashes = self.tile(tile_level, tile)
            if len(hashes) == WIDTH:
                pyramid = build(hashes)
                self._cache.put(key, pyramid)
                del self._open[key[1:]]
            else:
                if offset + (1 << rise) > len(hashes):
                    raise LookupError(f"there is no node {index} of level {level} yet")
                return build(hashes[offset : offset + (1 << rise)])[-1][0]
        return pyramid[rise][offset >> rise]

    def tile(self, level: int, index: int) -> list[bytes]:
        """The hashes of a tile, as far as it is filled."""
        key = (level, index)
        if key not in self._open:
            tile = {"of": self._organization, "at_level": level, "at_index": index}
            found = self._connection.execute(_SELECT_TILE, tile).scalar()
            if found is not None:
                self._open[key] = split(bytes(found))
            elif level == 0:
                entries = read_entries(self._connection, self._organization, index * WIDTH, WIDTH)
                self._open[key] = [hash_leaf(entry) for entry in entries]
            else:
                self._open[key] = []
        return self._open[key]


def split(hashes: bytes) -> list[bytes]:
    """Hashes that stand together, one by one."""
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]


def build(hashes: list[bytes]) -> Pyramid:
    """All nodes above a power of two of hashes."""
    levels = [hashes]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([hash_pair(below[at], below[at + 1]) for at in range(0, len(below), 2)])
    return levels


def read_entries(connection: sa.Connection, organization: str, first: int, limit: int) -> list[bytes]:
    """Entries of a log, from an index on."""
    found = connection.execute(
        sa.select(events.c.entry)
        .where(events.c.organization == organization, events.c.index >= first, events.c.index < first + limit)
        .order_by(events.c.index)
    ).scalars()
    return [bytes(entry) for entry in found]


def last_index(connection: sa.Connection, organization: str) -> int:
    """Index of the last event of a log; -1 when it has none."""
    found = sa.select(sa.func.max(events.c.index)).where(events.c.organization == organization)
    last = connection.execute(found).scalar()
    return -1 if last is None else int(last)


def read_edge(connection: sa.Connection, organization: str) -> Edge:
    """The end of a log. Raises ValueError when its parts do not fit."""
    found = connection.execute(sa.select(logs.c.size, logs.c.edge).where(logs.c.organization == organization)).first()
    return Edge() if found is None else unpack(found.size, bytes(found.edge))


def inclusion(connection: sa.Connection, organization: str, cache: Cache, index: int, size: int) -> tuple[bytes, ...]:
    """Inclusion proof of a leaf in the tree of `size`. Raises ValueError, LookupError."""
    return prove_inclusion(index, size, Nodes(connection, organization, cache))


def consistency(connection: sa.Connection, organization: str, cache: Cache, first: int, size: int) -> tuple[bytes, ...]:
    """Proof that the tree of `size` extends that of `first`. Raises ValueError, LookupError."""
    return prove_consistency(first, size, Nodes(connection, organization, cache)) if first else ()


_IS_TILE = (
    tiles.c.organization == sa.bindparam("of"),
    tiles.c.level == sa.bindparam("at_level"),
    tiles.c.index == sa.bindparam("at_index"),
)
_SELECT_TILE = sa.select(tiles.c.hashes).where(*_IS_TILE)
_INSERT_TILE = sa.insert(tiles)
_EXTEND_TILE = sa.update(tiles).where(*_IS_TILE).values(hashes=sa.bindparam("more"))


def append_tile(connection: sa.Connection, organization: str, level: int, index: int, hashes: bytes) -> None:
    """Put hashes at the end of a tile."""
    tile = {"of": organization, "at_level": level, "at_index": index}
    before = connection.execute(_SELECT_TILE, tile).scalar()
    if before is None:
        new = {"organization": organization, "level": level, "index": index, "hashes": hashes}
        connection.execute(_INSERT_TILE, new)
    else:
        connection.execute(_EXTEND_TILE, {**tile, "more": bytes(before) + hashes})


def check(connection: sa.Connection, organization: str, edge: Edge) -> None:
    """Raise ValueError unless the entries of a log, all of which are read, come to its edge and to its tiles."""
    found = Edge()
    open_tiles: dict[int, list[bytes]] = {}
    tile_count = 0

    def compare(level: int, index: int, hashes: list[bytes]) -> None:
        nonlocal tile_count
        tile = {"of": organization, "at_level": level, "at_index": index}
        if bytes(connection.execute(_SELECT_TILE, tile).scalar() or b"") != b"".join(hashes):
            raise ValueError(f"tile {index} of level {level} is not that of the entries")
        tile_count += 1

    while found.size < edge.size:
        count = min(CHECKED_AT_ONCE, edge.size - found.size)
        entries = read_entries(connection, organization, found.size, count)
        if len(entries) < count:
            raise ValueError(f"of the entries {found.size} to {found.size + count - 1} some are missing")
        growth = grow(found, [hash_leaf(entry) for entry in entries])
        for level in range(growth.after.size.bit_length() // HEIGHT + 1):
            for index in range(found.size >> HEIGHT * level, growth.after.size >> HEIGHT * level):
                hashes = open_tiles.setdefault(level, [])
                hashes.append(growth.nodes[HEIGHT * level, index])
                if len(hashes) == WIDTH:
                    compare(level, index // WIDTH, hashes)
                    hashes.clear()
        found = growth.after
    if found.root() != edge.root():
        raise ValueError(f"its {edge.size} entries do not come to the root of its head")
    for level, hashes in open_tiles.items():
        if level and hashes:
            compare(level, (edge.size >> HEIGHT * level) // WIDTH, hashes)
    if read_entries(connection, organization, edge.size, 1):
        raise ValueError(f"there are entries after its {edge.size}")
    of_log = sa.select(sa.func.count()).select_from(tiles).where(tiles.c.organization == organization)
    if connection.execute(of_log).scalar_one() != tile_count:
        raise ValueError("there are tiles of entries that it does not have")


def put_cosignatures(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Keep the newest cosignatures of agents; a row by column name. What a process writes late, of an agent that has
    moved to another one, is passed over: it is neither of a larger tree nor of a later time."""
    insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(cosignatures)
    key = [cosignatures.c.organization, cosignatures.c.agent]
    values = {name: insert.excluded[name] for name in ("witness_key", "size", "root", "signature", "signed_at")}
    newer = sa.or_(insert.excluded.size > cosignatures.c.size, insert.excluded.signed_at >= cosignatures.c.signed_at)
    connection.execute(insert.on_conflict_do_update(index_elements=key, set_=values, where=newer), rows)


def witness_key_of(connection: sa.Connection, organization: str, agent: str) -> str:
    """The key with which an agent cosigned last; empty when it never did."""
    found = sa.select(cosignatures.c.witness_key).where(
        cosignatures.c.organization == organization, cosignatures.c.agent == agent
    )
    return str(connection.execute(found).scalar() or "")


def list_cosignatures(connection: sa.Connection, organization: str) -> list[Any]:
    """The newest cosignature of each agent, by name."""
    found = sa.select(cosignatures).where(cosignatures.c.organization == organization).order_by(cosignatures.c.agent)
    return list(connection.execute(found))
