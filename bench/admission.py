"""`python -m bench.admission [LEAVES]`: what the check of one command costs an agent, in a log of so many entries."""

import pathlib
import statistics
import sys
import time
from functools import cache

from lading.transparency import note
from lading.transparency.merkle import node_hash
from lading.v1.agent_link_pb2 import Dispatch
from lading_agent.admission import admit, read_envelope
from lading_agent.journal import Journal
from lading_agent.witness import Witness
from tests.unit.agent.honest_log import AGENT, ORGANIZATION, HonestLog, command, split

LEAVES = 10_000_000
ROUNDS = 2_000


class LongLog(HonestLog):
    """A log of many entries, all the same but one: that makes long proofs cheap to build."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        # In the middle of the largest complete subtree: no leaf has a longer proof.
        self._at = (1 << size.bit_length() - 2) + 12_345

    @property
    def size(self) -> int:
        return self._size

    def append(self, entry: bytes) -> int:
        super().append(entry)
        return self._at

    def root(self, begin: int, end: int) -> bytes:
        """Root over the leaves [begin, end)."""
        if begin <= self._at < end:
            if end - begin == 1:
                return self.leaves[-1]
            middle = begin + split(end - begin)
            return node_hash(self.root(begin, middle), self.root(middle, end))
        return same(end - begin)

    def checkpoint(self, size: int) -> str:
        text = note.Checkpoint(self.key.name, size, self.root(0, size)).text()
        return f"{text}\n{note.format_signature(self.key, self.private.sign(text.encode()))}"

    def prove_inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        path, begin, end = [], 0, self.size if size is None else size
        while end - begin > 1:
            middle = begin + split(end - begin)
            if index < middle:
                path.append(self.root(middle, end))
                end = middle
            else:
                path.append(self.root(begin, middle))
                begin = middle
        return path[::-1]

    def prove_consistency(self, first: int, size: int) -> list[bytes]:
        path, begin, end, whole = [], 0, size, True
        while 0 < first != end:
            middle = begin + split(end - begin)
            if first <= middle:
                path.append(self.root(middle, end))
                end = middle
            else:
                path.append(self.root(begin, middle))
                begin, whole = middle, False
        return ([] if whole else [self.root(begin, end)]) + path[::-1]


@cache
def same(count: int) -> bytes:
    """Root over so many leaves of zeros."""
    return bytes(32) if count == 1 else node_hash(same(split(count)), same(count - split(count)))


def measure(size: int, rounds: int = ROUNDS) -> tuple[list[float], str]:
    """Milliseconds of each check in a log of `size` entries, and how large the proofs are."""
    seen = size // 4 * 2 + 1  # long ago, and an odd number: hardly a proof of growth is longer
    log, envelope = LongLog(size), command("start")
    log.record(envelope)
    journal = Journal(pathlib.Path())
    witness = Witness(ORGANIZATION, AGENT, journal)
    journal.view = witness.check(log.growth(0, seen))
    frame = log.dispatch(envelope, seen)
    raw = frame.SerializeToString()
    times: list[float] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        dispatch = Dispatch.FromString(raw)
        admit(dispatch, read_envelope(dispatch), witness.check(dispatch.growth).tree, ORGANIZATION, AGENT)
        times.append(1000 * (time.perf_counter() - begin))
    return times, f"{len(frame.inclusion)} and {len(frame.growth.consistency)} hashes, {len(raw):,} bytes"


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else LEAVES
    times, proofs = measure(size)
    p99 = statistics.quantiles(times, n=100)[98]
    print(f"{size:,} entries, proofs of {proofs}: {statistics.median(times):.3f} ms in the middle, {p99:.3f} ms at p99")


if __name__ == "__main__":
    main()
