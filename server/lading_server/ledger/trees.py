"""The trees of the logs, in the ledger's transaction: edges and tiles move with the rows, and proofs are made.

Used by the ledger's thread alone. What it remembers of a log (its edge, the hashes of its open tile) is only believed
as long as the locked head says the same: another process may have appended meanwhile.
"""

import logging
from collections.abc import Mapping

import sqlalchemy as sa

from lading_server.ledger.rows import ENTRY
from lading_server.ledger.transaction import Head, Transaction
from lading_server.signer import RolledBack, Signer
from lading_server.store import tiles
from lading_server.tree import Growth, Node, grow, hash_leaf, prove_consistency, prove_inclusion, unpack

log = logging.getLogger(__name__)


class Trees:
    """Grows trees, has every log checked against what was signed, and has checkpoints signed."""

    def __init__(self, signer: Signer, cache: tiles.Cache) -> None:
        self._signer, self._cache = signer, cache
        self._checked: dict[str, tuple[int, bytes]] = {}
        """Sizes and edges, by log, that extend what was signed."""
        self._open: dict[str, tuple[int, list[bytes]]] = {}
        """By log, its size and the hashes of its open tile."""
        self._partial: dict[str, tiles.Partial] = {}
        """By log, tiles above that still fill, as they are since the last one below was full."""

    def check(self, connection: sa.Connection, heads: Mapping[str, Head]) -> None:
        """Raise RolledBack when a log does not extend what was signed of it. Compares bytes, unless it has changed."""
        for name, head in heads.items():
            if self._checked.get(name) == (head.size, head.edge):
                continue
            self._partial.pop(name, None)
            node = self._node(connection, name, self._catch_up(connection, name, head))

            def prove(first: int, size: int, node: Node = node) -> tuple[bytes, ...]:
                return prove_consistency(first, size, node)

            try:
                root = unpack(head.size, head.edge).root()
            except ValueError as failure:
                raise RolledBack(
                    f"the head of the log of {name} is damaged: {failure}. Bring back a database that is whole",
                    metadata={"organization": name},
                ) from failure
            self._signer.check(name, head.size, root, prove)
            last = tiles.last_index(connection, name) if name not in self._checked else head.size - 1
            if last != head.size - 1:
                raise RolledBack(
                    f"the log of {name} has {head.size} entries by its head, and its last event is #{last}: the "
                    "database was changed. Bring back one that is whole",
                    metadata={"organization": name},
                )
            self._checked[name] = (head.size, head.edge)

    def _catch_up(self, connection: sa.Connection, name: str, head: Head) -> Growth | None:
        """Another process appended: read what is new, and no more of the log than that. None when it is too much, or
        does not lead to the head."""
        size, open_tile = self._open.pop(name, (0, []))
        checked, edge = self._checked.get(name, (0, b""))
        if not 0 < size == checked < head.size <= size + tiles.WIDTH:
            return None
        new = [hash_leaf(entry) for entry in tiles.read_entries(connection, name, size, head.size - size)]
        growth = grow(unpack(size, edge), new)
        if growth.after.pack() != head.edge:
            return None
        hashes = open_tile + new
        self._open[name] = (head.size, hashes[len(hashes) // tiles.WIDTH * tiles.WIDTH :])
        return growth

    def grow(self, connection: sa.Connection, transaction: Transaction, heads: Mapping[str, Head]) -> dict[str, Growth]:
        """Append the rows of the transaction to their trees; moves the edges of the heads and writes full tiles."""
        leaves: dict[str, list[bytes]] = {}
        for row in transaction.rows:
            leaves.setdefault(row[0], []).append(hash_leaf(row[ENTRY]))
        growths = {}
        for name, new in leaves.items():
            head = heads[name]
            growth = grow(unpack(head.size_before, head.edge), new)
            self._write_tiles(connection, name, growth, new)
            head.edge = growth.after.pack()
            growths[name] = growth
        self._prove(connection, transaction, heads, growths)
        return growths

    def _prove(
        self,
        connection: sa.Connection,
        transaction: Transaction,
        heads: Mapping[str, Head],
        growths: Mapping[str, Growth],
    ) -> None:
        """Make the proofs that were asked for, each from the tree that its witness was shown last."""
        shown: dict[int, tuple[int, int]] = {}
        known: dict[tuple[str, int, int], tuple[bytes, ...]] = {}
        for proof in transaction.proofs:
            name = proof.organization
            node = self._node(connection, name, growths.get(name))
            proof.size = heads[name].size
            proof.extends, proof.turn = shown.get(id(proof.sight), (proof.sight.size, proof.sight.turn))
            shown[id(proof.sight)] = (proof.size, proof.turn + 1)
            if proof.index >= 0:
                proof.hashes = prove_inclusion(proof.index, proof.size, node)
            if 0 < proof.extends < proof.size:
                key = (name, proof.extends, proof.size)
                if key not in known:  # all idle agents were shown the same tree
                    known[key] = prove_consistency(proof.extends, proof.size, node)
                proof.consistency = known[key]

    def _node(self, connection: sa.Connection, name: str, growth: Growth | None) -> Node:
        """The nodes of a log after this transaction: what is at hand first."""
        stored = tiles.Nodes(connection, name, self._cache, self._partial.setdefault(name, {}))
        size, open_tile = self._open.get(name, (0, []))
        first = size // tiles.WIDTH * tiles.WIDTH

        def node(level: int, index: int) -> bytes:
            if growth is not None and (level, index) in growth.nodes:
                return growth.nodes[level, index]
            begin, end = index << level, (index + 1) << level
            if level <= tiles.HEIGHT and first <= begin and end <= size:
                return tiles.build(open_tile[begin - first : end - first])[-1][0]
            return stored(level, index)

        return node

    def committed(self, transaction: Transaction, heads: Mapping[str, Head], growths: Mapping[str, Growth]) -> None:
        """The transaction is on disk: remember the new ends, and sign those that proofs are made against."""
        for name, growth in growths.items():
            self._checked[name] = (heads[name].size, heads[name].edge)
            self._signer.follow(name, growth)
        signed: dict[str, str] = {}
        for proof in transaction.proofs:
            name = proof.organization
            if name not in signed:
                root = unpack(heads[name].size, heads[name].edge).root()
                try:
                    signed[name] = self._signer.sign(name, proof.size, root)
                except (OSError, RolledBack) as failure:
                    log.error("the checkpoint of %s cannot be signed: %s", name, failure)
                    signed[name] = ""
            proof.checkpoint = signed[name]
            proof.sight.turn = proof.turn + 1
            if proof.checkpoint:  # else nobody can be shown this tree, and the next proof goes on from the one before
                proof.sight.size = proof.size

    def forget(self) -> None:
        """The transaction did not commit: believe nothing that it told."""
        self._open.clear()
        self._partial.clear()
        self._cache.clear()

    def _write_tiles(self, connection: sa.Connection, name: str, growth: Growth, leaves: list[bytes]) -> None:
        size, open_tile = self._open.get(name, (-1, []))
        first = growth.before.size // tiles.WIDTH * tiles.WIDTH
        if size != growth.before.size:
            entries = tiles.read_entries(connection, name, first, growth.before.size - first)
            open_tile = [hash_leaf(entry) for entry in entries]
        hashes = open_tile + leaves
        self._partial.get(name, {}).pop((0, first // tiles.WIDTH), None)
        if len(hashes) >= tiles.WIDTH:
            self._partial.pop(name, None)
        while len(hashes) >= tiles.WIDTH:
            full, hashes = hashes[: tiles.WIDTH], hashes[tiles.WIDTH :]
            tiles.append_tile(connection, name, 0, first // tiles.WIDTH, b"".join(full))
            first += tiles.WIDTH
            level = tiles.HEIGHT
            while first >> level << level == first and (level, (first >> level) - 1) in growth.nodes:
                index = (first >> level) - 1
                tile = index // tiles.WIDTH
                tiles.append_tile(connection, name, level // tiles.HEIGHT, tile, growth.nodes[level, index])
                level += tiles.HEIGHT
        self._open[name] = (growth.after.size, hashes)
