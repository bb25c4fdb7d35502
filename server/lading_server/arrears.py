"""What must come into the log, and could not when it was due: an outage of the database ends some day.

What began has an end in the log (P3), and what a caller was told did not happen must not. It is recorded as soon as
that can be. A crash before leaves an end open, and the next start gives it up (`boots.py`).
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lading_server import errors
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

TOGETHER_MAX = 500
RETRY_SECONDS = 0.5


class Arrears(Generic[T, R]):
    """What is due, in its order; one task for all, for an outage strikes all at once.

    `record` writes some of it into the logs of its organizations, in one unit, and must bear that a COMMIT which
    answered too late has brought it already; `then` is given what that returned, on the loop. `what` it is, for people.
    """

    def __init__(
        self, ledger: Ledger, what: str, record: Callable[[Transaction, Sequence[T]], R], then: Callable[[R], None]
    ) -> None:
        self._ledger, self._what, self._record, self._then = ledger, what, record, then
        self._due: deque[tuple[str, T]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._giving_up = False

    def add(self, organization: str, one: T) -> None:
        """Record it when that can be done; call it on the loop."""
        self._due.append((organization, one))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._settle())

    def give_up(self) -> None:
        """The server stops: what cannot be recorded at the next attempt is left."""
        self._giving_up = True

    async def drained(self) -> None:
        """Wait until all is recorded, or given up."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _settle(self) -> None:
        while self._due:
            some = list(itertools.islice(self._due, TOGETHER_MAX))
            try:
                await self._commit(some)
            except (errors.LedgerUnavailable, errors.LedgerOverloaded):
                if self._giving_up:
                    break
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except Exception as failure:  # of these alone: what comes after them is due as well
                fault = None if isinstance(failure, errors.Error) else failure
                log.error("%d %s could not be recorded: %s", len(some), self._what, failure, exc_info=fault)
            for _ in some:
                self._due.popleft()
        if self._due:
            log.error("%d %s could not be recorded: the log cannot be written", len(self._due), self._what)

    async def _commit(self, some: Sequence[tuple[str, T]]) -> None:
        def apply(transaction: Transaction) -> R:
            return self._record(transaction, [one for _, one in some])

        organizations = sorted({organization for organization, _ in some})
        self._then(await self._ledger.commit(organizations, apply, late=self._then))
