"""How a rollout goes on, decided from what became of its targets so far. Pure: no clock, no I/O."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from lading_server.commands import State

TARGETS_MAX = 10_000
CONCURRENT, CONCURRENT_MAX = 100, 1_000
_WAVE = re.compile(r"([1-9][0-9]{0,5})(%?)")


class RolloutState(IntEnum):
    """Numbers as in lading.v1.RolloutState."""

    RUNNING = 1
    PAUSED = 2
    SUCCEEDED = 3
    FAILED = 4
    STOPPED = 5


SETTLED = frozenset({RolloutState.SUCCEEDED, RolloutState.FAILED, RolloutState.STOPPED})


class InvalidWaves(ValueError):
    """The waves are no rising list of counts and percentages."""


def wave_ends_of(waves: Sequence[str], total: int) -> tuple[int, ...]:
    """How many of `total` targets have begun once each wave is over; the last one is all of them. Raises InvalidWaves.

    A percentage is rounded up. A wave that adds nothing is left out, so that `1,10%,100%` does for 5 targets too.
    """
    ends: list[int] = []
    for wave in waves:
        found = _WAVE.fullmatch(wave)
        if found is None or (found[2] and int(found[1]) > 100):
            raise InvalidWaves(f"{wave!r} is no wave: say a count as 5, or a percentage as 10%")
        number = min(total, -(-total * int(found[1]) // 100) if found[2] else int(found[1]))
        if ends and number < ends[-1]:
            raise InvalidWaves(f"the wave {wave} is smaller than the one before: each says how many are done by then")
        if not ends or number > ends[-1]:
            ends.append(number)
    if not ends or ends[-1] < total:
        ends.append(total)
    return tuple(ends)


def wave_of(number: int, ends: Sequence[int]) -> int:
    """The wave, from 1, of the target `number`, from 0."""
    return next(wave for wave, end in enumerate(ends, 1) if number < end)


def digest_of(containers: Iterable[str]) -> bytes:
    """SHA-256 of the names of the targets in the order of the plan, each ended by a line feed."""
    return hashlib.sha256("".join(f"{name}\n" for name in containers).encode()).digest()


@dataclass(frozen=True, slots=True)
class Tally:
    """Targets by what became of them; UNKNOWN is nobody's success."""

    waiting: int = 0
    in_flight: int = 0
    succeeded: int = 0
    failed: int = 0
    unknown: int = 0
    forgiven: int = 0
    """Those of the failures that a person has seen, and resumed after."""

    @property
    def total(self) -> int:
        return self.waiting + self.in_flight + self.succeeded + self.failed + self.unknown

    @property
    def begun(self) -> int:
        return self.total - self.waiting

    @property
    def failures(self) -> int:
        """What counts against the budget."""
        return self.failed + self.unknown - self.forgiven


def tally_of(counts: Iterable[tuple[int | None, bool, int]]) -> Tally:
    """From a command's state, None for a target that has not begun, whether its failure was forgiven, and how many
    targets there are of it. One that was forgiven while UNKNOWN, and succeeded, is a success like others."""
    sums = dict.fromkeys(("waiting", "in_flight", "succeeded", "failed", "unknown", "forgiven"), 0)
    for state, forgiven, count in counts:
        place = place_of(state)
        sums[place] += count
        if forgiven and place in ("failed", "unknown"):
            sums["forgiven"] += count
    return Tally(**sums)


def place_of(state: int | None) -> str:
    """The field of Tally for a target whose command is in this state."""
    if not state:
        return "waiting"
    if state == State.SUCCEEDED:
        return "succeeded"
    if state == State.UNKNOWN:
        return "unknown"
    return "in_flight" if state < State.UNKNOWN else "failed"


@dataclass(frozen=True, slots=True)
class Pace:
    """How carefully: most commands in flight, failures that are allowed, and microseconds between waves."""

    concurrent_max: int
    failures_max: int
    soak: int = 0


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin so many targets."""

    count: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Until something changes, or `until` microseconds since the epoch."""

    until: int | None = None


def breach_of(tally: Tally, pace: Pace) -> str:
    """Why a rollout is, or was, halted for its failures, as they are by now."""
    if tally.failures > pace.failures_max:
        failed = "failed or were unknown" if tally.unknown else "failed"
        return f"{tally.failures} {failed}, {pace.failures_max} were allowed"
    return f"more than {pace.failures_max} had failed or were unknown, by now {tally.failures}: resume it to go on"


class Step(IntEnum):
    """What else is to be done."""

    END_WAVE = 1
    """Note that the wave is over: the soak begins."""
    NEXT_WAVE = 2
    BREACH = 3
    """Too many have failed."""
    SUCCEED = 4
    """All is done."""
    FORBID = 5
    """Its author may not operate containers any more."""


def next_step(
    tally: Tally, pace: Pace, wave: int, ends: Sequence[int], *, wave_ended_at: int | None, now: int
) -> Begin | Wait | Step:
    """What a running rollout does next.

    No command begins once the budget is spent. A wave is over when each of its targets has an end, or is UNKNOWN.
    """
    if tally.failures > pace.failures_max:
        return Step.BREACH
    room = min(ends[wave - 1] - tally.begun, pace.concurrent_max - tally.in_flight)
    if room > 0:
        return Begin(room)
    if tally.in_flight or tally.begun < ends[wave - 1]:
        return Wait()
    if wave == len(ends):
        return Step.SUCCEED
    if wave_ended_at is None:
        return Step.END_WAVE
    return Step.NEXT_WAVE if now >= wave_ended_at + pace.soak else Wait(wave_ended_at + pace.soak)
