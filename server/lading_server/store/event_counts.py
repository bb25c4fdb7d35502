"""What is counted of events: last words only, each as many times as its `count`.

The roll-ups hold, for each organization, the counts of the first `logs.counted` events as the log was when it had that
size. Counting on means to add what came since, and to take away what that superseded: `growth` says both, and serves
the ledger, which writes it into the roll-ups, and the summary, which adds what is not in them yet.
"""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from lading_server.event import Outcome
from lading_server.store.event_filter import Field
from lading_server.store.schema import events

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
TOTAL = 0
"""In the place of a field: all events."""
VALUE_MAX = 200
FAILED = (Outcome.FAILURE, Outcome.DENIED, Outcome.DEADLINE, Outcome.UNKNOWN)

FACETS: dict[Field, sa.ColumnElement[str]] = {
    Field.ACTOR: sa.case((events.c.actor_email != "", events.c.actor_email), else_=events.c.actor),
    Field.ACTION: events.c.action,
    Field.AGENT: events.c.agent,
    Field.OUTCOME: sa.cast(events.c.outcome, sa.Text),
    Field.CODE: sa.cast(events.c.code, sa.Text),
    Field.SOURCE: events.c.source,
}
"""The fields that are counted, and their values: of outcomes and codes the numbers."""


Bound = Any
"""A value, or the sa.bindparam that stands for it in a statement that is kept."""


def columns(weight: sa.ColumnElement[int]) -> list[sa.ColumnElement[Any]]:
    """Of each event what is counted: when, whether it changes anything, its weight, its failed weight, its values."""
    failed = sa.case((events.c.outcome.in_(FAILED), weight), else_=0)
    values = [sa.func.substr(value, 1, VALUE_MAX).label(field.name) for field, value in FACETS.items()]
    return [events.c.recorded_at, events.c.changes, weight.label("total"), failed.label("failed"), *values]


COUNTED = columns(events.c.count)
UNCOUNTED = columns(-events.c.count)


def growth(organization: Bound, begin: Bound, end: Bound, *further: sa.ColumnElement[Any]) -> sa.CompoundSelect[Any]:
    """What counting on from size `begin` to size `end` changes: positive and negative weights."""
    added = sa.select(*COUNTED, *further).where(
        events.c.organization == organization,
        events.c.index >= begin,
        events.c.index < end,
        events.c.superseded_by.is_(None) | (events.c.superseded_by >= end),
    )
    superseded = sa.select(*UNCOUNTED, *further).where(
        events.c.organization == organization,
        events.c.superseded_by.is_not(None),
        events.c.superseded_by >= begin,
        events.c.superseded_by < end,
        without_index(events.c.index) < begin,
    )
    return added.union_all(superseded)


def without_index(column: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """A column in a form that keeps the planner from an index on it, where another one has far fewer rows."""
    return column + sa.literal_column("0")


def floor(column: sa.ColumnElement[int], width: int) -> sa.ColumnElement[int]:
    """Where the interval of `width` microseconds begins that a time is in."""
    return column - column % sa.literal_column(str(width))


def by_field(rows: sa.CTE, fields: Iterable[Field], *keys: sa.ColumnElement[Any]) -> list[sa.Select[Any]]:
    """Of rows of COUNTED, for each field: its number, value, the keys, and sums. Empty agents and sources are none."""
    found = []
    for field in fields:
        value = rows.c[field.name]
        sums = sa.select(
            sa.literal_column(str(int(field))).label("field"),
            value.label("value"),
            *keys,
            sa.func.sum(rows.c.total).label("total"),
            sa.func.sum(rows.c.failed).label("failed"),
        ).group_by(value, *keys)
        found.append(sums.where(value != "") if field in (Field.AGENT, Field.SOURCE) else sums)
    return found
