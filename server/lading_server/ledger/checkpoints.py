"""Checkpoints of logs that nobody asks for: the more of a log was signed, the less of it can go back unnoticed."""

import asyncio
import logging
from functools import partial

from lading_server import errors
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Proof, Sight, Transaction

log = logging.getLogger(__name__)

PAUSE_SECONDS = 10.0
SIGNED_MAX = 100
"""Logs that are signed at a time: each costs the ledger two files that come to disk."""


class Checkpoints:
    """Has the logs signed that grew."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._grown: dict[str, None] = {}
        ledger.on_commit(self._note)

    async def keep(self) -> None:
        """Every PAUSE_SECONDS, until cancelled; those first that wait the longest."""
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            await self.sign()

    async def sign(self) -> None:
        """Have at most SIGNED_MAX of them signed now."""
        for organization in list(self._grown)[:SIGNED_MAX]:
            del self._grown[organization]
            try:
                await self._ledger.commit((organization,), partial(show, organization))
            except errors.Error as failure:
                log.warning("the log of %s is not signed: %s", organization, failure)

    def _note(self, sizes: dict[str, int]) -> None:
        for organization in sizes:
            self._grown.setdefault(organization)


def show(organization: str, transaction: Transaction) -> Proof:
    """As a unit of the ledger: the log as it is, for nobody."""
    return transaction.prove_again(organization, -1, Sight())
