"""The log, read: pages, one event, and what follows an index.

What a filter asks for may be rare, so it is looked for piece by piece, in pieces that grow as fast as they are read:
a common value fills its page from the first one, a rare one is found by its index in a few, and a text that no index
knows stops after SCAN_SECONDS with a page that is short, or empty, and says where to go on.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lading_server.store.event_filter import Condition, EventFilter, actions_of, conditions, is_lookup, needs_actions
from lading_server.store.schema import events, logs

SCAN_SECONDS = 0.8
PIECE = 5_000
"""Indexes in the first piece."""
PIECE_SECONDS = 0.1
GROWTH_MAX = 4
TAIL_PIECE = 20_000

Row = Any
"""A row of the table: its columns by name. (As an sa.Row, `index` and `count` would be those of a tuple.)"""
_COLUMNS = tuple(events.c.keys())


@dataclass(frozen=True, slots=True)
class Log:
    """Where a log ends: `counted` of its events are in the roll-ups. `recorded_at`: of its last event."""

    size: int
    counted: int
    recorded_at: int


@dataclass(frozen=True, slots=True)
class Page:
    """Events, newest first. `older`: those before this index come next; `newer`: those after this one do. None: no
    more."""

    rows: list[Row]
    older: int | None
    newer: int | None


def values(row: Row) -> dict[str, Any]:
    """The columns of a row by name: to read all of them, many times faster than one by one."""
    return dict(zip(_COLUMNS, row, strict=True))


def log(connection: sa.Connection, organization: str) -> Log:
    """The log of an organization; an empty one before its first event."""
    found = connection.execute(
        sa.select(logs.c.size, logs.c.counted, logs.c.recorded_at).where(logs.c.organization == organization)
    ).first()
    return Log(*found) if found else Log(0, 0, 0)


def get(connection: sa.Connection, organization: str, id: str) -> Row | None:
    """One event of the organization."""
    found = sa.select(events).where(events.c.id == id, events.c.organization == organization)
    return connection.execute(found).first()


def last_of(connection: sa.Connection, organization: str, operation: str) -> Row | None:
    """The newest event of an operation."""
    found = sa.select(events).where(events.c.operation == operation, events.c.organization == organization)
    return connection.execute(found.order_by(events.c.index.desc()).limit(1)).first()


def with_ids(connection: sa.Connection, ids: Sequence[str]) -> list[Row]:
    """The events that have one of these ids, of any organization."""
    return list(connection.execute(sa.select(events).where(events.c.id.in_(ids))))


def page(
    connection: sa.Connection,
    organization: str,
    wanted: EventFilter,
    limit: int,
    *,
    before: int | None = None,
    after: int | None = None,
    as_of: int | None = None,
    low: int = 0,
) -> Page:
    """At most `limit` events: the newest, or the next ones before an index, or the next ones after an index.

    `as_of`: as if the log ended there. `low`: none before this index. Raises InvalidArgument for a filter that
    makes no sense.
    """
    actions = actions_of(connection, organization) if needs_actions(wanted) else None
    of_filter = conditions(wanted, connection.dialect.name, actions, as_of)
    begin, high = span(connection, organization, wanted)
    low = max(low, begin)
    if as_of is not None:
        high = min(high, as_of)
    if after is not None:
        low = max(low, after + 1)
        rows, reached = find(connection, organization, of_filter, limit + 1, low, high, order(wanted), upwards=True)
        newer = rows[limit - 1].index if len(rows) > limit else reached - 1 if reached < high else None
        rows = rows[:limit][::-1]
        return Page(rows, rows[-1].index if rows else low, newer)
    from_start = before is None
    high = high if before is None else min(high, before)
    rows, reached = find(connection, organization, of_filter, limit + 1, low, high, order(wanted).desc())
    older = rows[limit - 1].index if len(rows) > limit else reached if reached > low else None
    newer = None if from_start else rows[0].index if rows else high - 1
    return Page(rows[:limit], older, newer)


def order(wanted: EventFilter) -> sa.ColumnElement[int]:
    """The order of the log; for ids in a form that keeps the planner from walking the log in it."""
    return events.c.index + sa.literal_column("0") if is_lookup(wanted) else events.c.index


def find(
    connection: sa.Connection,
    organization: str,
    of_filter: list[Condition],
    limit: int,
    low: int,
    high: int,
    order: sa.ColumnElement[int],
    *,
    upwards: bool = False,
) -> tuple[list[Row], int]:
    """The first `limit` events in [low, high), from above unless `upwards`, and the index that the search reached."""
    rows: list[Row] = []
    reached = low if upwards else high
    for begin, end in pieces(low, high, upwards=upwards):
        found = within(sa.select(events), organization, begin, end).where(*of_filter)
        rows += connection.execute(found.order_by(order).limit(limit - len(rows)))
        reached = end if upwards else begin
        if len(rows) == limit:
            break
    return rows, reached


def following(
    connection: sa.Connection, organization: str, wanted: EventFilter, position: int, limit: int
) -> tuple[list[Row], int, int]:
    """Events from an index on, in the order of the log; where to go on; and the size of the log."""
    size = log(connection, organization).size
    if position >= size:
        return [], position, size
    end = min(size, position + TAIL_PIECE)
    found = within(sa.select(events), organization, position, end).where(*conditions(wanted, connection.dialect.name))
    rows: list[Row] = list(connection.execute(found.order_by(events.c.index).limit(limit)))
    return rows, rows[-1].index + 1 if len(rows) == limit else end, size


def within(select: sa.Select[Any], organization: Any, low: Any, high: Any) -> sa.Select[Any]:
    """Only events of this log in [low, high); values, or what stands for them in a statement that is kept."""
    return select.where(events.c.organization == organization, events.c.index >= low, events.c.index < high)


def span(connection: sa.Connection, organization: str, wanted: EventFilter) -> tuple[int, int]:
    """The indexes [low, high) of the times of a filter: recorded_at never falls from one index to the next."""
    size = log(connection, organization).size
    low = 0 if wanted.since is None else first_at(connection, organization, wanted.since, size)
    return low, size if wanted.until is None else first_at(connection, organization, wanted.until, size)


def first_at(connection: sa.Connection, organization: str, recorded_at: int, size: int) -> int:
    """The first index that was recorded at or after a time; `size` when none was."""
    found = connection.execute(
        sa.select(events.c.index)
        .where(events.c.organization == organization, events.c.recorded_at >= recorded_at)
        .order_by(events.c.recorded_at, events.c.index)
        .limit(1)
    ).scalar()
    return size if found is None else int(found)


def pieces(low: int, high: int, *, upwards: bool = False) -> Iterator[tuple[int, int]]:
    """[low, high) in pieces, from above unless `upwards`, until it is done or SCAN_SECONDS have gone."""
    width = PIECE
    began = time.monotonic()
    while low < high:
        started = time.monotonic()
        if upwards:
            begin = low
            low = min(high, low + width)
            yield begin, low
        else:
            end = high
            high = max(low, high - width)
            yield high, end
        ended = time.monotonic()
        if ended - began > SCAN_SECONDS:
            return
        width = max(PIECE, int(width * min(GROWTH_MAX, PIECE_SECONDS / (ended - started + 1e-6))))
