"""Where a reader of a log stands, so that it goes on after a lost connection without gap or repeat. Pure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lading.v1 import containers_pb2
from lading_client import errors
from lading_client.resumption import DELAY_MAX, PASSING, was_served

# A log that is not followed has an end, and so has the patience of who reads it.
PATIENCE = 60.0  # seconds

Piece = containers_pb2.StreamContainerLogsResponse


@dataclass
class LogReader:
    """`asked` is the first request. `clock` gives seconds, of any origin."""

    asked: containers_pb2.StreamContainerLogsRequest
    clock: Callable[[], float] = time.monotonic
    chance: random.Random = field(default_factory=random.Random)
    position: str = ""
    # Bytes that were handed on since that position, and how many of them this answer repeats.
    beyond: int = 0
    repeated: int = 0
    total: int = 0
    failures: int = 0
    failing_since: float = 0.0
    asked_at: float | None = None
    served: bool = False

    def request(self) -> containers_pb2.StreamContainerLogsRequest:
        request = containers_pb2.StreamContainerLogsRequest()
        request.CopyFrom(self.asked)
        if self.position:
            request.after = self.position
        self.repeated = self.beyond
        if not self.served:
            self.asked_at = self.clock()
        return request

    def take(self, answer: Piece) -> Piece | None:
        """What is new in an answer, its offset counted from the very first; None when nothing is."""
        self.failures = 0
        self.served = True
        fresh = answer.data[self.repeated :]
        self.repeated -= len(answer.data) - len(fresh)
        self.total += len(fresh)
        if answer.position and self.repeated == 0:
            self.position, self.beyond = answer.position, 0
        else:
            self.beyond += len(fresh)
        if not fresh:
            return None
        return Piece(data=fresh, source=answer.source, offset=self.total - len(fresh), position=answer.position)

    def delay(self, failure: errors.LadingError) -> float:
        """Seconds to wait before asking again; raises `failure` when asking again cannot help, or was tried for long.

        A first call that fails is raised too: nothing was promised yet, and the caller should know; but a log that is
        followed and was served without output so far goes on from its start. A break in the last lines of a log that
        gave no position is raised: they are others by now.
        """
        lost = self.total > 0 and not self.position and self.asked.tail > 0
        if not self.served and self.asked.follow and self.asked_at is not None:
            self.served = was_served(failure, self.clock() - self.asked_at)
        if not isinstance(failure, PASSING) or not self.served or lost:
            raise failure
        if self.failures == 0:
            self.failing_since = self.clock()
        if not self.asked.follow and self.clock() - self.failing_since > PATIENCE:
            raise failure
        self.failures += 1
        ceiling = min(DELAY_MAX, 0.2 * 2 ** min(self.failures, 16))
        return max(failure.retry_after or 0, self.chance.uniform(0, ceiling))
