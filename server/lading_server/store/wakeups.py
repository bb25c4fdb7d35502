"""Wake-ups between the processes of one PostgreSQL database: LISTEN and NOTIFY, without payload.

A wake-up says no more than that it is worth looking; whoever misses it looks by itself a second or two later. NOTIFY
holds a lock of the whole database while it commits, so it is in no transaction of the ledger: it is sent after the
commit, over a connection of its own, and at most once in PAUSE_SECONDS for all that happened meanwhile. A crash between
the commit and the wake-up costs that second.
"""

import asyncio
import contextlib
import logging
import math
import os
import select
import threading
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from lading_server import errors

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.01
RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 5.0
CONNECT = {
    "connect_timeout": 2,
    "application_name": "lading wake-ups",
    # So that a peer that is gone without a word is noticed.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": "-c synchronous_commit=off",
}


class Topic(StrEnum):
    """What it is worth looking at; the value is the channel."""

    COMMANDS = "lading_commands"
    """Commands wait for agents, or are to be stopped."""
    ENDS = "lading_ends"
    """Commands were settled."""
    AGENTS = "lading_agents"
    """Agents were banned, quarantined, or connected to another process."""
    ACCESS = "lading_access"
    """Roles, tokens or organizations changed."""


class Wakeups:
    """Tells other processes, and hears them. On SQLite there are none.

    `on` first, then `start`; `hear` runs as a task.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._alone = engine.dialect.name != "postgresql"
        self._handlers: dict[Topic, tuple[Callable[[], Awaitable[None]], float]] = {}
        self._heard: dict[Topic, asyncio.Event] = {topic: asyncio.Event() for topic in Topic}
        self._due: set[Topic] = set()
        self._closing = False
        self._pipe: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._run, name="wakeups", daemon=True)
        self.received = 0
        """Wake-ups that came from other processes."""

    def on(self, topic: Topic, look: Callable[[], Awaitable[None]], pause_seconds: float = PAUSE_SECONDS) -> None:
        """Call `look`, which may raise errors.Error, after wake-ups; not again for `pause_seconds`."""
        self._handlers[topic] = look, pause_seconds

    def start(self) -> None:
        """Begin to listen; call it on the event loop."""
        if not self._alone:
            self._loop = asyncio.get_running_loop()
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[0], False)
            os.set_blocking(self._pipe[1], False)
            self._thread.start()

    def send(self, topic: Topic) -> None:
        """Wake the other processes soon; call it after the commit, on the loop."""
        if self._pipe is not None and topic not in self._due:
            self._due.add(topic)
            self._stir()

    async def hear(self) -> None:
        """For ever: look when woken."""
        await asyncio.gather(*(self._attend(topic, *handler) for topic, handler in self._handlers.items()))

    async def close(self) -> None:
        """Send what is due, and end."""
        if self._pipe is not None:
            self._closing = True
            self._stir()
            await asyncio.to_thread(self._thread.join)
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    async def _attend(self, topic: Topic, look: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
        while True:
            await self._heard[topic].wait()
            self._heard[topic].clear()
            try:
                await look()
            except errors.Error as failure:
                log.info("woken for nothing: %s", failure)  # the next poll sees it
            except Exception:
                log.exception("looking after a wake-up failed")
            await asyncio.sleep(pause_seconds)

    def _stir(self) -> None:
        assert self._pipe is not None
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.write(self._pipe[1], b".")

    def _run(self) -> None:
        """The thread: connect, and again when the connection is lost."""
        import psycopg  # not at the top: a server on SQLite starts without it

        pause = RETRY_SECONDS
        while not self._closing:
            try:
                _, arguments = self._engine.dialect.create_connect_args(self._engine.url)
                with psycopg.connect(**{**arguments, **CONNECT}, autocommit=True) as connection:
                    pause = RETRY_SECONDS
                    self._serve(connection)
            except (psycopg.Error, OSError) as failure:
                if self._closing:
                    return
                log.warning("no wake-ups for now, looking every second instead: %s", " ".join(str(failure).split()))
                threading.Event().wait(pause)
                pause = min(2 * pause, RETRY_SECONDS_MAX)

    def _serve(self, connection: "psycopg.Connection[Any]") -> None:
        assert self._pipe is not None
        mine = connection.info.backend_pid
        connection.add_notify_handler(lambda note: self._wake(note.channel) if note.pid != mine else None)
        for topic in Topic:
            connection.execute(f"LISTEN {topic}".encode())
        for topic in Topic:
            self._wake(topic)  # what was said meanwhile is lost
        sent_at = 0.0
        while True:
            wait = max(0.0, sent_at + PAUSE_SECONDS - time.monotonic()) if self._due else None
            if wait != 0.0:
                wait_for_any([connection.fileno(), *([] if self._due else [self._pipe[0]])], wait)
            with contextlib.suppress(BlockingIOError):
                os.read(self._pipe[0], 4096)
            if self._due and time.monotonic() >= sent_at + PAUSE_SECONDS:
                due = [topic for topic in Topic if topic in self._due]
                self._due.difference_update(due)  # before it is sent: what happens from here on is said anew
                connection.execute("; ".join(f"NOTIFY {topic}" for topic in due).encode())
                sent_at = time.monotonic()
            if self._closing and not self._due:
                return
            connection.pgconn.consume_input()
            while note := connection.pgconn.notifies():
                if note.be_pid != mine:
                    self._wake(note.relname.decode())

    def _wake(self, channel: str) -> None:
        self.received += 1
        with contextlib.suppress(RuntimeError, ValueError):  # the loop is closed; a channel of a newer version
            self._loop.call_soon_threadsafe(self._heard[Topic(channel)].set)


def wait_for_any(files: list[int], seconds: float | None) -> None:
    """Until one of these can be read, or the time is over. (`select` takes no number above 1023, and a process that
    serves many agents has no smaller one free when it connects anew.)"""
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    poll.poll(None if seconds is None else math.ceil(seconds * 1000))
