"""What agents signed of the trees that they were shown: the newest of each agent, brought to disk together.

Crash order: those of the last WRITE_SECONDS are lost with the process, and nothing with them: a cosignature is evidence
for readers of the log, no state of ours, and the agent signs again when the log has grown.
"""

import asyncio
import logging
from typing import Any

from lading.transparency import note
from lading.v1 import agent_link_pb2
from lading_server import errors
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.sessions import Session
from lading_server.signer import Signer
from lading_server.store import tiles

log = logging.getLogger(__name__)

WRITE_SECONDS = 1.0
SECONDS_MAX = 2**63 // 1_000_000
"""No time after this has a place in the database: one row that has none spoils those of all others."""


class Cosignatures:
    """Checks those that come, and writes the newest ones: one unit of the ledger for all."""

    def __init__(self, ledger: Ledger, signer: Signer) -> None:
        self._ledger, self._signer = ledger, signer
        self._waiting: dict[tuple[str, str], dict[str, Any]] = {}

    def take(self, session: Session, found: agent_link_pb2.WitnessSignature) -> None:
        """Keep what the agent signed, if it is of a tree of this log and by its key; else it is passed over."""
        if session.witness_key is None:
            return
        origin = self._signer.key(session.organization).name
        try:
            text = note.Checkpoint(origin, found.size, found.root).text()
            ((_, at),) = note.verify_note(note.parse_note(f"{text}\n{found.signature}"), [session.witness_key])
        except note.InvalidNote as failure:
            log.warning("a cosignature of agent %s does not hold: %s", session.agent, failure)
            return
        if found.size < 0 or at >= SECONDS_MAX:
            log.warning("a cosignature of agent %s says size %d, time %d", session.agent, found.size, at)
            return
        self._waiting[session.organization, session.agent] = {
            "organization": session.organization,
            "agent": session.agent,
            "witness_key": str(session.witness_key),
            "size": found.size,
            "root": found.root,
            "signature": found.signature,
            "signed_at": at * 1_000_000,
        }

    async def keep(self) -> None:
        """Every WRITE_SECONDS, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            try:
                await self.write()
            except Exception:
                log.exception("cosignatures are not kept")

    async def write(self) -> None:
        """Bring those that wait to disk; what cannot be written waits on, unless a newer one has come."""
        if not self._waiting:
            return
        writing, self._waiting = self._waiting, {}
        # In one order: two processes that write the same agents' never wait for each other in a circle.
        rows = [writing[key] for key in sorted(writing)]

        def apply(transaction: Transaction) -> None:
            tiles.put_cosignatures(transaction.connection, rows)

        try:
            await self._ledger.commit((), apply)
        except errors.LedgerUnavailable:
            self._waiting = {**writing, **self._waiting}
        except errors.Error as failure:
            log.warning("%d cosignatures are not kept: %s", len(rows), failure)
