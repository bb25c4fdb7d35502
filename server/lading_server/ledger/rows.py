"""How events and heads get into the database: COPY on PostgreSQL for many, prepared statements else.

What every batch does goes by the driver's own cursor: SQLAlchemy's executemany costs 30 to 45 microseconds of CPU a
row, COPY 4 to 8; and its other statements would cost a small batch more than its rows.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from lading_server.entry import SALT_BYTES, commit_to, encode_details, encode_entry
from lading_server.event import Event
from lading_server.store import schema
from lading_server.store.driver import cursor, run, wrapped

if TYPE_CHECKING:
    from lading_server.ledger.transaction import Head

Row = tuple[Any, ...]
Follow = tuple[str, str, int]
"""Organization, operation, and the index of the event that says more of it."""

COLUMNS = tuple(column.name for column in schema.events.columns)
QUOTED = ", ".join(f'"{name}"' for name in COLUMNS)
COPY = f"COPY events ({QUOTED}) FROM STDIN"

PIPELINED_MAX = 16
"""So few rows go to PostgreSQL in one round trip with the COMMIT; COPY is faster for more, and takes two of its own."""

ENTRY, DETAILS, SALT = (COLUMNS.index(name) for name in ("entry", "details", "salt"))


def encode(event: Event, index: int, recorded_at: int, boot_id: str, sequence: int) -> Row:
    """The row of an event, in the order of COLUMNS. PostgreSQL's text takes no NUL: it becomes U+FFFD."""
    if holds_nul(event):
        event = without_nul(event)
    actor = event.actor
    salt = os.urandom(SALT_BYTES)
    details = encode_details(event)
    commitment = commit_to(salt, details.encode())
    target_type, target = event.targets[0] if event.targets else ("", "")
    return (
        event.organization,
        index,
        event.id,
        event.operation,
        event.parent,
        int(event.stage),
        event.occurred_at,
        recorded_at,
        int(actor.type),
        actor.id,
        actor.email,
        event.action,
        event.changes,
        target_type,
        target,
        event.agent,
        int(event.outcome),
        event.code,
        event.reason,
        event.error,
        event.request_id,
        event.source,
        boot_id,
        sequence,
        event.count,
        event.superseded_by,
        details,
        encode_entry(event, recorded_at, boot_id, sequence, commitment),
        salt,
    )


def holds_nul(event: Event) -> bool:
    """Whether a text of it, which may come from a caller, holds NUL."""
    actor = event.actor
    texts = f"{event.reason}{event.error}{event.request_id}{actor.id}{actor.email}{event.source}"
    return "\0" in texts or any("\0" in target for _, target in event.targets)


def without_nul(event: Event) -> Event:
    """The event with U+FFFD for every NUL."""

    def clean(text: str) -> str:
        return text.replace("\0", "\ufffd")

    return replace(
        event,
        reason=clean(event.reason),
        error=clean(event.error),
        request_id=clean(event.request_id),
        source=clean(event.source),
        targets=tuple((kind, clean(target)) for kind, target in event.targets),
        actor=replace(event.actor, id=clean(event.actor.id), email=clean(event.actor.email)),
    )


