"""Builds the Merkle tree of a log (RFC 9162 section 2.1): appends batches, and makes proofs. Pure.

Shares no code with `lading.transparency`, which verifies: a fault of one must not hide in the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()

Node = Callable[[int, int], bytes]
"""Hash of the complete subtree over the leaves [index << level, (index + 1) << level)."""


def hash_leaf(entry: bytes) -> bytes:
    """Hash of an entry as a leaf."""
    return sha256(b"\0" + entry).digest()


def hash_pair(left: bytes, right: bytes) -> bytes:
    """Hash of the node above two."""
    return sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Edge:
    """A tree, as far as appending to it needs it: its size, and the roots of its complete subtrees from the left, one
    for each bit of the size, largest first."""

    size: int = 0
    roots: tuple[bytes, ...] = ()

    def root(self) -> bytes:
        """Root of the tree."""
        if not self.roots:
            return EMPTY_ROOT
        found = self.roots[-1]
        for left in reversed(self.roots[:-1]):
            found = hash_pair(left, found)
        return found

    def nodes(self) -> dict[tuple[int, int], bytes]:
        """The roots with their places (level, index)."""
        found = {}
        begin = 0
        for root, level in zip(self.roots, levels_of(self.size), strict=True):
            found[level, begin >> level] = root
            begin += 1 << level
        return found

    def pack(self) -> bytes:
        """The roots as they are stored."""
        return b"".join(self.roots)


def unpack(size: int, stored: bytes) -> Edge:
    """The edge of a tree of `size` leaves from its stored roots. Raises ValueError when they do not fit the size."""
    roots = tuple(stored[at : at + 32] for at in range(0, len(stored), 32))
    if len(stored) % 32 or len(roots) != size.bit_count():
        raise ValueError(f"{len(stored)} bytes are not the edge of a tree of {size}")
    return Edge(size, roots)


def levels_of(size: int) -> list[int]:
    """Levels of the complete subtrees of a tree of `size` leaves, from the left."""
    return [level for level in range(size.bit_length() - 1, -1, -1) if size >> level & 1]


@dataclass(frozen=True, slots=True)
class Growth:
    """A batch of leaves on its tree: the edge after it, and every node that can be named now, by (level, index)."""

    before: Edge
    after: Edge
    nodes: dict[tuple[int, int], bytes]

    def prove(self, index: int) -> tuple[bytes, ...]:
        """Inclusion proof of a leaf of this batch in the tree after it."""
        return prove_inclusion(index, self.after.size, lambda level, at: self.nodes[level, at])


def grow(edge: Edge, leaves: Sequence[bytes]) -> Growth:
    """Append leaf hashes: about two hashes each."""
    nodes = edge.nodes()
    roots = list(edge.roots)
    size = edge.size
    for leaf in leaves:
        nodes[0, size] = found = leaf
        level = 0
        while size >> level & 1:
            found = hash_pair(roots.pop(), found)
            level += 1
            nodes[level, size >> level] = found
        roots.append(found)
        size += 1
    return Growth(edge, Edge(size, tuple(roots)), nodes)


def hash_range(begin: int, end: int, node: Node) -> bytes:
    """Root over the leaves [begin, end), where `begin` is a multiple of the largest power of two within."""
    roots = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        roots.append(node(level, begin >> level))
        begin += 1 << level
    found = roots[-1]
    for left in reversed(roots[:-1]):
        found = hash_pair(left, found)
    return found


def prove_inclusion(index: int, size: int, node: Node) -> tuple[bytes, ...]:
    """Inclusion proof of leaf `index` in the tree of `size` (section 2.1.3.1). Raises ValueError."""
    if not 0 <= index < size:
        raise ValueError(f"{index} is not in a tree of {size}")
    path = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + (1 << ((end - begin - 1).bit_length() - 1))
        if index < middle:
            path.append(hash_range(middle, end, node))
            end = middle
        else:
            path.append(hash_range(begin, middle, node))
            begin = middle
    return tuple(reversed(path))


def prove_consistency(first: int, size: int, node: Node) -> tuple[bytes, ...]:
    """Proof that the tree of `size` extends that of `first` (section 2.1.4.1). Raises ValueError."""
    if not 0 < first <= size:
        raise ValueError(f"a tree of {size} cannot extend one of {first}")
    path = []
    begin, end = 0, size
    whole = True  # the subtree in question is one of the first tree, whose root the verifier has
    while first != end:
        middle = begin + (1 << ((end - begin - 1).bit_length() - 1))
        if first <= middle:
            path.append(hash_range(middle, end, node))
            end = middle
        else:
            path.append(hash_range(begin, middle, node))
            begin = middle
            whole = False
    if not whole:
        path.append(hash_range(begin, end, node))
    return tuple(reversed(path))
