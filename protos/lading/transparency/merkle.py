"""Merkle trees: hashes and verification of proofs, RFC 9162 section 2.1 (the same as RFC 6962)."""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
PROOF_HASHES_MAX = 64


class InvalidProof(ValueError):
    """The proof does not hold."""


def leaf_hash(entry: bytes) -> bytes:
    """Hash of an entry: SHA-256(0x00 ‖ entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf with this hash is number `index` of the tree of `size` leaves with this root.

    RFC 9162 section 2.1.3.2. Raises InvalidProof.
    """
    _check_hashes([leaf, *proof])
    if not 0 <= index < size:
        raise InvalidProof(f"index {index} is not in a tree of {size}")
    fn, sn, found = index, size - 1, leaf
    for one in proof:
        if sn == 0:
            raise InvalidProof("the proof is too long")
        if fn & 1 or fn == sn:
            found = node_hash(one, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node_hash(found, one)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise InvalidProof("the proof is too short")
    if found != root:
        raise InvalidProof(f"leaf {index} is not in the tree of {size} with this root")


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `second` leaves extends the tree of `first` leaves.

    RFC 9162 section 2.1.4.2. A tree of no leaves is extended by none that this could tell: `first` must be at least 1.
    Raises InvalidProof.
    """
    _check_hashes(proof)
    if not 1 <= first <= second:
        raise InvalidProof(f"a tree of {second} cannot extend one of {first}")
    if first == second:
        if proof:
            raise InvalidProof("two trees of one size need no proof")
        if first_root != second_root:
            raise InvalidProof(f"two trees of {first} have different roots")
        return
    if not proof:
        raise InvalidProof("the proof is empty")
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, first_root)
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = path[0]
    for one in path[1:]:
        if sn == 0:
            raise InvalidProof("the proof is too long")
        if fn & 1 or fn == sn:
            old, new = node_hash(one, old), node_hash(one, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, one)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise InvalidProof("the proof is too short")
    if old != first_root or new != second_root:
        raise InvalidProof(f"the tree of {second} does not extend the tree of {first}")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > PROOF_HASHES_MAX + 1:
        raise InvalidProof("the proof is too long")
    if any(len(one) != HASH_BYTES for one in hashes):
        raise InvalidProof("a hash does not have 32 bytes")


class Frontier:
    """The roots of the complete subtrees on the left edge: enough to append leaves and to tell the root.

    Memory: one hash for each bit of the size. For whoever recomputes a whole log, or the rest of one: `edge` are then
    the roots of the complete subtrees over the first `size` leaves, from the left. Raises ValueError for too many or
    too few.
    """

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        if len(edge) != size.bit_count():
            raise ValueError(f"the edge of a tree of {size} has {size.bit_count()} hashes, not {len(edge)}")
        self.size = size
        self._edge = list(edge)

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        carry, size = leaf, self.size
        while size & 1:
            carry = node_hash(self._edge.pop(), carry)
            size >>= 1
        self._edge.append(carry)
        self.size += 1

    def root(self) -> bytes:
        """Root of the tree so far."""
        if not self._edge:
            return EMPTY_ROOT
        found = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            found = node_hash(left, found)
        return found