class Writer:
    """What every batch does, by the way that suits the database. Raises the driver's errors as SQLAlchemy's
    DBAPIError."""

    def __init__(self, dialect: str) -> None:
        self._copies = dialect == "postgresql"
        self._mark = "%s" if self._copies else "?"
        values = ", ".join(f"{name} = {self._mark}" for name in ("size", "recorded_at", "edge"))
        self._move = f"UPDATE logs SET {values} WHERE organization = {self._mark}"
        self._insert = f"INSERT INTO events ({QUOTED}) VALUES ({', '.join([self._mark] * len(COLUMNS))})"
        of = f"organization = {self._mark} AND operation = {self._mark} AND superseded_by IS NULL"
        self._supersede = f'UPDATE events SET superseded_by = {self._mark} WHERE {of} AND "index" < {self._mark}'

    @contextlib.contextmanager
    def one_trip(self, connection: sa.Connection) -> Iterator[None]:
        """What is sent meanwhile goes to PostgreSQL at once, and is waited for together: at a COMMIT or at the end."""
        if not self._copies:
            yield
            return
        failure: sa.exc.DBAPIError | None = None
        with wrapped(connection):
            driver: Any = connection.connection.driver_connection
            try:
                with driver.pipeline():
                    try:
                        yield
                    except sa.exc.DBAPIError as found:
                        failure = found
            except connection.dialect.loaded_dbapi.Error:
                if failure is None:  # else it is the same one again: what came after it was not done
                    raise
        if failure is not None:
            raise failure

    def is_few(self, rows: Sequence[Row]) -> bool:
        """Whether it pays to have the rows inserted in one trip with the COMMIT."""
        return self._copies and len(rows) <= PIPELINED_MAX

    def insert(self, connection: sa.Connection, rows: Sequence[Row]) -> None:
        """Insert the rows of events."""
        if not rows:
            return
        with cursor(connection) as driver:
            if not self._copies:
                driver.executemany(self._insert, rows)
            elif len(rows) <= PIPELINED_MAX:
                for row in rows:
                    driver.execute(self._insert, row)
            else:
                with driver.copy(COPY) as copy:
                    for row in rows:
                        copy.write_row(row)

    def supersede(self, connection: sa.Connection, follows: Sequence[Follow]) -> None:
        """Mark what was the last word on these operations as followed by a newer one."""
        if follows:
            with cursor(connection) as driver:
                driver.executemany(self._supersede, [(index, log, of, index) for log, of, index in follows])

    def lock_heads(self, connection: sa.Connection, names: Sequence[str]) -> "dict[str, Head]":
        """Lock the heads of these logs, in their order, so that two processes never wait for each other."""
        from lading_server.ledger.transaction import Head

        marks = ", ".join([self._mark] * len(names))
        columns = "organization, size, recorded_at, edge"
        select = f"SELECT {columns} FROM logs WHERE organization IN ({marks}) ORDER BY organization"
        with self.one_trip(connection), cursor(connection) as driver:  # with the BEGIN
            found = driver.execute(select + " FOR UPDATE" if self._copies else select, names).fetchall()
        return {name: Head(size, size, recorded_at, bytes(edge)) for name, size, recorded_at, edge in found}

    def move_heads(self, connection: sa.Connection, heads: "dict[str, Head]", recorded_at: int) -> None:
        """Write the new ends of the logs that grew."""
        with cursor(connection) as driver:
            for name, head in heads.items():
                if head.size != head.size_before:
                    driver.execute(self._move, (head.size, recorded_at, head.edge, name))


def mark(connection: sa.Connection) -> None:
    """Begin what `undo` takes back, in a transaction that goes on. SQLAlchemy's own savepoints compile each statement
    anew, which cost a unit more than what it wrote."""
    run(connection, "SAVEPOINT unit")


def keep(connection: sa.Connection) -> None:
    """What was done since `mark` is a part of the transaction."""
    run(connection, "RELEASE SAVEPOINT unit")


def undo(connection: sa.Connection) -> None:
    """Take back what was done since `mark`."""
    run(connection, "ROLLBACK TO SAVEPOINT unit")
    run(connection, "RELEASE SAVEPOINT unit")


def create_heads(connection: sa.Connection, names: Sequence[str]) -> None:
    """Begin logs; one that another process began meanwhile is left as it is."""
    for name in names:
        connection.execute(
            sa.text(
                "INSERT INTO logs (organization, size, recorded_at, counted, edge) VALUES (:name, 0, 0, 0, :edge)"
                " ON CONFLICT DO NOTHING"
            ),
            {"name": name, "edge": b""},
        )


def has_event(connection: sa.Connection, row: Row) -> bool:
    """Whether the event of this row is in the database, in its place."""
    events = schema.events.c
    place = (events.organization == row[0], events.index == row[1], events.id == row[2])
    found = connection.execute(sa.select(events.index).where(*place))
    return found.first() is not None


def read_entry(connection: sa.Connection, organization: str, index: int) -> tuple[bytes, bytes, bytes]:
    """Entry, details and salt of an event; the last two are empty once erased. Raises LookupError."""
    found = connection.execute(
        sa.select(schema.events.c.entry, schema.events.c.details, schema.events.c.salt).where(
            schema.events.c.organization == organization, schema.events.c.index == index
        )
    ).first()
    if found is None:
        raise LookupError(f"the log of {organization} has no event {index}")
    if found.salt is None:
        return bytes(found.entry), b"", b""
    return bytes(found.entry), found.details.encode(), bytes(found.salt)
