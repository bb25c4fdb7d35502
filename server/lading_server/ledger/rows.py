"""How events and heads get into the database: COPY on PostgreSQL, one prepared statement on SQLite.

What every batch does goes by the driver's own cursor: SQLAlchemy's executemany costs 30 to 45 microseconds of CPU a
row, COPY 4 to 8; and its other statements would cost a small batch more than its rows.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from lading_server.entry import SALT_BYTES, commit_to, details_of, encode_details, encode_entry
from lading_server.event import Event
from lading_server.store import schema

if TYPE_CHECKING:
    from lading_server.ledger.transaction import Head

Row = tuple[Any, ...]
Follow = tuple[str, str, int]
"""Organization, operation, and the index of the event that says more of it."""

COLUMNS = tuple(column.name for column in schema.events.columns)
QUOTED = ", ".join(f'"{name}"' for name in COLUMNS)
COPY = f"COPY events ({QUOTED}) FROM STDIN"
INSERT = f"INSERT INTO events ({QUOTED}) VALUES ({', '.join('?' * len(COLUMNS))})"

ENTRY, DETAILS, SALT = (COLUMNS.index(name) for name in ("entry", "details", "salt"))


def encode(event: Event, index: int, recorded_at: int, boot_id: str, sequence: int) -> Row:
    """The row of an event, in the order of COLUMNS. PostgreSQL's text takes no NUL: it becomes U+FFFD."""
    if holds_nul(event):
        event = without_nul(event)
    actor = event.actor
    salt = os.urandom(SALT_BYTES)
    details = encode_details(details_of(event))
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

    def insert(self, connection: sa.Connection, rows: Sequence[Row]) -> None:
        """Insert the rows of events."""
        if not rows:
            return
        with cursor(connection) as driver:
            if self._copies:
                with driver.copy(COPY) as copy:
                    for row in rows:
                        copy.write_row(row)
            else:
                driver.executemany(INSERT, rows)

    def lock_heads(self, connection: sa.Connection, names: Sequence[str]) -> "dict[str, Head]":
        """Lock the heads of these logs, in their order, so that two processes never wait for each other."""
        from lading_server.ledger.transaction import Head

        marks = ", ".join([self._mark] * len(names))
        columns = "organization, size, recorded_at, edge"
        select = f"SELECT {columns} FROM logs WHERE organization IN ({marks}) ORDER BY organization"
        with cursor(connection) as driver:
            found = driver.execute(select + " FOR UPDATE" if self._copies else select, names).fetchall()
        return {name: Head(size, size, recorded_at, bytes(edge)) for name, size, recorded_at, edge in found}

    def move_heads(self, connection: sa.Connection, heads: "dict[str, Head]", recorded_at: int) -> None:
        """Write the new ends of the logs that grew."""
        with cursor(connection) as driver:
            for name, head in heads.items():
                if head.size != head.size_before:
                    driver.execute(self._move, (head.size, recorded_at, head.edge, name))


@contextlib.contextmanager
def cursor(connection: sa.Connection) -> Iterator[Any]:
    """A cursor of the driver, in the transaction of `connection`."""
    driver: Any = connection.connection.driver_connection
    found = driver.cursor()
    try:
        yield found
    except connection.dialect.loaded_dbapi.Error as failure:
        raise sa.exc.DBAPIError.instance(
            "a statement of the ledger",
            None,
            failure,
            connection.dialect.loaded_dbapi.Error,
            dialect=connection.dialect,
        ) from failure
    finally:
        found.close()


_SUPERSEDE = (
    sa.update(schema.events)
    .where(
        schema.events.c.operation == sa.bindparam("of"),
        schema.events.c.organization == sa.bindparam("log"),
        schema.events.c.superseded_by.is_(None),
        schema.events.c.index < sa.bindparam("by"),
    )
    .values(superseded_by=sa.bindparam("by"))
)


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


def supersede(connection: sa.Connection, follows: Sequence[Follow]) -> None:
    """Mark what was the last word on these operations as followed by a newer one."""
    if follows:
        connection.execute(
            _SUPERSEDE, [{"log": log, "of": operation, "by": index} for log, operation, index in follows]
        )


def has_event(connection: sa.Connection, row: Row) -> bool:
    """Whether the event of this row is in the database."""
    found = connection.execute(sa.select(schema.events.c.index).where(schema.events.c.id == row[2]))
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
