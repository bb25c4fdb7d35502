"""What the server builds is what the verifiers accept: the two share no code."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.transparency import merkle
from lading_server import tree


def leaves_of(count: int) -> list[bytes]:
    return [hashlib.sha256(count.to_bytes(4, "big")).digest() for count in range(count)]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12))
@settings(deadline=None)
def test_any_batches_give_one_tree_and_proofs_that_hold(batches: list[int]) -> None:
    leaves = leaves_of(sum(batches))
    edge, frontier, roots = tree.Edge(), merkle.Frontier(), [merkle.EMPTY_ROOT]
    for leaf in leaves:
        frontier.append(leaf)
        roots.append(frontier.root())
    for count in batches:
        growth = tree.grow(tree.unpack(edge.size, edge.pack()), leaves[edge.size : edge.size + count])
        for index in range(edge.size, growth.after.size):
            proof = growth.prove(index)
            merkle.verify_inclusion(leaves[index], index, growth.after.size, proof, growth.after.root())
        edge = growth.after
        assert edge.root() == roots[edge.size]
    everything = tree.grow(tree.Edge(), leaves)

    def node(level: int, index: int) -> bytes:
        return everything.nodes[level, index]

    size = len(leaves)
    for first in range(1, size + 1):
        proof = tree.prove_consistency(first, size, node)
        merkle.verify_consistency(first, size, roots[first], roots[size], proof)
        proof = tree.prove_inclusion(first - 1, size, node)
        merkle.verify_inclusion(leaves[first - 1], first - 1, size, proof, roots[size])


def test_what_cannot_be_proven_is_refused() -> None:
    with pytest.raises(ValueError, match="5 is not in a tree of 5"):
        tree.prove_inclusion(5, 5, lambda _level, _index: b"")
    with pytest.raises(ValueError, match="cannot extend"):
        tree.prove_consistency(0, 5, lambda _level, _index: b"")
    with pytest.raises(ValueError, match="not the edge"):
        tree.unpack(3, bytes(32))
