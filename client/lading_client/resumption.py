"""Going on with a stream that has no end, after its connection is lost. Pure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from lading_client import errors

PASSING = (errors.Unavailable, errors.ResourceExhausted, errors.Aborted)
DELAY_MAX = 10.0  # seconds
# More than a call needs to fail where no server is, with the retries that gRPC makes by itself.
SERVED = 10.0  # seconds


def was_served(failure: errors.LadingError, seconds: float) -> bool:
    """Whether a call that failed after so many seconds, without any answer, was served until then.

    A server that stops says so; but gRPC asks again by itself where there was no answer, and shows the last failure
    only. So the time tells too.
    """
    return failure.reason == "STOPPING" or seconds >= SERVED


@dataclass(kw_only=True)
class Resumption:
    """`lost` is told once when the connection is, and `begun` at the first answer of each. `clock` gives seconds."""

    begun: Callable[[], object] = lambda: None
    lost: Callable[[errors.LadingError], object] = lambda failure: None
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    answered: bool = False
    promised: bool = False
    asked_at: float | None = None

    def ask(self) -> None:
        """To be called before each call."""
        self.answered = False
        self.asked_at = self.clock()

    def hear(self) -> None:
        """To be called for each answer."""
        self.failures = 0
        self.promised = True
        if not self.answered:
            self.answered = True
            self.begun()

    def delay(self, failure: errors.LadingError) -> float:
        """Seconds to wait before asking again; raises `failure` when asking again cannot help.

        A stream whose very first call fails is raised too: nothing was promised yet, and the caller should know.
        """
        stood = 0.0 if self.asked_at is None else self.clock() - self.asked_at
        if not isinstance(failure, PASSING) or not (self.promised or was_served(failure, stood)):
            raise failure
        self.promised = True
        self.failures += 1
        if self.failures == 1:
            self.lost(failure)
        ceiling = min(DELAY_MAX, 0.2 * 2 ** min(self.failures, 16))
        return max(failure.retry_after or 0, random.uniform(0, ceiling))
