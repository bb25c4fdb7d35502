"""Lives of server processes in the database, and what one that was killed left open in the logs."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from lading_server.event import Stage
from lading_server.store.schema import boots, commands, events, logs

LAST_MAX = 20_000
"""So many events are looked at, from the end of a log, for the last one of a process."""

OPEN = sa.and_(events.c.stage == sa.literal_column(str(int(Stage.STARTED))), events.c.superseded_by.is_(None))
"""As the index of these has it."""


def begin(connection: sa.Connection, boot_id: str, at: int, address: str = "") -> None:
    """A process begins. Times in microseconds since the epoch. `address`: where the other processes reach it."""
    connection.execute(
        sa.insert(boots).values(boot_id=boot_id, began_at=at, seen_at=at, ended_at=None, address=address)
    )


def address_of(connection: sa.Connection, boot_id: str) -> str:
    """Where the other processes reach this one; empty when it has ended."""
    found = sa.select(boots.c.address).where(boots.c.boot_id == boot_id, boots.c.ended_at.is_(None))
    return connection.execute(found).scalar() or ""


def reader_of(connection: sa.Connection, organization: str, session: str) -> str:
    """Which process has the caller of a log (named by its operation) or of an exec session (by its command)."""
    parent = sa.select(commands.c.parent).where(commands.c.id == session, commands.c.organization == organization)
    operation = connection.execute(parent).scalar() or session
    reader = sa.select(events.c.boot_id).where(
        events.c.operation == operation, events.c.organization == organization, events.c.stage == int(Stage.STARTED)
    )
    return connection.execute(reader).scalar() or ""


def renew(connection: sa.Connection, boot_id: str, at: int) -> bool:
    """It still lives; False when it was taken for dead meanwhile, which ends here."""
    mine = sa.update(boots).where(boots.c.boot_id == boot_id)
    if connection.execute(mine.where(boots.c.ended_at.is_(None)).values(seen_at=at)).rowcount:
        return True
    connection.execute(mine.values(seen_at=at, ended_at=None))
    return False


def end(connection: sa.Connection, boot_id: str, at: int) -> bool:
    """It ended; whether that is news."""
    ended = sa.update(boots).where(boots.c.boot_id == boot_id, boots.c.ended_at.is_(None)).values(ended_at=at)
    return connection.execute(ended).rowcount > 0


def list_dead(connection: sa.Connection, boot_id: str, seen_before: int) -> Sequence[str]:
    """Processes other than this one that did not end, and were not seen since."""
    found = sa.select(boots.c.boot_id).where(
        boots.c.ended_at.is_(None), boots.c.boot_id != boot_id, boots.c.seen_at < seen_before
    )
    return connection.scalars(found.order_by(boots.c.began_at)).all()


def list_open_streams(connection: sa.Connection, boot_id: str, limit: int) -> Sequence[Any]:
    """STARTED events of a process whose operations have no end. Commands are not among them: evidence settles those."""
    found = sa.select(events).where(
        OPEN,
        events.c.boot_id == boot_id,
        events.c.operation != boot_id,
        ~sa.exists().where(commands.c.id == events.c.operation),
    )
    return connection.execute(found.limit(limit)).all()


def still_open(connection: sa.Connection, ids: Sequence[str]) -> set[str]:
    """Those of these STARTED events that nothing has followed."""
    return set(connection.scalars(sa.select(events.c.id).where(OPEN, events.c.id.in_(ids))))


def last_sequences(connection: sa.Connection, boot_id: str) -> dict[str, int]:
    """By log, the number of the last event of a process there; logs where it is not near the end are left out."""
    began_at = connection.execute(sa.select(boots.c.began_at).where(boots.c.boot_id == boot_id)).scalar_one()
    grown = sa.select(logs.c.organization, logs.c.size).where(logs.c.recorded_at >= began_at)
    found = {}
    for organization, size in connection.execute(grown.order_by(logs.c.organization)).all():
        last = sa.select(events.c.sequence).where(
            events.c.organization == organization, events.c.index >= size - LAST_MAX, events.c.boot_id == boot_id
        )
        sequence = connection.execute(last.order_by(events.c.index.desc()).limit(1)).scalar()
        if sequence is not None:
            found[organization] = sequence
    return found
