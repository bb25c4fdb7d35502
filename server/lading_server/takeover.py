"""Ends the sessions of this process whose agents are another's by now, or may not connect any more."""

import asyncio
import logging

from lading_server import errors
from lading_server.sessions import Sessions
from lading_server.store import agents
from lading_server.store.reader import Reader

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""What another process did to an agent is seen here after this long at the latest."""
READS_PER_SECOND = 2_500
"""Agents that wake-ups have read."""


class Takeover:
    """Compares the sessions in memory with those in the database, which are the truth."""

    def __init__(self, reader: Reader, sessions: Sessions, boot_id: str) -> None:
        self._reader, self._sessions, self._boot_id = reader, sessions, boot_id

    async def keep(self) -> None:
        """Until cancelled: look every LOOK_SECONDS, woken or not."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except errors.Error as failure:
                log.warning("cannot look for agents that went elsewhere: %s", failure)

    async def hear(self) -> None:
        """After a wake-up: look, and leave some time until the next look, for each reads all agents of this process,
        and while a fleet moves there is a wake-up for every agent. Raises StoreUnavailable."""
        await self.look()
        await asyncio.sleep(len(self._sessions.all()) / READS_PER_SECOND)

    async def look(self) -> None:
        """Once. Raises StoreUnavailable."""
        mine = self._sessions.all()  # before the read: a session that begins meanwhile is not judged by it
        if not mine:
            return
        held = {(row.organization, row.agent): row for row in await self._reader.read(agents.list_held, self._boot_id)}
        for session in mine:
            row = held.get((session.organization, session.agent))
            if row is None or row.epoch > session.epoch:
                session.end(errors.Superseded())
            elif row.banned:
                session.end(errors.PermissionDenied(f"agent {session.agent} is banned"))
            elif row.quarantined:
                session.end(errors.AgentCloned())
