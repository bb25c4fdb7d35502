"""Relays for those who read: a log is asked for, and the agent of an exec session comes by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from lading.v1 import agent_link_pb2
from lading_server import errors
from lading_server.call import Call
from lading_server.relay import Relay, Relays
from lading_server.services.neighbours import Neighbours
from lading_server.sessions import Sessions

ATTACH_SECONDS = 10.0


class Openings:
    """Opens relays to agents, and closes them when their reader is gone."""

    def __init__(self, sessions: Sessions, relays: Relays, neighbours: Neighbours) -> None:
        self._sessions, self._relays, self._neighbours = sessions, relays, neighbours

    @asynccontextmanager
    async def log(self, call: Call, agent: str, ask: agent_link_pb2.OpenBulk) -> AsyncIterator[Relay]:
        """A log, which its agent has begun to send. Raises AgentOffline.

        Its session is called like the operation that reads it: by that any process finds where the reader is.
        """
        async with self.session(call, agent, ask.session) as relay:
            session = self._sessions.get(call.organization, agent)
            if session is None:
                await self._neighbours.open_log(call.organization, agent, ask)
            else:
                await session.post(agent_link_pb2.ConnectResponse(open_bulk=ask))
            try:
                async with asyncio.timeout(ATTACH_SECONDS):
                    await relay.attached.wait()
            except TimeoutError:
                raise errors.AgentOffline(f"agent {agent} did not open the log in {ATTACH_SECONDS:.0f} s") from None
            yield relay

    @asynccontextmanager
    async def session(self, call: Call, agent: str, id: str) -> AsyncIterator[Relay]:
        """The relay of a session that this agent will open by itself, for it is a command that it gets."""
        relay = Relay(call.organization, agent, call.operation)
        self._relays.add(id, relay)
        try:
            yield relay
        finally:
            self._relays.remove(id)


def piece_of(piece: Any) -> dict[str, Any]:
    """What an agent sent, as a reader gets it: the fields of StreamContainerLogsResponse."""
    return {"data": piece.data, "source": piece.source, "offset": piece.offset, "position": piece.position[:256]}
