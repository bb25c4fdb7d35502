"""Whether what is shown as erased was erased: the log has an event of each erasure, later than what it erased."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lading_client.verify import canonical
from lading_client.verify.broken import Broken

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Erasure, Event

ACTION = "audit.erase"


@dataclass
class Claim:
    """Events that are shown as erased by one actor at one moment; `counts` by reason, `index` of the first."""

    index: int
    event: str
    counts: Counter[str] = field(default_factory=Counter)


class Erasures:
    """Takes events in their order. Memory: about 500 bytes for each transaction that erased."""

    def __init__(self) -> None:
        self._claims: dict[tuple[int, str], Claim] = {}

    def take(self, event: Event, entry: dict[str, Any]) -> None:
        """The next event, whose entry was checked."""
        if event.HasField("erasure"):
            claim = self._claims.setdefault(_key(event.erasure), Claim(event.index, event.id))
            claim.counts[event.erasure.reason] += 1
        if entry["action"] == ACTION and (entry["stage"], entry["outcome"]) == ("COMPLETED", "SUCCESS"):
            self._explain(event, entry)

    def check(self, size: int) -> None:
        """Raise Broken for the first of the first `size` events that nobody erased."""
        open = [claim for claim in self._claims.values() if claim.index < size]
        if open:
            first = min(open, key=lambda claim: claim.index)
            raise Broken("its details are missing, and the log has no event of their erasure", first.index, first.event)

    def __bool__(self) -> bool:
        return bool(self._claims)

    def _explain(self, event: Event, entry: dict[str, Any]) -> None:
        key = (entry["recorded_at"], entry["actor"]["id"])
        claim = self._claims.get(key)
        if claim is None:
            return
        if not event.entry_details:  # erased itself: how many it erased is not known any more
            del self._claims[key]
            return
        details = canonical.read(event.entry_details)
        claim.counts[details.get("reason", "")] -= details.get("data", {}).get("erased", 0)
        claim.counts = +claim.counts
        if not claim.counts:
            del self._claims[key]


def _key(erasure: Erasure) -> tuple[int, str]:
    at = erasure.erased_at
    return at.seconds * 1_000_000 + at.nanos // 1000, erasure.actor
