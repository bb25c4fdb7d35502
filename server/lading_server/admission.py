"""How fast agents are let in: a storm of them is shed before it costs anything, each told when its turn comes."""

import time
from collections.abc import Callable

PER_SECOND = 200.0
BURST = 400
SPREAD_SECONDS_MAX = 300.0
"""No turn is later. Who comes when all of them are given is told to come after so long, and has none."""
LATER_SECONDS = 1.0
"""Nobody is told to come back sooner."""
LATE_SECONDS = 15.0
"""A turn that was not used so long after its time is lost: those who are late must not all come at once."""


class Bucket:
    """A token bucket of connects, whose tokens of the future are given away as turns. `clock` in seconds."""

    def __init__(
        self, per_second: float = PER_SECOND, burst: int = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every, self._clock = 1.0 / per_second, clock
        self._saved = (burst - 1) * self._every
        self._next = clock() - self._saved
        """When the next token comes that is nobody's."""
        self._turns: dict[str, float] = {}
        """In the order of their times."""

    def take(self, who: str) -> float | None:
        """None for one that is let in; else after how many seconds it should come again.

        Each that is shed has a turn of its own, however often it asks: one token is kept for it, so that nobody who
        comes later takes its place, and no more come in a second than are let in.
        """
        now = self._clock()
        self._forget(now - LATE_SECONDS)
        turn = self._turns.get(who)
        if turn is not None:
            if now < turn:
                return max(LATER_SECONDS, turn - now)
            del self._turns[who]
            return None
        self._next = max(self._next, now - self._saved)
        if self._next <= now:
            self._next += self._every
            return None
        turn = self._next + LATER_SECONDS
        if turn > now + SPREAD_SECONDS_MAX:
            return SPREAD_SECONDS_MAX
        self._turns[who] = turn
        self._next += self._every
        return turn - now

    def _forget(self, before: float) -> None:
        while self._turns:
            who = next(iter(self._turns))
            if self._turns[who] >= before:
                return
            del self._turns[who]


def slot(rank: int, per_second: float) -> float:
    """Seconds after which the agent of this rank, from 0, connects again, so that no second sees more than that."""
    return LATER_SECONDS + rank / per_second
