"""The life of this process in the log: its start, its clean stop, and what others that were killed left open.

A process is one operation of the log `system`, whose id is the boot id: `server.start` begins it, `server.stop` is its
end, and `server.crash`, by whoever finds it dead, gives it up. Crash order: a process is in the table from the commit
of its start to that of its end; the streams that it left open are given up before its crash is recorded, so that
another crash in between only leaves less to do.
"""

import asyncio
import json
import logging
from functools import partial
from importlib import metadata
from typing import Any

from lading_server import errors
from lading_server.clock import new_id, now
from lading_server.errors import Code
from lading_server.event import SYSTEM, Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.store import boots
from lading_server.store.reader import Reader

log = logging.getLogger(__name__)

ACTOR = Actor(ActorType.SERVICE, "lading-server", auth_method="local")
SEEN_SECONDS = 10.0
DEAD_SECONDS = 45.0
"""A process that was not seen for this long is dead. On SQLite there is only one, so that any other one is."""
STREAMS_MAX = 500
"""Streams that one transaction gives up."""
VERSION = metadata.version("lading")


class Boot:
    """This process. `alone`: no other process may have this database. `address`: where others reach it."""

    def __init__(self, ledger: Ledger, reader: Reader, *, alone: bool, address: str = "") -> None:
        self._ledger, self._reader, self._address = ledger, reader, address
        self._patience = 0 if alone else int(DEAD_SECONDS * 1_000_000)

    async def begin(self) -> None:
        """Record the start. Raises what the ledger raises."""
        boot_id = self._ledger.boot_id

        def apply(transaction: Transaction) -> None:
            boots.begin(transaction.connection, boot_id, transaction.recorded_at, self._address)
            transaction.append(event_of(boot_id, "server.start", Stage.STARTED, Outcome.PENDING, {"version": VERSION}))

        await self._ledger.commit((SYSTEM,), apply)
        await self._look()

    async def keep(self) -> None:
        """Until cancelled: say that this process lives, and look after those that do not."""
        while True:
            await asyncio.sleep(SEEN_SECONDS)
            await self._look()

    async def end(self) -> None:
        """Record the clean stop, as the last event of this process; without the database it looks like a crash."""
        boot_id = self._ledger.boot_id

        def apply(transaction: Transaction) -> None:
            boots.end(transaction.connection, boot_id, transaction.recorded_at)
            # Other events may be in this transaction too.
            last = {**self._ledger.sequences, **transaction.sequences()}
            last[SYSTEM] += 1
            data = {"version": VERSION, "sequences": {log: number for log, number in last.items() if number}}
            transaction.append(event_of(boot_id, "server.stop", Stage.COMPLETED, Outcome.SUCCESS, data))

        try:
            await self._ledger.commit((SYSTEM,), apply)
        except errors.Error as failure:
            log.error("the stop is not recorded: %s", failure)

    async def _look(self) -> None:
        try:
            if self._patience:
                await self._ledger.commit((SYSTEM,), self._renew)
            await self._bury()
        except errors.Error as failure:
            log.warning("cannot look for servers that were killed: %s", failure)

    def _renew(self, transaction: Transaction) -> None:
        """As a unit of the ledger. A process that was paused for so long that it was taken for dead is back."""
        boot_id = self._ledger.boot_id
        if not boots.renew(transaction.connection, boot_id, transaction.recorded_at):
            log.warning("this process was taken for dead: was it, or its machine, paused?")
            transaction.append(event_of(boot_id, "server.resume", Stage.STARTED, Outcome.PENDING, {"version": VERSION}))

    async def _bury(self) -> None:
        """Record of each process that was killed, once, that it was, after its open streams were given up."""
        seen_before = now() - self._patience
        for boot_id in await self._reader.read(boots.list_dead, self._ledger.boot_id, seen_before):
            while streams := await self._reader.read(boots.list_open_streams, boot_id, STREAMS_MAX):
                await self._give_up(streams)
            await self._ledger.commit((SYSTEM,), partial(record_crash, boot_id))

    async def _give_up(self, streams: Any) -> None:
        def apply(transaction: Transaction) -> None:
            still = boots.still_open(transaction.connection, [row.id for row in streams])
            for row in streams:
                if row.id in still:
                    transaction.append(abandonment_of(row, transaction.recorded_at))

        await self._ledger.commit(sorted({row.organization for row in streams}), apply)


def record_crash(boot_id: str, transaction: Transaction) -> None:
    """As a unit of the ledger: a process was killed. Another one may have been faster to say so."""
    if boots.end(transaction.connection, boot_id, transaction.recorded_at):
        data = {"sequences": boots.last_sequences(transaction.connection, boot_id)}
        transaction.append(event_of(boot_id, "server.crash", Stage.ABANDONED, Outcome.UNKNOWN, data))


def event_of(boot_id: str, action: str, stage: Stage, outcome: Outcome, data: dict[str, Any]) -> Event:
    """An event in the life of a process. `sequences`: by log, the number of its last event there."""
    return Event(
        id=new_id(),
        organization=SYSTEM,
        operation=boot_id,
        stage=stage,
        occurred_at=now(),
        actor=ACTOR,
        action=action,
        outcome=outcome,
        changes=True,
        targets=(("server", boot_id),),
        follows=stage is not Stage.STARTED,
        details={"data": {"boot_id": boot_id, **data}},
    )


def abandonment_of(row: Any, at: int) -> Event:
    """That a stream's end will never be known: its server was killed. By its STARTED event."""
    details = json.loads(row.details)
    return Event(
        id=new_id(),
        organization=row.organization,
        operation=row.operation,
        parent=row.parent,
        stage=Stage.ABANDONED,
        occurred_at=at,
        actor=Actor(ActorType(row.actor_type), row.actor, row.actor_email, auth_method=""),
        action=row.action,
        outcome=Outcome.UNKNOWN,
        code=Code.UNKNOWN,
        changes=row.changes,
        targets=((row.target_type, row.target),) if row.target_type else (),
        agent=row.agent,
        error="the server was killed before the call had ended",
        request_id=row.request_id,
        source=row.source,
        follows=True,
        details={key: details[key] for key in ("method", "peer") if key in details},
    )
