"""Where a tail of the log stands, so that it goes on after a lost connection without gap or repeat. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lading.v1 import audit_log_pb2
from lading_client import errors

PASSING = (errors.Unavailable, errors.ResourceExhausted, errors.Aborted)
DELAY_MAX = 10.0  # seconds


@dataclass
class Tail:
    """`next_index`: where to begin; None is with the next event that is committed."""

    filter: audit_log_pb2.EventFilter
    next_index: int | None = None
    failures: int = 0

    def request(self) -> audit_log_pb2.TailEventsRequest:
        return audit_log_pb2.TailEventsRequest(filter=self.filter, from_index=self.next_index)

    def take(self, answer: audit_log_pb2.TailEventsResponse) -> Sequence[audit_log_pb2.Event]:
        """The events of an answer; the tail stands behind them."""
        self.failures = 0
        self.next_index = answer.next_index
        return answer.events

    def delay(self, failure: errors.LadingError) -> float:
        """Seconds to wait before asking again; raises `failure` when asking again cannot help.

        A tail whose very first call fails is raised too: nothing was promised yet, and the caller should know.
        """
        if not isinstance(failure, PASSING) or self.next_index is None:
            raise failure
        self.failures += 1
        ceiling = min(DELAY_MAX, 0.2 * 2**self.failures)
        return max(failure.retry_after or 0, random.uniform(0, ceiling))
