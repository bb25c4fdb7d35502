"""The verification of proofs against published leaves and roots, published vectors, and a tree built naively."""

import base64
import hashlib
import json
import os
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.transparency import merkle

LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = ["e3b0c442", "6e340b9c", "fac54203", "aeb6bcfe", "d37ee418", "4e3bbb1f", "76e67dad", "ddb89be4", "5dc9da79"]
VECTORS = pathlib.Path(
    os.environ.get("LADING_MERKLE_VECTORS", pathlib.Path(__file__).parents[4] / "shared/vectors/merkle/testdata")
)


def root_of(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162 section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + root_of(leaves[:k]) + root_of(leaves[k:])).digest()


def path_of(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 9162 section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < k:
        return [*path_of(index, leaves[:k]), root_of(leaves[k:])]
    return [*path_of(index - k, leaves[k:]), root_of(leaves[:k])]


def consistency_of(first: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF of RFC 9162 section 2.1.4.1."""
    if first == len(leaves):
        return [] if whole else [root_of(leaves)]
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    if first <= k:
        return [*consistency_of(first, leaves[:k], whole), root_of(leaves[k:])]
    return [*consistency_of(first - k, leaves[k:], False), root_of(leaves[:k])]


def test_published_leaves_give_the_published_roots() -> None:
    frontier = merkle.Frontier()
    found = [frontier.root().hex()[:8]]
    for leaf in LEAVES:
        frontier.append(merkle.leaf_hash(bytes.fromhex(leaf)))
        found.append(frontier.root().hex()[:8])
    assert found == ROOTS


def test_published_consistency_proof_of_6_to_8_begins_as_published() -> None:
    leaves = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES]
    proof = consistency_of(6, leaves)
    assert [one.hex()[:8] for one in proof] == ["0ebc5d34", "ca854ea1", "d37ee418"]
    merkle.verify_consistency(6, 8, root_of(leaves[:6]), root_of(leaves), proof)


@given(st.integers(1, 70), st.data())
@settings(max_examples=200, deadline=None)
def test_true_proofs_hold_and_changed_ones_do_not(size: int, data: st.DataObject) -> None:
    leaves = [merkle.leaf_hash(bytes([n])) for n in range(size)]
    root = root_of(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = path_of(index, leaves)
    merkle.verify_inclusion(leaves[index], index, size, proof, root)
    first = data.draw(st.integers(1, size))
    steps = consistency_of(first, leaves)
    merkle.verify_consistency(first, size, root_of(leaves[:first]), root, steps)

    bit = data.draw(st.integers(0, 255))
    bad_root = (int.from_bytes(root, "big") ^ 1 << bit).to_bytes(32, "big")
    with pytest.raises(merkle.InvalidProof):
        merkle.verify_inclusion(leaves[index], index, size, proof, bad_root)
    with pytest.raises(merkle.InvalidProof):
        merkle.verify_consistency(first, size, root_of(leaves[:first]), bad_root, steps)
    for hashes, check in (
        (proof, lambda changed: merkle.verify_inclusion(leaves[index], index, size, changed, root)),
        (steps, lambda changed: merkle.verify_consistency(first, size, root_of(leaves[:first]), root, changed)),
    ):
        with pytest.raises(merkle.InvalidProof):
            check([*hashes, root])
        if hashes:
            at = data.draw(st.integers(0, len(hashes) - 1))
            flipped = (int.from_bytes(hashes[at], "big") ^ 1 << bit).to_bytes(32, "big")
            with pytest.raises(merkle.InvalidProof):
                check([*hashes[:at], flipped, *hashes[at + 1 :]])
            with pytest.raises(merkle.InvalidProof):
                check(hashes[:-1])


def raised(check: object, *arguments: object) -> bool:
    try:
        check(*arguments)  # type: ignore[operator]
    except merkle.InvalidProof:
        return True
    return False


@pytest.mark.beside
@pytest.mark.skipif(not VECTORS.is_dir(), reason="the vectors of transparency-dev/merkle are not beside this checkout")
@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_vectors_of_transparency_dev_agree(kind: str) -> None:
    files = sorted((VECTORS / kind).rglob("*.json"))
    assert len(files) == 98
    for file in files:
        vector = json.loads(file.read_text())
        proof = [base64.b64decode(one) for one in vector["proof"] or []]
        if kind == "inclusion":
            leaf, root = (base64.b64decode(vector[key] or "") for key in ("leafHash", "root"))
            wrong = raised(merkle.verify_inclusion, leaf, vector["leafIdx"], vector["treeSize"], proof, root)
        else:
            one, two = (base64.b64decode(vector[key] or "") for key in ("root1", "root2"))
            wrong = raised(merkle.verify_consistency, vector["size1"], vector["size2"], one, two, proof)
        assert wrong == vector["wantErr"], file.name
