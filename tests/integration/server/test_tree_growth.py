"""The trees that ledgers grow: whatever happens to a batch, what is committed has its proof, and no more is a leaf."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lading.transparency import merkle
from lading_server import errors
from lading_server.clock import new_id
from lading_server.ledger.transaction import Proof, Sight, Transaction
from lading_server.settings import Settings
from lading_server.store import tiles
from lading_server.store.reader import Reader
from tests.integration.server.ledgers import book, event, on_commit
from tests.integration.server.running import read_events
from tests.integration.server.witness import Witness
from tests.trees import check_trees

SIZES = (1, 2, 255, 256, 257, 65_535, 65_536, 65_537)
LOGS = ("left", "right")
DOUBLE = new_id()


async def test_every_size_of_the_tree_is_proven(settings: Settings) -> None:
    async with book(settings) as made:
        witness = Witness(made.signer.key("long"))
        reader = Reader(made.engine)
        roots: dict[int, bytes] = {}
        size = 0
        for wanted in SIZES:
            while size < wanted:
                count = min(wanted - size, 8_192)
                await made.record(*(event("long") for _ in range(count)))
                size += count
            for index in sorted({0, size // 3, size - 2, size - 1} & set(range(size))):
                roots[size] = (await witness.look(made, "long", index)).root
        leaves = check_trees(settings.database_url)["long"].leaves
        for first, second in itertools.combinations(SIZES, 2):
            # From the tiles, without what the ledger remembers.
            proof = await reader.read(tiles.consistency, "long", tiles.Cache(), first, second)
            merkle.verify_consistency(first, second, roots[first], roots[second], proof)
            for index in (0, first - 1, second - 1):
                proof = await reader.read(tiles.inclusion, "long", tiles.Cache(), index, second)
                merkle.verify_inclusion(leaves[index], index, second, proof, roots[second])
        await asyncio.to_thread(reader.close)


@dataclass(frozen=True)
class Work:
    """A unit on one or both logs: how many events, whether they are shown to a witness, and how it ends."""

    logs: tuple[str, ...]
    events: int
    shown: bool
    ends: str

    @property
    def is_good(self) -> bool:
        return self.ends == "well"


@dataclass
class Step:
    """Units that one of two ledgers gets together."""

    ledger: int
    units: list[Work] = field(default_factory=list)


WORK = st.builds(
    Work,
    logs=st.sampled_from([("left",), ("right",), ("left", "right")]),
    events=st.integers(0, 120),
    shown=st.booleans(),
    ends=st.sampled_from(["well", "well", "well", "raise", "duplicate"]),
)
STEPS = st.lists(st.builds(Step, ledger=st.integers(0, 1), units=st.lists(WORK, min_size=1, max_size=4)), max_size=8)


class Pair:
    """Two ledgers on one database, each with witnesses of its own."""

    def __init__(self, settings: Settings, runner: asyncio.Runner) -> None:
        self.settings, self.runner = settings, runner
        self.contexts = [book(settings), book(settings)]
        self.books = [runner.run(context.__aenter__()) for context in self.contexts]
        runner.run(self.books[0].record(event("acme", id=DOUBLE)))

    def close(self) -> None:
        for context in self.contexts:
            self.runner.run(context.__aexit__(None, None, None))

    async def play(self, step: Step, names: dict[str, str], witnesses: dict[tuple[int, str], Witness]) -> int:
        """The units of a step in one batch; how many events they left."""
        made = self.books[step.ledger]
        mine = {log: (name, witnesses[step.ledger, name].sight) for log, name in names.items()}
        answers = await made.together(
            *(made.commit(partial(append, work, mine), *names.values()) for work in step.units)
        )
        for work, answer in zip(step.units, answers, strict=True):
            assert isinstance(answer, list) == work.is_good, answer
            for proof in answer if work.is_good else ():
                witnesses[step.ledger, proof.organization].take(proof)
        return sum(work.events * len(work.logs) for work in step.units if work.is_good)


def append(work: Work, logs: dict[str, tuple[str, Sight]], transaction: Transaction) -> list[Proof]:
    proofs = []
    for _ in range(work.events):
        for name, sight in (logs[log] for log in work.logs):
            if work.shown:
                proofs.append(transaction.prove(event(name), sight))
            else:
                transaction.append(event(name))
    if work.ends == "raise":
        raise errors.NotFound
    if work.ends == "duplicate":
        transaction.append(event(logs[work.logs[0]][0], id=DOUBLE))
        transaction.append(event(logs[work.logs[0]][0], id=DOUBLE))
    return proofs


@pytest.fixture
def pair(any_settings: Settings) -> Iterator[Pair]:
    with asyncio.Runner() as runner:
        made = Pair(any_settings, runner)
        yield made
        made.close()


NUMBERS = itertools.count()


@given(steps=STEPS)
@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batches_of_two_ledgers_grow_trees_whose_proofs_hold(pair: Pair, steps: list[Step]) -> None:
    number = next(NUMBERS)
    names = {log: f"{log}-{number}" for log in LOGS}
    witnesses = {
        (ledger, name): Witness(made.signer.key(name))
        for ledger, made in enumerate(pair.books)
        for name in names.values()
    }
    written = sum(pair.runner.run(pair.play(step, names, witnesses)) for step in steps)
    trees = check_trees(pair.settings.database_url)
    assert sum(tree.size for name, tree in trees.items() if name in names.values()) == written
    for (ledger, name), witness in witnesses.items():
        checkpoint = pair.runner.run(witness.look(pair.books[ledger], name))
        tree = trees.get(name)
        assert (checkpoint.size, checkpoint.root) == ((tree.size, tree.root) if tree else (0, merkle.EMPTY_ROOT))


@pytest.mark.parametrize("committed", [True, False])
async def test_lost_answer_of_a_commit_keeps_tree_and_witness_right(any_settings: Settings, committed: bool) -> None:
    def lose(commit: Any) -> None:
        if committed:
            commit()
        raise sa.exc.OperationalError("COMMIT", None, Exception("the connection is gone"))

    async with book(any_settings) as made:
        witness = Witness(made.signer.key("acme"))
        await made.record(*(event() for _ in range(300)))
        await witness.look(made)
        on_commit(made, lose)
        proving = made.ledger.commit(("acme",), lambda unit: unit.prove(event(action="task.lost"), witness.sight))
        if committed:
            witness.take(await proving)
        else:
            with pytest.raises(errors.LedgerUnavailable):
                await proving
        await made.record(*(event() for _ in range(300)))
        await witness.look(made)
    check_trees(any_settings.database_url)
    assert len(read_events(any_settings, action="task.lost")) == committed


async def test_unit_that_fails_after_others_leaves_no_leaf(any_settings: Settings) -> None:
    def fail(transaction: Transaction) -> None:
        for _ in range(300):
            transaction.append(event())
        raise errors.NotFound

    async with book(any_settings) as made:
        witness = Witness(made.signer.key("acme"))
        before = len(read_events(any_settings))
        for _ in range(3):
            first, failed, last = await made.together(
                made.commit(lambda unit: unit.prove(event(), witness.sight)),
                made.commit(fail),
                made.commit(lambda unit: unit.prove(event(), witness.sight)),
            )
            assert isinstance(failed, errors.NotFound)
            witness.take(first)
            witness.take(last)
    assert check_trees(any_settings.database_url)["acme"].size == before + 6


async def test_tree_that_could_not_be_signed_counts_as_seen_by_nobody(
    any_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next proof would go on from a tree that the witness was never shown, and its session would break."""

    def fail(*_: Any) -> str:
        raise OSError("the disk is full")

    async with book(any_settings) as made:
        witness = Witness(made.signer.key("acme"))
        await witness.look(made)
        with monkeypatch.context() as patched:
            patched.setattr(made.signer, "sign", fail)
            lost = await made.commit(lambda unit: unit.prove(event(), witness.sight))
        assert (lost.checkpoint, witness.sight.turn) == ("", lost.turn + 1)
        witness.take(await made.commit(lambda unit: unit.prove(event(), witness.sight)))


