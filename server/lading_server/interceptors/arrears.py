"""Ends of streams that came while the log could not be written.

What began has an end in the log (P3): these are recorded as soon as that can be. A crash before leaves such a stream
open, and the next start gives it up (`boots.py`).
"""

import asyncio
import itertools
import logging
from collections import deque

from lading_server import errors
from lading_server.event import Event
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.store import events

log = logging.getLogger(__name__)

TOGETHER_MAX = 500
RETRY_SECONDS = 0.5


class Arrears:
    """Ends that are due, in their order; one task for all, for an outage ends the streams of all agents."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._due: deque[Event] = deque()
        self._task: asyncio.Task[None] | None = None
        self._giving_up = False

    def add(self, end: Event) -> None:
        """Record it when that can be done; call it on the loop."""
        self._due.append(end)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._settle())

    def give_up(self) -> None:
        """The server stops: what cannot be recorded at the next attempt stays open."""
        self._giving_up = True

    async def drained(self) -> None:
        """Wait until all is recorded, or given up."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _settle(self) -> None:
        while self._due:
            some = list(itertools.islice(self._due, TOGETHER_MAX))
            try:
                await self._record(some)
            except (errors.LedgerUnavailable, errors.LedgerOverloaded):
                if self._giving_up:
                    break
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except errors.Error as failure:
                log.error("ends of %d streams could not be recorded: %s", len(some), failure)
            for _ in some:
                self._due.popleft()
        if self._due:
            log.error("ends of %d streams could not be recorded: the log cannot be written", len(self._due))

    async def _record(self, ends: list[Event]) -> None:
        def apply(transaction: Transaction) -> None:
            # A COMMIT that answered too late may have brought some of them.
            known = {row.id for row in events.with_ids(transaction.connection, [end.id for end in ends])}
            for end in ends:
                if end.id not in known:
                    transaction.append(end)

        await self._ledger.commit(sorted({end.organization for end in ends}), apply)
