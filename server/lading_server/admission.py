"""How fast agents are let in: a storm of them is shed before it costs anything, each told when its turn comes."""

import time
from collections.abc import Callable

PER_SECOND = 200.0
BURST = 400
SPREAD_SECONDS_MAX = 60.0
LATER_SECONDS = 1.0
"""Nobody is told to come back sooner."""


class Bucket:
    """A token bucket of connects. `clock` in seconds."""

    def __init__(
        self, per_second: float = PER_SECOND, burst: int = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._clock = per_second, float(burst), clock
        self._level, self._at = float(burst), clock()
        self._turn = 0.0

    def take(self) -> float | None:
        """None for one that is let in; else after how many seconds it should come again.

        Those who are shed are given turns one after another, no more in a second than are let in.
        """
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level >= 1.0:
            self._level -= 1.0
            return None
        self._turn = max(self._turn + 1.0 / self._per_second, now + LATER_SECONDS)
        if self._turn > now + SPREAD_SECONDS_MAX:
            self._turn = now + LATER_SECONDS
        return self._turn - now


def slot(rank: int, per_second: float) -> float:
    """Seconds after which the agent of this rank, from 0, connects again, so that no second sees more than that."""
    return LATER_SECONDS + rank / per_second
