"""Brings the bytes of an agent's Bulk stream to the call that asked for them."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

PIECES_MAX = 16
"""Pieces of at most 64 KB that wait for a reader; then the agent, and its engine, wait."""


@dataclass(slots=True, eq=False)
class Relay:
    """One log on its way: pieces, then None for the end. `stopped`: nobody reads any more."""

    organization: str
    agent: str
    parent: str
    pieces: "asyncio.Queue[Any]" = field(default_factory=lambda: asyncio.Queue(PIECES_MAX))
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


class Relays:
    """Relays by session id, from when they are asked for until their reader is gone."""

    def __init__(self) -> None:
        self._open: dict[str, Relay] = {}

    def add(self, session: str, relay: Relay) -> None:
        """Expect the agent's Bulk stream for this session."""
        self._open[session] = relay

    def attach(self, session: str, organization: str, agent: str) -> Relay | None:
        """The relay that this agent was asked to fill; None when there is none, or it is another's or taken."""
        relay = self._open.get(session)
        if relay is None or (relay.organization, relay.agent) != (organization, agent) or relay.attached.is_set():
            return None
        relay.attached.set()
        return relay

    def fail(self, organization: str, agent: str, failure: Exception) -> None:
        """The agent's session is over: tell the readers whose logs it has not opened."""
        for relay in self._open.values():
            if (relay.organization, relay.agent) == (organization, agent) and not relay.attached.is_set():
                relay.pieces.put_nowait(failure)
                relay.attached.set()

    def remove(self, session: str) -> None:
        """The reader is gone."""
        relay = self._open.pop(session, None)
        if relay is not None:
            relay.stopped.set()
