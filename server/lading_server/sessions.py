"""The agents that are connected to this process."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from lading.transparency import note
from lading_server import errors
from lading_server.ledger.transaction import Sight

HEARTBEAT_SECONDS = 15.0
LEASE_SECONDS = 3 * HEARTBEAT_SECONDS
WINDOW = 64
"""Most commands that an agent has without a result."""


@dataclass(slots=True, eq=False)
class Session:
    """One life of an agent's Connect stream.

    `send` writes a frame's content with the next sequence number; `credit` is what is left of the window; `backlog`
    says that commands wait in the database, `queued` how many are being put there, and `flushing` that they are being
    sent, so that newer ones must not overtake them. `sight` is the tree of the log that the agent was shown last, and
    `turn` the number of the proof that is next. `resent`: commands that were sent a second time.
    """

    organization: str
    agent: str
    epoch: int
    write: Callable[[Any], Awaitable[None]]
    task: "asyncio.Task[Any]"
    credit: int = WINDOW
    backlog: bool = True
    queued: int = 0
    flushing: bool = False
    sight: Sight = field(default_factory=Sight)
    turn: int = 0
    witness_key: note.Key | None = None
    resent: set[str] = field(default_factory=set)
    draining: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    sent: int = 0
    received: int = 0
    failure: errors.Error | None = None
    inventory_version: int = 0
    lease_written_at: float = field(default_factory=time.monotonic)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    turns: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def send(self, frame: Any) -> None:
        """Number a frame and write it; waits while the agent does not read. Raises AgentOffline."""
        async with self.writing:
            self.sent += 1
            frame.epoch, frame.seq, frame.ack = self.epoch, self.sent, self.received
            try:
                await self.write(frame)
            except errors.CallerGone as failure:
                raise errors.AgentOffline(f"agent {self.agent} went away") from failure

    async def show(self, frame: Any, turn: int) -> None:
        """Send a frame with a proof when its turn comes, for each goes on from the tree of the one before; None passes
        the turn on."""
        async with self.turns:
            await self.turns.wait_for(lambda: self.turn >= turn)
            try:
                if frame is not None:
                    await self.send(frame)
            finally:
                self.turn = turn + 1
                self.turns.notify_all()

    def end(self, failure: errors.Error) -> None:
        """End the session: its stream answers with `failure`."""
        if self.failure is None:
            self.failure = failure
            self.task.cancel()

    @property
    def open(self) -> bool:
        """A new command may go straight to the stream."""
        return self.credit > 0 and not (self.backlog or self.queued or self.flushing or self.draining)

    @property
    def stale(self) -> bool:
        """No heartbeat for longer than two intervals."""
        return time.monotonic() - self.heard_at > 2 * HEARTBEAT_SECONDS


class Sessions:
    """Sessions by organization and agent; at most one each."""

    def __init__(self) -> None:
        self._by_agent: dict[tuple[str, str], Session] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}

    def get(self, organization: str, agent: str) -> Session | None:
        """The agent's session in this process."""
        return self._by_agent.get((organization, agent))

    def all(self) -> list[Session]:
        """Every session of this process."""
        return list(self._by_agent.values())

    def add(self, session: Session) -> None:
        """Make it the agent's session; one that is there is ended, for the newer one has the higher epoch."""
        key = (session.organization, session.agent)
        older = self._by_agent.get(key)
        self._by_agent[key] = session
        if older is not None:
            older.end(errors.Superseded())
        self.notify(session.organization)

    def remove(self, session: Session) -> None:
        """Forget it, unless a newer one has its place."""
        key = (session.organization, session.agent)
        if self._by_agent.get(key) is session:
            del self._by_agent[key]
            self.notify(session.organization)

    def watch(self, organization: str) -> asyncio.Event:
        """An event that is set whenever something about the organization's agents changes; give it to `unwatch`."""
        event = asyncio.Event()
        self._watchers.setdefault(organization, set()).add(event)
        return event

    def unwatch(self, organization: str, event: asyncio.Event) -> None:
        """Stop setting it."""
        watchers = self._watchers.get(organization, set())
        watchers.discard(event)
        if not watchers:
            self._watchers.pop(organization, None)

    def notify(self, organization: str) -> None:
        """Something about the organization's agents changed."""
        for event in self._watchers.get(organization, ()):
            event.set()
