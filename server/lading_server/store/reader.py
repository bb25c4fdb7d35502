"""Reads: in threads, on connections of their own, and never in the way of the writer (DESIGN section 6)."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from lading_server import errors
from lading_server.store.database import READERS_MAX

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

ANSWER_SECONDS = 1.8
"""A caller is told UNAVAILABLE after this long: below the 2 s that are promised."""
WAITING_MAX = 1_000

# A plan that PostgreSQL keeps for all values walks the whole log for a rare one.
_SETTINGS = f"SET LOCAL statement_timeout = {int(ANSWER_SECONDS * 1000)}; SET LOCAL plan_cache_mode = force_custom_plan"


class Attempt:
    """One read in its thread, which its caller may stop waiting for."""

    __slots__ = ("_abandoned", "_driver", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._driver: Any = None
        self._abandoned = False

    @contextlib.contextmanager
    def on(self, connection: sa.Connection) -> Iterator[None]:
        """While it runs statements on this connection."""
        with self._lock:
            if self._abandoned:
                raise errors.StoreUnavailable
            self._driver = connection.connection.driver_connection
        try:
            yield
        finally:
            with self._lock:
                self._driver = None

    def abandon(self) -> None:
        """Free the thread: SQLite is interrupted here, PostgreSQL has its own timeout."""
        with self._lock:
            self._abandoned = True
            if hasattr(self._driver, "interrupt"):
                self._driver.interrupt()


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

        Raises StoreUnavailable when the database does not answer in time, Overloaded when too many wait, and whatever
        `fn` raises.
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
            attempt.abandon()
            log.error("the database did not answer a read within %s s", ANSWER_SECONDS)
            raise errors.StoreUnavailable from None
        except asyncio.CancelledError:
            attempt.abandon()
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
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.TimeoutError) as failure:
            log.error("the database does not answer: %s", str(getattr(failure, "orig", failure)).strip())
            raise errors.StoreUnavailable from failure