async def test_open_tile_is_read_anew_after_a_rollback_and_after_another_process(any_settings: Settings) -> None:
    """What a batch that failed had put into the open tile must not be in the next one."""
    async with book(any_settings) as made, book(any_settings) as other:
        witness = Witness(made.signer.key("acme"))
        await made.record(*(event() for _ in range(250)))
        with pytest.raises(errors.Error):
            await made.record(*(event() for _ in range(20)), event(occurred_at=2**70))
        await made.record(event())
        await other.record(*(event() for _ in range(3)))
        await made.record(event(), event())
        await other.record(*(event() for _ in range(300)))
        await witness.look(made, index=251)
        await made.record(event())
        await witness.look(made, index=len(read_events(any_settings)) - 1)
    check_trees(any_settings.database_url)


async def test_two_ledgers_at_once_grow_one_tree(any_settings: Settings) -> None:
    async with book(any_settings) as one, book(any_settings) as other:
        witnesses = [Witness(one.signer.key("acme")), Witness(other.signer.key("acme"))]

        async def write(number: int) -> None:
            made = (one, other)[number % 2]
            for _ in range(20):
                await made.record(event(), *(event(("acme", "globex")[turn % 2]) for turn in range(number)))

        await asyncio.gather(*(write(number) for number in range(10)))
        for made, witness in zip((one, other), witnesses, strict=True):
            await witness.look(made)
    trees = check_trees(any_settings.database_url)
    assert {witness.root for witness in witnesses} == {trees["acme"].root}


@pytest.mark.parametrize("text", ["\ud800", "x" * 70_000], ids=["surrogate", "too long"])
async def test_event_that_no_entry_can_hold_is_refused_alone(any_settings: Settings, text: str) -> None:
    async with book(any_settings) as made:
        before = len(read_events(any_settings))
        good, bad, last = await made.together(
            made.record(event()), made.record(event(targets=(("task", text),))), made.record(event())
        )
        assert isinstance(bad, errors.Error)
        assert [good, last] == [[before], [before + 1]]
    check_trees(any_settings.database_url)


@pytest.mark.parametrize(
    "details", [{"big": 2**60}, {"ratio": 0.1}, {"tiny": 1e-300}, {"deep": [{"é": "\x01"}]}, {"\ufb33": 1, "😀": 2}]
)
async def test_any_details_have_a_canonical_form(any_settings: Settings, details: dict[str, Any]) -> None:
    async with book(any_settings) as made:
        await made.record(event(details={"data": details}))
    check_trees(any_settings.database_url)
