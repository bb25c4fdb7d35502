"""A ledger of its own, and ways to hold it up and to spoil its commits."""

import asyncio
import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from lading_server import signer
from lading_server.clock import Clock, new_id, now
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger import ledger as ledger_module
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.settings import Settings
from lading_server.store import database

TICK_SECONDS = 0.01
ADA = Actor(ActorType.USER, "ada")


def event(organization: str = "acme", **values: Any) -> Event:
    """An event that ended well, unless told otherwise."""
    given: dict[str, Any] = {
        "id": new_id(),
        "organization": organization,
        "operation": new_id(),
        "stage": Stage.COMPLETED,
        "occurred_at": now(),
        "actor": ADA,
        "action": "task.update",
        "outcome": Outcome.SUCCESS,
    }
    return Event(**(given | values))


@contextlib.asynccontextmanager
async def busy(ledger: Ledger) -> AsyncIterator[None]:
    """While this is open the ledger is in a batch: what is submitted meanwhile makes the next one."""
    inside, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(_transaction: Transaction) -> None:
        loop.call_soon_threadsafe(inside.set)
        assert leave.wait(30)

    waiting = asyncio.ensure_future(ledger.commit((), wait))
    await inside.wait()
    try:
        yield
    finally:
        leave.set()
        await waiting


@contextlib.contextmanager
def prompt(seconds: float) -> Iterator[None]:
    """Assert that what is done here takes less than `seconds`, not counting what this machine was late for itself."""
    late, began, over = 0.0, time.monotonic(), threading.Event()

    def tick() -> None:
        nonlocal late
        while True:
            asleep_at = time.monotonic()
            if over.wait(TICK_SECONDS):
                return
            late += time.monotonic() - asleep_at - TICK_SECONDS

    # Not in the event loop: one that is held up is what this looks for.
    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        yield
        took = time.monotonic() - began
    finally:
        over.set()
        ticking.join()
    assert took - late < seconds, f"{took:.2f} s, of which {late:.2f} s are the machine's"


class Book:
    """A ledger with its engine."""

    def __init__(self, settings: Settings, clock: Clock = now) -> None:
        self.engine = database.open_engine(settings.database_url)
        self.signer = signer.load(settings.data)
        self.ledger = Ledger(self.engine, self.signer, boot_id=new_id(), clock=clock)
        self.commits = 0
        sa.event.listen(self.engine, "commit", self._count)

    def _count(self, _connection: sa.Connection) -> None:
        self.commits += 1

    async def record(self, *events: Event) -> list[int]:
        return await self.ledger.record(events)

    async def commit(self, apply: Callable[[Transaction], Any], *organizations: str) -> Any:
        return await self.ledger.commit(organizations or ("acme",), apply)

    async def together(self, *work: Awaitable[Any]) -> list[Any]:
        """Results, or exceptions, of units that are in one batch."""
        async with busy(self.ledger):
            tasks = [asyncio.ensure_future(one) for one in work]
            await asyncio.sleep(0)  # each runs until it has handed in its unit
        return await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def book(settings: Settings, clock: Clock = now) -> AsyncIterator[Book]:
    """A ledger that runs."""
    made = Book(settings, clock)
    made.ledger.start()
    try:
        yield made
    finally:
        await made.ledger.close()
        made.engine.dispose()


class locked:
    """Holds what every writer needs, from another connection."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.database_url
        self.connection: Any = None

    def __enter__(self) -> Any:
        if self.url.startswith("sqlite"):
            self.connection = sqlite3.connect(self.url.removeprefix("sqlite:///"), isolation_level=None)
            self.connection.execute("BEGIN IMMEDIATE")
        else:
            self.connection = psycopg.connect(self.url)
            self.connection.execute("SELECT * FROM logs FOR UPDATE")
        return self.connection.rollback

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def on_commit(made: Any, what: Callable[[Callable[[], None]], None], *, number: int = 1) -> None:
    """Call `what(commit)` instead of the COMMIT of this number from now on."""
    connection = made.ledger._connect()
    commit = connection.commit
    count = itertools.count(1)

    def counted() -> None:
        (what if next(count) == number else call)(commit)

    connection.commit = counted  # type: ignore[method-assign]


def hang(leave: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """For `on_commit`: the COMMIT waits for `leave`. From then on callers are told that the database does not answer,
    until ANSWER_SECONDS is raised again."""

    def commit_late(commit: Callable[[], None]) -> None:
        monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 0.0)
        assert leave.wait(30)
        commit()

    return commit_late


def call(commit: Callable[[], None]) -> None:
    commit()
