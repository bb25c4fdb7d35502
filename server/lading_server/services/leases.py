"""Leases in the database: those of agents that were heard of late are written together, seldom.

In memory each heartbeat renews a lease. Crash order: a crash before a write leaves the older one, which ends earlier,
and that is safe.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from lading_server import errors
from lading_server.clock import Clock
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.sessions import CANARY, Session, Sessions
from lading_server.store import agents

log = logging.getLogger(__name__)

WRITE_SECONDS = 30.0
"""So often at most a lease is written while its agent is heard, and so much longer it is written."""
LOOK_SECONDS = 1.0
TOGETHER_MAX = 500
"""After an outage those of all agents are due at once, and nobody else's unit should wait for all of them."""


class Leases:
    """Of the agents of this process."""

    def __init__(self, ledger: Ledger, sessions: Sessions, clock: Clock) -> None:
        self._ledger, self._sessions, self._clock = ledger, sessions, clock

    async def keep(self) -> None:
        """For ever: every LOOK_SECONDS, write those that are due."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.write_due()
            except Exception:
                log.exception("leases are not written")

    async def write_due(self) -> None:
        """Once: units of up to TOGETHER_MAX agents, each of one organization, so that a log that cannot be written
        keeps back the leases of its own agents alone."""
        before = time.monotonic() - WRITE_SECONDS
        due: dict[str, list[Session]] = {}
        for session in self._sessions.all():
            if session.lease_written_at < min(before, session.heard_at):
                due.setdefault(session.organization, []).append(session)
        for group in due.values():
            for begin in range(0, len(group), TOGETHER_MAX):
                some = group[begin : begin + TOGETHER_MAX]
                # One that has ended while others were written is not connected any more, and that is written already.
                here = [each for each in some if self._sessions.get(each.organization, each.agent) is each]
                if here:
                    await self.write(here, connected=True)

    async def write(self, sessions: Iterable[Session], *, connected: bool) -> None:
        """Write them now; where a newer session has begun, nothing. An outage of the database is passed over."""
        kept = list(sessions)
        rows = [self._row(session, connected=connected) for session in kept]
        # They lock the heads of the logs, as sessions that begin do: while a fleet moves, two processes write rows of
        # the same agents, and must not wait for each other in a circle.
        organizations = {session.organization for session in kept}

        def apply(transaction: Transaction) -> None:
            agents.keep(transaction.connection, rows)

        at = time.monotonic()
        with contextlib.suppress(errors.Error):  # the next look finds them due again
            await self._ledger.commit(sorted(organizations), apply)
            for session in kept:
                session.lease_written_at = at

    def _row(self, session: Session, *, connected: bool) -> dict[str, Any]:
        at = self._clock()
        seen_at = at - int((time.monotonic() - session.heard_at) * 1_000_000)
        more = session.lease + (WRITE_SECONDS if connected and not session.draining else 0.0)
        # Other processes tell by it an agent that was never seen to act from one that knows no canaries.
        began = session.began_at if CANARY in session.capabilities else None
        return {
            "of": session.organization,
            "name_of": session.agent,
            "in_epoch": session.epoch,
            "seen": seen_at,
            "lease": seen_at + int(more * 1_000_000),
            "is_connected": connected,
            "acted": session.pulse.acted_at or began,
            "heard": at if session.hearing else None,
        }
