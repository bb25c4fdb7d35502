"""Reads: in threads, on connections of their own, and never in the way of the writer (DESIGN section 6)."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from lading_server import errors
from lading_server.store.database import READERS_MAX

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

ANSWER_SECONDS = 1.6
"""A caller is told UNAVAILABLE after this long: below the 2 s that are promised."""
WAITING_MAX = 1_000
PROGRESS_STEPS = 50_000
"""Steps of SQLite's machine between two looks whether anybody still waits: about a millisecond."""
OUTAGES = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.TimeoutError)
DAMAGE = ("Could not decode to UTF-8", "malformed")
"""What SQLite says of it."""

# A plan that PostgreSQL keeps for all values walks the whole log for a rare one.
_SETTINGS = f"SET LOCAL statement_timeout = {int(ANSWER_SECONDS * 1000)}; SET LOCAL plan_cache_mode = force_custom_plan"


class Attempt:
    """One read in its thread, which its caller may stop waiting for."""

    __slots__ = ("abandoned",)

    def __init__(self) -> None:
        self.abandoned = False
        """Frees the thread: SQLite asks for it between its steps, PostgreSQL has its own timeout."""

    @contextlib.contextmanager
    def on(self, connection: sa.Connection) -> Iterator[None]:
        """While it runs statements on this connection."""
        if self.abandoned:
            raise errors.StoreUnavailable
        driver = connection.connection.driver_connection
        if not isinstance(driver, sqlite3.Connection):
            yield
            return
        # Not `interrupt`: it does nothing to a statement that begins a moment later, and that would never end.
        driver.set_progress_handler(lambda: self.abandoned, PROGRESS_STEPS)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)


class Reader:
    """Runs functions that take a connection first, each in a read-only transaction that sees one state."""

    def __init__(self, engine: sa.Engine) -> None:
        self._is_postgresql = engine.dialect.name == "postgresql"
        # Several statements of one read must see one state: SQLite's WAL gives that, PostgreSQL when asked.
        self._engine = (
            engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            if self._is_postgresql
            else engine
        )
        self._threads = ThreadPoolExecutor(READERS_MAX, thread_name_prefix="reader")
        self._waiting = 0

    async def read(self, fn: Callable[Concatenate[sa.Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What `fn(connection, *args, **kwargs)` returns; what it writes is undone.

        Raises StoreUnavailable when the database does not answer in time, Damaged when it cannot make sense of itself,
        Overloaded when too many wait, and whatever `fn` raises.
        """
        if self._waiting >= WAITING_MAX:
            raise errors.Overloaded("too many calls wait for the database: try again", retry_after=1.0)
        attempt = Attempt()
        self._waiting += 1
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, lambda: self._run(attempt, lambda connection: fn(connection, *args, **kwargs))
                )
        except TimeoutError:
            attempt.abandoned = True
            log.error("the database did not answer a read within %s s", ANSWER_SECONDS)
            raise errors.StoreUnavailable from None
        except asyncio.CancelledError:
            attempt.abandoned = True
            raise
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Take no more reads, and wait for those that run: they are bounded, and their connections must be closed."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, attempt: Attempt, fn: Callable[[sa.Connection], R]) -> R:
        try:
            with self._engine.connect() as connection, attempt.on(connection):
                if self._is_postgresql:
                    connection.exec_driver_sql(_SETTINGS)
                result = fn(connection)
                connection.rollback()
                return result
        except (sa.exc.DatabaseError, sa.exc.InterfaceError, sa.exc.TimeoutError) as failure:
            said = str(getattr(failure, "orig", failure)).strip()
            if any(sign in said for sign in DAMAGE):
                log.error("the database is damaged: %s", said)
                raise errors.Damaged from failure
            if not isinstance(failure, OUTAGES):
                raise
            log.error("the database does not answer: %s", said)
            raise errors.StoreUnavailable from failure
