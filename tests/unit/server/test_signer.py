"""Several processes on one data directory: what was signed only ever rises, and no log is refused for their order."""

import pathlib
import random

import pytest

from lading_server import signer
from lading_server.signer import RolledBack, Signed, Signer, slot_of
from lading_server.tree import Edge, grow, hash_leaf, prove_consistency

LEAVES = [hash_leaf(str(number).encode()) for number in range(400)]


def edge(size: int, leaves: list[bytes] = LEAVES) -> Edge:
    return grow(Edge(), leaves[:size]).after


def prove(first: int, size: int) -> tuple[bytes, ...]:
    growth = grow(Edge(), LEAVES[:size])
    return prove_consistency(first, size, lambda level, index: growth.nodes[level, index])


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    signer.create(tmp_path)
    return tmp_path


def on_disk(folder: pathlib.Path) -> Signed:
    return signer.read_state((folder / signer.STATE_FOLDER / "acme.json").read_text(errors="replace"))


def check(one: Signer, size: int) -> None:
    one.check("acme", size, edge(size).root(), prove)


def sign(one: Signer, size: int) -> str:
    return one.sign("acme", size, edge(size).root())


@pytest.mark.parametrize("seed", range(20))
def test_processes_that_sign_in_any_order_leave_the_largest_and_refuse_nothing(folder: pathlib.Path, seed: int) -> None:
    chance = random.Random(seed)
    processes = [signer.load(folder) for _ in range(3)]
    size, highest = 0, 0
    waiting: list[tuple[Signer, int]] = []
    for _ in range(60):
        # Commits are in one order, for each holds the head of the log; signatures come when they come.
        one = chance.choice([process for process in processes if all(process is not other for other, _ in waiting)])
        check(one, size)
        size += chance.randint(1, 5)
        one.follow("acme", grow(edge(size - 1), LEAVES[size - 1 : size]))
        waiting.append((one, size))
        if len(waiting) == len(processes) or chance.random() < 0.5:
            chance.shuffle(waiting)
            for other, at in waiting:
                assert sign(other, at)
                highest = max(highest, at)
                assert on_disk(folder) == Signed(highest, edge(highest).root())
            waiting.clear()
    check(signer.load(folder), size)


def test_log_that_another_process_signed_further_is_refused_when_it_goes_back(folder: pathlib.Path) -> None:
    one, other = signer.load(folder), signer.load(folder)
    for process, size in ((one, 10), (other, 20)):
        check(process, size)
        sign(process, size)
    with pytest.raises(RolledBack, match="does not extend the 20 that were signed"):
        check(one, 15)


def test_log_that_forks_from_what_another_process_signed_is_refused(folder: pathlib.Path) -> None:
    one, other = signer.load(folder), signer.load(folder)
    for process, size in ((one, 10), (other, 20)):
        check(process, size)
        sign(process, size)
    fork = grow(edge(15), [hash_leaf(b"other")] * 10)

    def prove_fork(first: int, size: int) -> tuple[bytes, ...]:
        return prove_consistency(first, size, lambda level, index: nodes[level, index])

    nodes = {**grow(Edge(), LEAVES[:15]).nodes, **fork.nodes}
    with pytest.raises(RolledBack, match="does not extend the 20"):
        one.check("acme", 25, fork.after.root(), prove_fork)


def test_two_trees_of_one_size_are_not_both_signed(folder: pathlib.Path) -> None:
    one, other = signer.load(folder), signer.load(folder)
    check(one, 10)
    check(other, 10)
    one.follow("acme", grow(edge(10), [hash_leaf(b"this")]))
    other.follow("acme", grow(edge(10), [hash_leaf(b"that")]))
    one.sign("acme", 11, grow(edge(10), [hash_leaf(b"this")]).after.root())
    with pytest.raises(RolledBack, match="another process signed another tree of 11"):
        other.sign("acme", 11, grow(edge(10), [hash_leaf(b"that")]).after.root())


@pytest.mark.parametrize("torn", [0, 1])
def test_state_with_a_torn_slot_is_the_other_one_and_is_healed(folder: pathlib.Path, torn: int) -> None:
    one = signer.load(folder)
    for size in (10, 20, 30):
        check(one, size)
        sign(one, size)
    path = folder / signer.STATE_FOLDER / "acme.json"
    content = bytearray(path.read_bytes())
    content[torn * signer.SLOT_BYTES + 10] ^= 0xFF
    path.write_bytes(content)
    left = on_disk(folder).size
    assert left in (20, 30)
    again = signer.load(folder)
    check(again, 40)
    sign(again, 40)
    assert on_disk(folder).size == 40
    assert slot_of(Signed(left, edge(left).root())) in path.read_bytes(), "the one that held stays"
