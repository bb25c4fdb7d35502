"""Keeps the log from being filled from outside: a flood of refused calls is recorded in aggregate.

Each source has a bucket. While it holds, every refused call leaves an event of its own. Beyond, refused calls of the
same source, method and status wait for the end of the window and share one event with their count; they are answered
after it is committed, so that no reply leaves before its record (P1), and a flood is slowed down.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from lading_server.event import Event

BURST = 50
PER_SECOND = 20.0
WINDOW_SECONDS = 0.25
SOURCES_MAX = 10_000


class Flood:
    """Buckets by source, and the events that wait for their window's end."""

    def __init__(
        self, record: Callable[[list[Event]], Awaitable[object]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._record, self._clock = record, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._open: dict[tuple[str, str, int], tuple[list[Event], asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def record(self, source: str, event: Event) -> None:
        """Commit the event of a refused call, alone or with its like. Raises what the ledger raises."""
        if self._admit(source):
            await self._record([event])
            return
        key = (source, event.action, event.code)
        if key not in self._open:
            self._open[key] = ([], asyncio.get_running_loop().create_future())
            task = asyncio.create_task(self._close(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        events, answer = self._open[key]
        events.append(event)
        await asyncio.shield(answer)

    async def drained(self) -> None:
        """Wait until every call that came so far is recorded, those too whose callers did not wait for it."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _close(self, key: tuple[str, str, int]) -> None:
        await asyncio.sleep(WINDOW_SECONDS)
        events, answer = self._open.pop(key)
        first = events[0]
        details = {**first.details, "aggregated": True}
        try:
            await self._record([replace(first, count=len(events), details=details)])
        except Exception as failure:
            answer.set_exception(failure)
            answer.exception()  # each waiting call raises it; nobody else needs to
        else:
            answer.set_result(None)

    def _admit(self, source: str) -> bool:
        now = self._clock()
        if len(self._buckets) >= SOURCES_MAX:
            self._buckets.clear()  # a flood from many sources: all begin anew
        level, at = self._buckets.get(source, (float(BURST), now))
        level = min(float(BURST), level + (now - at) * PER_SECOND)
        admitted = level >= 1.0
        self._buckets[source] = (level - 1.0 if admitted else level, now)
        return admitted
