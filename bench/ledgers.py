"""What is compared with the ledger: none at all, one without the tree, and one commit per call in the two ways that
come to mind first."""

import itertools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine

from lading_server.clock import new_id, now
from lading_server.event import Event
from lading_server.ledger import rows
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.trees import Trees
from lading_server.store import schema
from lading_server.tree import Growth

CONNECTIONS = 10
FIRST_INDEX = 1_000_000
"""Beyond what the server's own ledger writes. A counter of the process spares them the lock on the log's head."""
INSERT = f"INSERT INTO events ({rows.QUOTED}) VALUES ({', '.join(['%s'] * len(rows.COLUMNS))})"


class NoLedger(Ledger):
    """Takes every event, and keeps none."""

    def __init__(self) -> None:
        self.boot_id = new_id()  # and no more: it has no database, and does not start

    async def record(self, events: Sequence[Event], late: Any = None, gone: Any = None) -> list[int]:
        return [0] * len(events)


class NaiveLedger(Ledger):
    """One INSERT of the same row into the same table, and one COMMIT, for each call."""

    def __init__(self, url: str) -> None:
        self.boot_id = new_id()
        self._url = url
        self._indexes = itertools.count(FIRST_INDEX)

    def encode(self, event: Event) -> rows.Row:
        index = next(self._indexes)
        return rows.encode(event, index, now(), self.boot_id, index)

    async def open(self) -> None:
        """Connect."""
        raise NotImplementedError


class PoolLedger(NaiveLedger):
    """By an asynchronous psycopg pool."""

    async def open(self) -> None:
        self._pool = AsyncConnectionPool(self._url, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False)
        await self._pool.open(wait=True)

    async def record(self, events: Sequence[Event], late: Any = None, gone: Any = None) -> list[int]:
        async with self._pool.connection() as connection:
            for event in events:
                await connection.execute(INSERT, self.encode(event))
        return []


class EngineLedger(NaiveLedger):
    """By SQLAlchemy's asyncio engine."""

    async def open(self) -> None:
        url = sa.make_url(self._url).set(drivername="postgresql+psycopg")
        self._async_engine = create_async_engine(url, pool_size=CONNECTIONS, max_overflow=0)

    async def record(self, events: Sequence[Event], late: Any = None, gone: Any = None) -> list[int]:
        async with self._async_engine.begin() as connection:
            for event in events:
                values = dict(zip(rows.COLUMNS, self.encode(event), strict=True))
                await connection.execute(sa.insert(schema.events), values)
        return []


class NoTrees(Trees):
    """Grows nothing, and shows nothing."""

    def __init__(self) -> None: ...

    def check(self, *_: Any) -> None: ...

    def grow(self, *_: Any) -> dict[str, Growth]:
        return {}

    def committed(self, *_: Any) -> None: ...

    def forget(self) -> None: ...


def fell(ledger: Ledger) -> None:
    """From here on the ledgers of this process write events as before there was a tree: no entry, no salt, no hash."""
    ledger._trees = NoTrees()

    def nothing(*_: Any) -> bytes:
        return b""

    for name, value in (("encode_entry", nothing), ("commit_to", nothing), ("SALT_BYTES", 0)):
        setattr(rows, name, value)
