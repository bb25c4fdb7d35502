"""Bars of events over time, with the failed ones at their foot."""

import math
from dataclasses import asdict
from typing import Any

from lading.v1.audit_log_pb2 import SummarizeEventsResponse
from lading_viewer import words
from lading_viewer.moments import Clock, Window, moment, ticks

BARS = 60
LEVELS = 3
HOW_TO_ZOOM = "Drag, or use the arrow keys with Shift and then Enter, to zoom."


def data(summary: SummarizeEventsResponse, window: Window, clock: Clock) -> dict[str, Any] | None:
    """The chart of `components.overview`; None when there is nothing to draw."""
    if not summary.total or not summary.buckets:
        return None
    width = summary.width.ToTimedelta()
    # The first and the last bar reach over the window: bars begin at round times.
    drawn = Window(
        min(window.begins, moment(summary.buckets[0].begins_at)),
        max(window.ends, moment(summary.buckets[-1].begins_at) + width),
    )
    length = drawn.ends - drawn.begins
    step = _step(max(bucket.total for bucket in summary.buckets))
    top = step * LEVELS
    bars = []
    for bucket in summary.buckets:
        begins = moment(bucket.begins_at)
        begin = (begins - drawn.begins) / length
        bad = f", {words.count(bucket.failed)} failed or refused" if bucket.failed else ""
        bars.append(
            {
                "from": begin,
                "to": min(1.0, begin + width / length),
                "total": bucket.total,
                "failed": bucket.failed,
                "says": f"{clock.date(begins)} {clock.time(begins)}: {words.count(bucket.total)} events{bad}",
            }
        )
    return {
        "begin": drawn.begins.isoformat(),
        "end": drawn.ends.isoformat(),
        "label": f"Events over time: {total(summary)}{failed(summary)}. {HOW_TO_ZOOM}",
        "top": top,
        "levels": [{"at": number / LEVELS, "label": words.count(step * number)} for number in range(LEVELS + 1)],
        "ticks": [asdict(tick) for tick in ticks(drawn, clock)],
        "bars": bars,
    }


def total(summary: SummarizeEventsResponse) -> str:
    """`5 420 events`"""
    more = "+" if summary.capped else ""
    return f"{words.count(summary.total)}{more} {'event' if summary.total == 1 else 'events'}"


def failed(summary: SummarizeEventsResponse) -> str:
    """`, 95 failed or refused`; empty when none did."""
    return f", {words.count(summary.failed)} failed or refused" if summary.failed else ""


def _step(most: int) -> int:
    """Round distance of the levels, so that LEVELS of them reach over the highest bar."""
    rough = max(1.0, most / LEVELS)
    unit = 10 ** math.floor(math.log10(rough))
    return int(
        next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough and (unit * factor) % 1 == 0)
    )
