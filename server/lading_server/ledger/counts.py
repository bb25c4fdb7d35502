"""The roll-ups, kept behind the log: a summary over millions of events reads thousands of rows."""

import asyncio
import logging
from functools import cache, partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from lading_server import errors
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.store.event_counts import DAY, FACETS, HOUR, MINUTE, SECOND, TOTAL, by_field, floor, growth
from lading_server.store.reader import Reader
from lading_server.store.schema import event_counts, logs

log = logging.getLogger(__name__)

CHUNK = 1_000
"""Events in one unit: some 10 ms of the ledger."""
PAUSE_SECONDS = 2.0


def count(connection: sa.Connection, organization: str, limit: int) -> bool:
    """Count at most `limit` more events of a log, whose head is locked; whether there are still more.

    The roll-ups and `logs.counted` move in one transaction, so that a crash leaves no event counted twice or never.
    """
    counted, size = connection.execute(
        sa.select(logs.c.counted, logs.c.size).where(logs.c.organization == organization)
    ).one()
    end = min(size, counted + limit)
    if end == counted:
        return False
    connection.execute(insert(connection.dialect.name), {"of": organization, "begin": counted, "end": end})
    connection.execute(sa.update(logs).where(logs.c.organization == organization).values(counted=end))
    return bool(end < size)


@cache
def insert(dialect: str) -> sa.Insert:
    """Add the growth of the log `of` from one size to another: totals by minute and hour, values by hour and day.

    Kept: to make it takes longer than to run it.
    """
    organization = sa.bindparam("of", type_=sa.Text)
    begin, end = (sa.bindparam(name, type_=sa.BigInteger) for name in ("begin", "end"))
    # Events in a row are much alike: what is the same but for the second is summed up once, not for each roll-up.
    events = growth(organization, begin, end).subquery("events")
    minute = floor(events.c.recorded_at, MINUTE).label("recorded_at")
    alike = [minute, events.c.changes, *(events.c[field.name] for field in FACETS)]
    rows = sa.select(*alike, *sums(events)).group_by(*alike).cte("growth")
    hour = floor(rows.c.recorded_at, HOUR).label("begins_at")
    hours = sa.union_all(*by_field(rows, FACETS, hour, rows.c.changes)).cte("hours")
    day = floor(hours.c.begins_at, DAY).label("begins_at")
    days = sa.select(hours.c.field, hours.c.value, day, hours.c.changes, *sums(hours)).group_by(
        hours.c.field, hours.c.value, day, hours.c.changes
    )
    parts = [total(rows, MINUTE), total(rows, HOUR), with_width(HOUR, sa.select(hours)), with_width(DAY, days)]
    columns = ["width", "field", "value", "begins_at", "changes", "total", "failed"]
    every = sa.union_all(*parts).subquery()
    added = sa.select(organization, *(every.c[name] for name in columns)).where(
        (every.c.total != 0) | (every.c.failed != 0)
    )
    into = postgresql.insert(event_counts) if dialect == "postgresql" else sqlite.insert(event_counts)
    into = into.from_select(["organization", *columns], added)
    return into.on_conflict_do_update(
        index_elements=event_counts.primary_key.columns,
        set_={
            "total": event_counts.c.total + into.excluded.total,
            "failed": event_counts.c.failed + into.excluded.failed,
        },
    )


def total(rows: sa.CTE, width: int) -> sa.Select[Any]:
    begins_at = floor(rows.c.recorded_at, width).label("begins_at")
    sums_of_all = sa.select(
        sa.literal_column(str(TOTAL)).label("field"),
        sa.literal_column("''").label("value"),
        begins_at,
        rows.c.changes,
        *sums(rows),
    )
    return with_width(width, sums_of_all.group_by(begins_at, rows.c.changes))


def with_width(width: int, select: sa.Select[Any]) -> sa.Select[Any]:
    part = select.subquery()
    return sa.select(sa.literal_column(str(width // SECOND)).label("width"), *part.c)


def sums(rows: sa.FromClause) -> tuple[sa.Label[int], sa.Label[int]]:
    return sa.func.sum(rows.c.total).label("total"), sa.func.sum(rows.c.failed).label("failed")


async def keep(ledger: Ledger, reader: Reader) -> None:
    """Count what is not counted yet, every PAUSE_SECONDS, until cancelled. Any number of replicas may do so."""
    while True:
        try:
            for organization in await reader.read(behind):
                while await ledger.commit((organization,), partial(count_more, organization)):
                    pass
        except errors.Error as failure:
            log.warning("events are not counted: %s", failure)
        await asyncio.sleep(PAUSE_SECONDS)


def count_more(organization: str, transaction: Transaction) -> bool:
    """As a unit of the ledger: count CHUNK more events; whether there are still more."""
    return count(transaction.connection, organization, CHUNK)


def behind(connection: sa.Connection) -> list[str]:
    """Organizations with events that are not counted."""
    return list(connection.scalars(sa.select(logs.c.organization).where(logs.c.counted < logs.c.size)))
