"""The only writer: one thread, one connection, group commit (DESIGN section 6).

Crash order: whatever dies before COMMIT has left nothing and was answered to nobody; whatever dies after it has left
state and events together, and its callers were not answered yet. There is no third case.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from lading_server import errors
from lading_server.clock import Clock, now
from lading_server.event import Event
from lading_server.ledger import rows
from lading_server.ledger.transaction import Head, Transaction
from lading_server.ledger.trees import Trees
from lading_server.signer import RolledBack, Signer
from lading_server.store import tiles
from lading_server.tree import Growth

log = logging.getLogger(__name__)
R = TypeVar("R")

QUEUE_MAX = 20_000
BATCH_MAX = 1_000
BATCH_SECONDS = 0.2
"""A transaction takes no more units after this long, however many wait: nobody waits for all of a storm."""
LINGER_SECONDS = 0.015
"""A transaction costs 0.3 ms of CPU and its way to disk, however few are in it: under load, callers that are waited for
so long have their answers sooner."""
LINGER_STEP_SECONDS = 0.001
"""It ends with the first step in which nobody came."""
LINGER_FROM = 2
"""So many waiting, now or in the last batch, mean load: then it pays to wait while company keeps coming."""
ANSWER_SECONDS = 1.6
"""Callers are told UNAVAILABLE when the database has not answered for this long: below the 2 s that are promised."""
BUSY_FROM = 16
"""A batch of so many units means that many are asking for much: what can be said together is, then."""
CAREFUL_BATCHES = 100
"""So many batches after one with a unit that failed, each unit has a savepoint: they cost PostgreSQL two round trips
each, and without them a batch with a failure is done twice."""
WATCH_SECONDS = 0.05
"""How often that is looked at: one timer for all costs less than one for each."""


@dataclass(slots=True, eq=False)
class Unit(Generic[R]):
    """Statements and events that commit together or not at all.

    `withdrawn`: its caller was told UNAVAILABLE, so nothing must happen. One whose caller went away (`answer` is
    cancelled) is not withdrawn: what was asked for is recorded all the same, and `gone` is told how it failed, or None.
    """

    organizations: tuple[str, ...]
    apply: Callable[[Transaction], R]
    answer: "asyncio.Future[R]"
    changes_state: bool
    late: Callable[[R], None] | None
    gone: Callable[[Exception | None], None] | None
    withdrawn: bool = False


Answer = tuple[Unit[Any], Any, Exception | None]


@dataclass(frozen=True, slots=True)
class Doubt:
    """A batch of which it is not known whether it was committed: it was if its first row is there."""

    transaction: Transaction
    heads: dict[str, Head]
    growths: dict[str, Growth]
    answers: list[Answer]
    sizes: dict[str, int]


def is_outage(failure: Exception) -> bool:
    """Whether the database failed, rather than a statement: gone, locked, full, stopping."""
    if isinstance(failure, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.InternalError):
        return True
    return isinstance(failure, sa.exc.TimeoutError) or getattr(failure, "connection_invalidated", False)


class Ledger:
    """Takes units from the event loop, commits them in groups, and answers on the loop."""

    def __init__(
        self, engine: sa.Engine, signer: Signer, *, boot_id: str, cache: tiles.Cache | None = None, clock: Clock = now
    ) -> None:
        self.boot_id = boot_id
        self._engine = engine
        self._clock = clock
        self._writer = rows.Writer(engine.dialect.name)
        self._trees = Trees(signer, cache or tiles.Cache())
        self._waiting: deque[Unit[Any]] = deque()
        self._batch: list[Unit[Any]] = []
        self._watching = False
        self._wake = threading.Condition()
        self._idle = False
        self._closing = False
        self.sequences: dict[str, int] = {}
        """By log, the number of the last event that this process wrote into it."""
        self._connection: sa.Connection | None = None
        self._doubt: Doubt | None = None
        self._batch_began: float | None = None
        self._last_size = 0
        self._careful = 0
        self._listeners: list[Callable[[dict[str, int]], None]] = []
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to take units; call it on the event loop that will await them."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def on_commit(self, listener: Callable[[dict[str, int]], None]) -> None:
        """Call `listener`, on the loop, after each commit, with the new size of each log that grew."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """Commit what waits, then end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def record(
        self,
        events: Sequence[Event],
        late: Callable[[list[int]], None] | None = None,
        gone: Callable[[Exception | None], None] | None = None,
    ) -> Awaitable[list[int]]:
        """Commit events; returns their indexes. `late`, `gone`: as in `commit`. Raises LedgerUnavailable,
        LedgerOverloaded."""
        organizations = (
            (events[0].organization,) if len(events) == 1 else tuple(sorted({event.organization for event in events}))
        )
        return self._submit(
            organizations, lambda transaction: [transaction.append(event) for event in events], False, late, gone
        )

    def commit(
        self,
        organizations: Iterable[str],
        apply: Callable[[Transaction], R],
        *,
        late: Callable[[R], None] | None = None,
        gone: Callable[[Exception | None], None] | None = None,
    ) -> "asyncio.Future[R]":
        """Run `apply` in a transaction that holds the heads of the logs of `organizations` (those it appends to).

        Returns what `apply` returns, once it is on disk. An exception of `apply` undoes that unit alone and is raised
        here. Raises LedgerUnavailable when the database does not answer in time (then it may still commit: what the
        unit wrote and what it recorded agree either way, and `late` is called with the result), LedgerOverloaded when
        too many wait. Where who waits goes away first, so that this is cancelled, `gone` is told what became of it.
        """
        return self._submit(tuple(organizations), apply, True, late, gone)

    def _submit(
        self,
        organizations: tuple[str, ...],
        apply: Callable[[Transaction], R],
        changes: bool,
        late: Callable[[R], None] | None,
        gone: Callable[[Exception | None], None] | None,
    ) -> "asyncio.Future[R]":
        assert self._loop is not None, "start() comes first"
        if self._closing:
            raise errors.Stopping
        if self._stalled:
            raise errors.LedgerUnavailable
        if len(self._waiting) >= QUEUE_MAX:
            raise errors.LedgerOverloaded(retry_after=1.0)
        answer: asyncio.Future[R] = self._loop.create_future()
        unit = Unit(organizations, apply, answer, changes, late, gone)
        self._waiting.append(unit)
        if self._idle:
            with self._wake:
                self._wake.notify()
        if not self._watching:
            self._watching = True
            self._loop.call_later(WATCH_SECONDS, self._watch)
        return answer

    @property
    def busy(self) -> bool:
        """The last batch was a large one."""
        return self._last_size >= BUSY_FROM

    @property
    def _stalled(self) -> bool:
        """The database has not answered for too long. While it answers, a long queue only takes longer."""
        began = self._batch_began
        return began is not None and time.monotonic() - began > ANSWER_SECONDS

    def _watch(self) -> None:
        """Tell all that wait for a database that does not answer; runs while anybody waits."""
        assert self._loop is not None
        if self._stalled:
            for unit in (*self._batch, *self._waiting):
                if not unit.answer.done():
                    unit.withdrawn = True
                    unit.answer.set_exception(errors.LedgerUnavailable())
        self._watching = bool(self._waiting) or not self._idle
        if self._watching:
            self._loop.call_later(WATCH_SECONDS, self._watch)

    def _run(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                break
            self._batch, self._batch_began = batch, time.monotonic()
            try:
                self._commit_batch(batch)
            except Exception:
                log.exception("the ledger's batch failed")
                self._answer([(unit, None, errors.LedgerUnavailable()) for unit in batch], {})
            finally:
                self._batch_began = None
        if self._connection is not None:
            self._connection.close()

    def _take(self) -> list[Unit[Any]]:
        while True:
            with self._wake:
                self._idle = True  # before the look at what waits: who comes after that look sees it, and wakes us
                while not self._waiting:
                    if self._closing:
                        return []
                    self._wake.wait()
                self._idle = False
            if max(len(self._waiting), self._last_size) >= LINGER_FROM:
                until, before = time.monotonic() + LINGER_SECONDS, 0
                while before < len(self._waiting) < BATCH_MAX and time.monotonic() < until:
                    before = len(self._waiting)
                    time.sleep(LINGER_STEP_SECONDS)
            batch: list[Unit[Any]] = []
            while self._waiting and len(batch) < BATCH_MAX:
                unit = self._waiting.popleft()
                if not unit.withdrawn:
                    batch.append(unit)
            self._last_size = len(batch)
            if batch:
                return batch

    def _commit_batch(self, batch: list[Unit[Any]]) -> None:
        while batch:
            try:
                done = self._attempt(batch)
            except RolledBack as failure:
                self._rollback()
                log.error("%s", failure)
                refused = [unit for unit in batch if failure.organization in unit.organizations]
                self._answer([(unit, None, failure) for unit in refused], {})
                batch = [unit for unit in batch if failure.organization not in unit.organizations]
                continue
            except Exception as failure:
                self._rollback()
                said = str(getattr(failure, "orig", failure)).strip()
                if is_outage(failure):
                    log.error("the database does not answer: %s", said)
                    self._disconnect()
                    self._answer([(unit, None, errors.LedgerUnavailable()) for unit in batch], {})
                    return
                if len(batch) == 1:
                    log.error("a unit does not fit the database: %s: %s", type(failure).__name__, said)
                    self._answer([(batch[0], None, errors.Error("internal error"))], {})
                    return
                half = len(batch) // 2  # one of them spoils the others: it is found by halves
                self._commit_batch(batch[:half])
                self._commit_batch(batch[half:])
                return
            if done is None:
                batch = [unit for unit in batch if not unit.withdrawn]
            else:
                self._answer(*done)
                batch = batch[len(done[0]) :]

    def _attempt(self, batch: list[Unit[Any]]) -> tuple[list[Answer], dict[str, int]] | None:
        """Commit the batch, or as much of it from its begin on as BATCH_SECONDS allow; None when it must go again."""
        began = self._batch_began = time.monotonic()
        self._clear_doubt()
        connection = self._connect()
        connection.begin()
        heads = self._lock_heads(connection, sorted({name for unit in batch for name in unit.organizations}))
        transaction = Transaction(connection, heads, self.boot_id, self._clock())
        answers: list[Answer] = []
        alone = len(batch) == 1
        careful = self._careful > 0 and not alone
        self._careful -= careful
        for unit in batch:
            if not unit.changes_state:
                answers.append((unit, unit.apply(transaction), None))
                continue
            mark = transaction.mark()
            try:
                if careful:
                    rows.mark(connection)
                result = unit.apply(transaction)
                if careful:
                    rows.keep(connection)
            except sa.exc.DBAPIError:
                raise
            except Exception as failure:
                if alone:
                    connection.rollback()
                    return [(unit, None, failure)], {}
                self._careful = CAREFUL_BATCHES
                if not careful:
                    connection.rollback()
                    return None
                rows.undo(connection)
                transaction.reset(mark)
                answers.append((unit, None, failure))
            else:
                answers.append((unit, result, None))
            if time.monotonic() - began > BATCH_SECONDS:
                break
        growths = self._trees.grow(connection, transaction, heads)
        few = self._writer.is_few(transaction.rows) and not transaction.follows
        if not few:
            self._writer.insert(connection, transaction.rows)
            self._writer.supersede(connection, transaction.follows)
        if any(unit.withdrawn for unit, _result, _failure in answers):
            connection.rollback()  # the others go again without it
            self._trees.forget()
            return None
        sizes = {name: head.size for name, head in heads.items() if head.size != head.size_before}
        try:
            with self._writer.one_trip(connection):
                if few:
                    self._writer.insert(connection, transaction.rows)
                self._writer.move_heads(connection, heads, transaction.recorded_at)
                connection.commit()
        except sa.exc.DBAPIError as failure:
            self._disconnect()  # also where a row did not fit: SQLAlchemy takes the transaction for ended
            if not transaction.rows or not is_outage(failure):
                raise
            # Its answer was lost: one event of the batch is in the log, or none is.
            self._doubt = Doubt(transaction, heads, growths, answers, sizes)
            if not self._was_committed(self._doubt):
                raise
        self._committed(transaction, heads, growths)
        return answers, sizes

    def _committed(self, transaction: Transaction, heads: dict[str, Head], growths: dict[str, Growth]) -> None:
        self.sequences.update((name, head.sequence) for name, head in heads.items())
        self._trees.committed(transaction, heads, growths)

    def _was_committed(self, doubt: Doubt) -> bool:
        """Look a COMMIT up. While the database cannot be asked the doubt stays, and its callers are told UNAVAILABLE;
        what turns out to be committed later is `late`."""
        with self._connect().begin():
            # The database may still be at that COMMIT: whoever has the heads after it sees what came of it.
            self._writer.lock_heads(self._connect(), sorted(doubt.heads))
            found = rows.has_event(self._connect(), doubt.transaction.rows[0])
        self._doubt = None
        return found

    def _clear_doubt(self) -> None:
        doubt = self._doubt
        if doubt is not None and self._was_committed(doubt):
            self._committed(doubt.transaction, doubt.heads, doubt.growths)
            for unit, _result, _failure in doubt.answers:
                unit.withdrawn = True
            self._answer(doubt.answers, doubt.sizes)

    def _lock_heads(self, connection: sa.Connection, names: list[str]) -> dict[str, Head]:
        if not names:
            return {}
        heads = self._writer.lock_heads(connection, names)
        if len(heads) < len(names):
            rows.create_heads(connection, [name for name in names if name not in heads])
            heads = self._writer.lock_heads(connection, names)
        self._trees.check(connection, heads)
        for name, head in heads.items():
            head.sequence = self.sequences.get(name, 0)
        return heads

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(lading_writes=True)
        return self._connection

    def _rollback(self) -> None:
        self._trees.forget()
        try:
            if self._connection is not None:
                self._connection.rollback()
        except sa.exc.DBAPIError:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _answer(self, answers: list[Answer], sizes: dict[str, int]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._release, answers, sizes)

    def _release(self, answers: list[Answer], sizes: dict[str, int]) -> None:
        for unit, result, failure in answers:
            if unit.withdrawn:
                if not unit.answer.done():  # a doubt about it was cleared before this loop came to tell its caller
                    unit.answer.set_exception(errors.LedgerUnavailable())
                if failure is None and unit.late is not None:
                    unit.late(result)
            elif unit.answer.done():
                if unit.gone is not None:
                    unit.gone(failure)
            elif failure is None:
                unit.answer.set_result(result)
            else:
                unit.answer.set_exception(failure)
        if sizes:
            for listener in self._listeners:
                listener(sizes)
