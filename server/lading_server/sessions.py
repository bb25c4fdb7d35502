"""The agents that are connected to this process."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from lading.transparency import note
from lading_server import errors
from lading_server.allowance import Allowance
from lading_server.ledger.transaction import Sight

HEARTBEAT_SECONDS = 15.0
HEARTBEATS_PER_SECOND = 300.0
"""Most that one process sees: with more agents each sends fewer."""
CANARIES_PER_SECOND = 100.0
"""Most that one process sends: with more agents each gets fewer, down to one in CANARY_SECONDS_MAX."""
CANARY_SECONDS_MAX = 60.0
LEASE_BEATS = 3
"""Heartbeats that may fail to come before an agent counts as lost."""
WINDOW = 64
"""Most commands that an agent has without a result."""


CANARY = "canary"
SIGNED_RESULTS = "signed-results"
ACK_RECEIPTS = "ack-receipts"
"""What agents say in Hello that they can do."""


@dataclass(slots=True)
class Pulse:
    """Whether an agent processes what it is sent, and whether its executor moves. Times as `time.monotonic`."""

    acked: int = 0
    canary: str = ""
    """Nonce of the one that is out."""
    canary_at: float = field(default_factory=time.monotonic)
    """When it was sent, or the last one came back."""
    acted_at: int | None = None
    """When the last one came back, microseconds since the epoch."""
    _mark: tuple[int, float] | None = None

    def sent(self, seq: int) -> None:
        """A frame with this number leaves."""
        if self._mark is None:
            self._mark = (seq, time.monotonic())

    def heard(self, ack: int, newest: int) -> None:
        """A frame came that says what the agent has processed; `newest`: number of the last frame that left."""
        self.acked = max(self.acked, min(ack, newest))
        if self._mark is not None and self.acked >= self._mark[0]:
            self._mark = None if self.acked >= newest else (newest, time.monotonic())

    def hearing(self, within: float) -> bool:
        return self._mark is None or time.monotonic() - self._mark[1] <= within

    def acting(self, within: float) -> bool:
        return not self.canary or time.monotonic() - self.canary_at <= within

    def echo(self, nonce: str, at: int) -> bool:
        """A canary came back; whether it is the one that is out."""
        if not nonce or nonce != self.canary:
            return False
        self.canary, self.canary_at, self.acted_at = "", time.monotonic(), at
        return True


def heartbeat_of(agents: int) -> float:
    """Seconds between two heartbeats of one agent, for a process that serves so many."""
    return max(HEARTBEAT_SECONDS, agents / HEARTBEATS_PER_SECOND)


def canary_of(agents: int) -> float:
    """Seconds between two canaries of one agent, unless its heartbeats are further apart."""
    return min(CANARY_SECONDS_MAX, agents / CANARIES_PER_SECOND)


@dataclass(slots=True, eq=False)
class Session:
    """One life of an agent's Connect stream.

    `send` writes a frame's content with the next sequence number; `credit` is what is left of the window; `backlog`
    says that commands wait in the database, `queued` how many are being put there, and `flushing` that they are being
    sent, so that newer ones must not overtake them; `growing` that it is being shown the log alone. `sight` is the tree
    of the log that the agent was shown last, `turn` the number of the proof that is next, and `turns` those that wait
    for theirs. `resent`: commands that were sent a second time; `cancelled`: those that it was asked to stop, with
    whether it had acknowledged them then.
    `heartbeat` and `lease` in seconds. `boot` and `journal` as in Hello. `began_at`: microseconds since the epoch.
    `ends_at`: when it is drained for its age, as `time.monotonic`. `probes`: canaries that somebody waits for, by
    nonce. `allowance`: of what it may put into the log of its own accord.
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
    growing: bool = False
    sight: Sight = field(default_factory=Sight)
    turn: int = 0
    witness_key: note.Key | None = None
    resent: set[str] = field(default_factory=set)
    cancelled: dict[str, bool] = field(default_factory=dict)
    heartbeat: float = HEARTBEAT_SECONDS
    lease: float = LEASE_BEATS * HEARTBEAT_SECONDS
    boot: str = ""
    journal: str = ""
    capabilities: frozenset[str] = frozenset()
    began_at: int = 0
    ends_at: float = math.inf
    draining: bool = False
    pulse: Pulse = field(default_factory=Pulse)
    allowance: Allowance = field(default_factory=Allowance)
    probes: dict[str, asyncio.Event] = field(default_factory=dict)
    heard_at: float = field(default_factory=time.monotonic)
    sent: int = 0
    received: int = 0
    failure: errors.Error | None = None
    closed: bool = False
    inventory_version: int = 0
    lease_written_at: float = field(default_factory=time.monotonic)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    turns: "dict[int, asyncio.Future[None]]" = field(default_factory=dict)
    posted: "set[asyncio.Task[None]]" = field(default_factory=set)

    async def send(self, frame: Any) -> None:
        """Number a frame and write it; waits while the agent does not read. Raises AgentOffline."""
        async with self.writing:
            self.sent += 1
            frame.epoch, frame.seq, frame.ack = self.epoch, self.sent, self.received
            self.pulse.sent(self.sent)
            try:
                await self.write(frame)
            except errors.CallerGone as failure:
                raise errors.AgentOffline(f"agent {self.agent} went away") from failure

    async def post(self, frame: Any) -> None:
        """As `send`, for who may stop waiting for it: a frame that is cut off on its way would leave its number out,
        and the agent would take the session for broken. Raises AgentOffline."""
        sending = asyncio.get_running_loop().create_task(self.send(frame))
        self.posted.add(sending)
        sending.add_done_callback(self._forget)
        await asyncio.shield(sending)

    def _forget(self, sending: "asyncio.Task[None]") -> None:
        self.posted.discard(sending)
        if not sending.cancelled():
            sending.exception()  # nobody may wait for it any more

    async def show(self, frame: Any, turn: int) -> None:
        """Send a frame with a proof when its turn comes, for each goes on from the tree of the one before; None passes
        the turn on. Raises AgentOffline."""
        if self.turn < turn:
            if self.closed:
                raise errors.AgentOffline(f"agent {self.agent} went away")
            self.turns[turn] = asyncio.get_running_loop().create_future()
            await self.turns[turn]
        try:
            if frame is not None:
                await self.send(frame)
        finally:
            self.turn = turn + 1
            following = self.turns.pop(self.turn, None)
            if following is not None and not following.done():
                following.set_result(None)

    def close(self) -> None:
        """The stream is over: nobody waits any more for a turn, which may never come."""
        self.closed = True
        for waiting in self.turns.values():
            if not waiting.done():
                waiting.set_exception(errors.AgentOffline(f"agent {self.agent} went away"))
        self.turns.clear()

    def end(self, failure: errors.Error) -> None:
        """End the session: its stream answers with `failure`, unless it is over already."""
        if self.failure is None and not self.closed:
            self.failure = failure
            self.task.cancel()

    @property
    def open(self) -> bool:
        """A new command may go straight to the stream."""
        return self.credit > 0 and not (self.backlog or self.queued or self.flushing or self.draining)

    @property
    def alive(self) -> bool:
        """It was heard within its lease, whatever the clock says that the database has the lease's end by."""
        return time.monotonic() - self.heard_at <= self.lease

    @property
    def stale(self) -> bool:
        """No heartbeat for longer than two intervals."""
        return time.monotonic() - self.heard_at > 2 * self.heartbeat

    @property
    def hearing(self) -> bool:
        """It has processed what was sent more than two intervals ago."""
        return self.pulse.hearing(2 * self.heartbeat)

    @property
    def acting(self) -> bool:
        """The newest canary came back through its executor, or has not been out for two intervals. True also of an
        agent that knows no canaries: of it nothing is known."""
        return CANARY not in self.capabilities or self.pulse.acting(2 * self.heartbeat)


class Sessions:
    """Sessions by organization and agent; at most one each."""

    def __init__(self) -> None:
        self._by_agent: dict[tuple[str, str], Session] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.expected = 0
        """Agents that may come soon, from what was here before."""

    def heartbeat(self) -> float:
        """Seconds between two heartbeats for an agent that connects now."""
        return heartbeat_of(max(len(self._by_agent) + 1, self.expected))

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

    def notify_all(self) -> None:
        """Something may have changed anywhere."""
        for organization in list(self._watchers):
            self.notify(organization)
