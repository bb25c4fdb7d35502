"""Where a tail of the log stands, so that it goes on after a lost connection without gap or repeat. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lading.v1 import audit_log_pb2
from lading_client.resumption import Resumption


@dataclass
class Tail(Resumption):
    """`next_index`: where to begin; None is with the next event that is committed."""

    filter: audit_log_pb2.EventFilter
    next_index: int | None = None

    def __post_init__(self) -> None:
        self.promised = self.next_index is not None

    def request(self) -> audit_log_pb2.TailEventsRequest:
        self.ask()
        return audit_log_pb2.TailEventsRequest(filter=self.filter, from_index=self.next_index)

    def take(self, answer: audit_log_pb2.TailEventsResponse) -> Sequence[audit_log_pb2.Event]:
        """The events of an answer; the tail stands behind them."""
        self.next_index = answer.next_index
        self.hear()
        return answer.events
