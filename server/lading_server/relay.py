"""Brings bytes between an agent's Bulk stream and the call that reads them: a log, or an exec session both ways.

A relay outlives the stream that fills it: an agent whose stream broke opens another one, says where it goes on, and
what came twice is left out. What goes to the agent is kept until it says that it has it. Who fills a relay need not be
the agent itself: `services/bulk.py` fills one from any stream of the same messages, as another process of the server
has.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from lading_server import errors

PIECES_MAX = 16
"""Pieces of at most 64 KB that wait for a reader; then the agent, and its engine, wait."""
INPUT_BYTES_MAX = 256 * 1024
"""Bytes for the agent that it has not taken; then the caller waits."""
INPUT_PIECE_BYTES = 4 * 1024
"""What is typed is put together up to this."""
REOPEN_SECONDS = 15.0
"""An agent whose stream broke gets so long to open another one."""


@dataclass(slots=True, eq=False)
class Relay:
    """One session on its way: `take` and `give` are for its reader, the rest for what fills it.

    `parent`: operation of the call that reads it. `attached`: its agent has opened it. `stopped`: nobody reads any
    more. `received`: bytes of it that are here. `news`: there is something to tell the agent.
    """

    organization: str
    agent: str
    parent: str
    pieces: "asyncio.Queue[Any]" = field(default_factory=lambda: asyncio.Queue(PIECES_MAX))
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    received: int = 0
    size: Any = None
    input_ended: bool = False
    stream: int = 0
    """Number of the stream that fills it; older ones are passed over."""
    _failure: errors.Error | None = None
    _input: "deque[bytes]" = field(default_factory=deque)
    _input_taken: int = 0
    _input_given: int = 0
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _come: asyncio.Event = field(default_factory=asyncio.Event)
    _read: asyncio.Event = field(default_factory=asyncio.Event)
    _giving_up: asyncio.TimerHandle | None = None

    # For its reader

    async def take(self) -> Any:
        """The next piece, or None at the end; cancelled, it takes none. Raises CommandFailed or AgentOffline for an end
        that is no good."""
        while self.pieces.empty() and not self.over.is_set():
            self._come.clear()
            await first_of(self._come.wait(), self.over.wait())
        if not self.pieces.empty():
            self._read.set()
            return self.pieces.get_nowait()
        if self._failure is not None:
            raise self._failure
        return None

    async def give(self, data: bytes) -> None:
        """Bytes for the agent; waits while it takes none."""
        while self._input_given - self._input_taken >= INPUT_BYTES_MAX and not self.over.is_set():
            self._room.clear()
            await first_of(self._room.wait(), self.over.wait())
        if self._input and len(self._input[-1]) + len(data) <= INPUT_PIECE_BYTES:
            self._input[-1] += data
        else:
            self._input.append(data)
        self._input_given += len(data)
        self.news.set()

    def end_input(self) -> None:
        """No more bytes for the agent."""
        self.input_ended = True
        self.news.set()

    def resize(self, size: Any) -> None:
        """The reader's terminal has this size now."""
        self.size = size
        self.news.set()

    # For what fills it

    def attach(self) -> int:
        """Number of a new stream that goes on with it, also in the place of one whose connection is dead unnoticed."""
        self.stream += 1
        if self._giving_up is not None:
            self._giving_up.cancel()
        self.attached.set()
        return self.stream

    def detach(self, stream: int) -> None:
        """That stream is over; unless all is said, the agent is expected back."""
        if stream == self.stream and not self.over.is_set() and not self.stopped.is_set():
            gone = errors.AgentOffline(f"agent {self.agent} went away while its bytes came")
            self._giving_up = asyncio.get_running_loop().call_later(REOPEN_SECONDS, self.finish, gone)

    async def put(self, stream: int, piece: Any, count: int) -> None:
        """A piece with so many new bytes; waits while the reader does not read."""
        while self.pieces.full() and not self.stopped.is_set():
            self._read.clear()
            await first_of(self._read.wait(), self.stopped.wait())
        if not self.stopped.is_set() and stream == self.stream:
            # Both or neither: a stream that breaks here must not bring it once more.
            self.pieces.put_nowait(piece)
            self.received += count
            self._come.set()
            self.news.set()

    def input_after(self, position: int) -> list[bytes]:
        """What the agent was not sent of its bytes, on a stream that has brought it those before `position`."""
        begin, found = self._input_taken, []
        for data in self._input:
            if begin + len(data) > position:
                found.append(data[max(0, position - begin) :])
            begin += len(data)
        return found

    def input_taken(self, position: int) -> None:
        """The agent has its bytes before `position`."""
        while self._input and self._input_taken + len(self._input[0]) <= position:
            self._input_taken += len(self._input.popleft())
            self._room.set()

    def finish(self, failure: errors.Error | None) -> None:
        """Nothing more comes. What waits for the reader is read all the same."""
        if not self.over.is_set():
            self._failure = failure
            self.over.set()
            self.attached.set()


class Relays:
    """Relays by session id, from when they are asked for until their reader is gone."""

    def __init__(self) -> None:
        self._open: dict[str, Relay] = {}

    def add(self, session: str, relay: Relay) -> None:
        """Expect the agent's Bulk stream for this session."""
        self._open[session] = relay

    def find(self, session: str, organization: str, agent: str) -> Relay | None:
        """The relay that this agent was asked to fill; None when there is none, or it is another's, or over."""
        relay = self._open.get(session)
        if relay is None or (relay.organization, relay.agent) != (organization, agent) or relay.over.is_set():
            return None
        return relay

    def fail(self, organization: str, agent: str, failure: errors.Error) -> None:
        """The agent's session is over: tell the readers whose bytes it has not begun to send."""
        for relay in self._open.values():
            if (relay.organization, relay.agent) == (organization, agent) and not relay.attached.is_set():
                relay.finish(failure)

    def remove(self, session: str) -> None:
        """The reader is gone."""
        relay = self._open.pop(session, None)
        if relay is not None:
            relay.stopped.set()
            relay.news.set()
            if relay._giving_up is not None:
                relay._giving_up.cancel()


async def first_of(*waits: Any) -> int:
    """Number of the one that is done first; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return min(number for number, task in enumerate(tasks) if task in done)
    finally:
        for task in tasks:
            task.cancel()
