"""How much one session of an agent may put into the log of its own accord. Pure."""

import time
from collections import Counter
from collections.abc import Callable

PER_SECOND = 50.0
BURST = 2_000
"""An agent that was away tells at once what it missed: two frames of changes."""
TELL_SECONDS = 60.0
"""What was left out is told so long after the first of it, and at the end of the session."""


class Allowance:
    """A token bucket of events, and a count of those beyond it, by kind. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._level, self._at = float(BURST), clock()
        self._since = 0.0
        self.left_out: Counter[str] = Counter()

    def room(self, count: int) -> int:
        """How many of so many events may go into the log now."""
        now = self._clock()
        self._level = min(float(BURST), self._level + (now - self._at) * PER_SECOND)
        self._at = now
        return min(count, int(self._level))

    def spend(self, kind: str, recorded: int, left_out: int) -> None:
        """So many of a kind were recorded, and so many were not."""
        self._level -= recorded
        if left_out and not self.left_out:
            self._since = self._clock()
        if left_out:
            self.left_out[kind] += left_out

    @property
    def due(self) -> bool:
        """Whether it is time to tell what was left out."""
        return bool(self.left_out) and self._clock() >= self._since + TELL_SECONDS
