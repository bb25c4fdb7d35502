"""Counts over time and by field: from the roll-ups where they have the answer, from the events where they have not.

Whole hours come from the roll-ups, the rest of the first and the last hour from the events, and what is not counted
yet is added, so that a summary is exact at once. A filter asks every event, newest first, up to COUNT_MAX of them.
"""

import functools
import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lading_server.errors import Code
from lading_server.event import Outcome
from lading_server.store import events as log_of
from lading_server.store.event_counts import COUNTED, DAY, HOUR, MINUTE, SECOND, TOTAL, by_field, growth, without_index
from lading_server.store.event_filter import EventFilter, Field, actions_of, conditions, needs_actions
from lading_server.store.schema import event_counts, events

COUNT_MAX = 100_000
"""Events that one summary reads."""
ROWS = -1
"""In the place of a field: how many rows, whatever their weight."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Where it begins (microseconds since the epoch), and its counts."""

    begins_at: int
    total: int
    failed: int


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a facet, and its counts."""

    value: str
    total: int
    failed: int


@dataclass(frozen=True, slots=True)
class Summary:
    """`width` of a bar in microseconds. `capped`: the counts are of the newest events only."""

    total: int
    failed: int
    width: int
    bars: list[Bar]
    facets: dict[Field, list[Value]]
    capped: bool


@dataclass(frozen=True, slots=True)
class Grid:
    """Bars of equal width from `begins_at` on, over the times [since, until)."""

    since: int
    until: int
    begins_at: int
    width: int
    size: int


def grid(since: int, until: int, bars_max: int) -> Grid:
    """At most `bars_max` bars, of whole minutes while they are shorter than an hour, else of whole hours."""
    for unit in (MINUTE, HOUR):
        begins_at = since - since % unit
        width = -((begins_at - until) // (bars_max * unit)) * unit
        if width < HOUR:
            break
    return Grid(since, until, begins_at, width, -((begins_at - until) // width))


def bar(time: sa.ColumnElement[int]) -> sa.Label[str]:
    """The number of the bar that a time is in."""
    begins_at, width = (sa.bindparam(name, type_=sa.BigInteger) for name in ("bars_from", "bar_width"))
    return sa.cast((time - begins_at) // width, sa.Text).label("bar")


def of_rollups(value: sa.ColumnElement[str]) -> sa.Select[Any]:
    """Sums over the roll-ups of one width, by field and value."""
    of = event_counts.c
    sums = sa.select(of.field, value, sa.func.sum(of.total), sa.func.sum(of.failed)).where(
        of.organization == sa.bindparam("organization"),
        of.width == sa.bindparam("width"),
        of.begins_at >= sa.bindparam("begin"),
        of.begins_at < sa.bindparam("end"),
        of.field.in_(sa.bindparam("fields", expanding=True)),
    )
    return sums.group_by(of.field, sa.literal_column(value.name))


# Statements are built once: to build them costs as much as to run them.
BARS = of_rollups(bar(event_counts.c.begins_at))
VALUES = of_rollups(event_counts.c.value)


@functools.cache
def uncounted(fields: tuple[Field, ...], changes_only: bool) -> sa.CompoundSelect[Any]:
    """Sums of what the roll-ups have not: growth within [first, last), and the last words in two spans of indexes."""
    organization: sa.BindParameter[str] = sa.bindparam("organization")
    grown = growth(organization, sa.bindparam("counted"), sa.bindparam("size"), bar(events.c.recorded_at)).subquery()
    recorded_at = without_index(grown.c.recorded_at)
    parts = [sa.select(grown).where(recorded_at >= sa.bindparam("first"), recorded_at < sa.bindparam("last"))]
    for number in (1, 2):
        low, high = (sa.bindparam(f"{name}_{number}", type_=sa.BigInteger) for name in ("low", "high"))
        rest = log_of.within(sa.select(*COUNTED, bar(events.c.recorded_at)), organization, low, high)
        parts.append(rest.where(events.c.superseded_by.is_(None)))
    rows = sa.union_all(*parts).subquery()
    return sums_of(sa.select(rows).where(rows.c.changes) if changes_only else sa.select(rows), fields)


def sums_of(rows: sa.Select[Any], fields: Iterable[Field]) -> sa.CompoundSelect[Any]:
    """Sums over rows of COUNTED with their bar, by field and value, and how many rows there are."""
    of = rows.cte("counted")
    sums = sa.func.sum(of.c.total), sa.func.sum(of.c.failed)
    bars = sa.select(sa.literal_column(str(TOTAL)), of.c.bar, *sums).group_by(of.c.bar)
    text, number = sa.literal_column("''", sa.Text), sa.literal_column("0", sa.Integer)
    size = sa.select(number + ROWS, text, sa.func.count(), number).select_from(of)
    return sa.union_all(bars, *by_field(of, fields), size)


class Tally:
    """Sums by field and value; the values of TOTAL are numbers of bars."""

    def __init__(self, connection: sa.Connection, organization: str, grid: Grid, fields: Sequence[Field]) -> None:
        self._connection, self._grid, self.fields = connection, grid, tuple(fields)
        self._bound = {"organization": organization, "bars_from": grid.begins_at, "bar_width": grid.width}
        self._sums: defaultdict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, sums: sa.Executable, **bound: Any) -> int:
        """Add sums; returns over how many rows they are, where they say so."""
        for field, value, total, failed in self._connection.execute(sums, self._bound | bound):
            known = self._sums[field, value]
            known[0] += int(total)
            known[1] += int(failed)
        return self._sums.pop((ROWS, ""), [0])[0]

    def add_rollups(self, first: int, last: int, changes_only: bool) -> None:
        """Add what the roll-ups have of the whole hours in [first, last)."""
        bars, values = (
            sums.where(event_counts.c.changes.is_(True)) if changes_only else sums for sums in (BARS, VALUES)
        )
        unit = MINUTE if self._grid.width % HOUR else HOUR
        self.add(bars, width=unit // SECOND, begin=first, end=last, fields=[TOTAL])
        days = -(-first // DAY) * DAY, last - last % DAY
        spans = [(HOUR, first, days[0]), (DAY, *days), (HOUR, days[1], last)]
        for width, begin, end in spans if days[0] < days[1] else [(HOUR, first, last)]:
            if begin < end:
                self.add(values, width=width // SECOND, begin=begin, end=end, fields=self.fields)

    def bars(self) -> list[Bar]:
        """All of them, oldest first."""
        of = self._grid
        numbers = range(of.size)
        return [
            Bar(of.begins_at + number * of.width, *self._sums.get((TOTAL, str(number)), (0, 0))) for number in numbers
        ]

    def facets(self, values_max: int) -> dict[Field, list[Value]]:
        """The most frequent values of each field."""
        found: dict[Field, list[Value]] = {field: [] for field in self.fields}
        for (field, value), (total, failed) in self._sums.items():
            if field != TOTAL and total:
                found[Field(field)].append(Value(name_of(Field(field), value), total, failed))
        return {
            field: heapq.nsmallest(values_max, values, key=lambda value: (-value.total, value.value))
            for field, values in found.items()
        }


def name_of(field: Field, value: str) -> str:
    """The name of a counted value: outcomes and codes are counted by number."""
    if field == Field.OUTCOME:
        return Outcome(int(value)).name
    return Code(int(value)).name if field == Field.CODE else value


def summarize(
    connection: sa.Connection,
    organization: str,
    wanted: EventFilter,
    grid: Grid,
    fields: Sequence[Field],
    values_max: int,
) -> Summary:
    """The counts of the last words that match, over the times of the grid (those of the filter are not looked at)."""
    tally = Tally(connection, organization, grid, fields)
    count = count_matching if wanted.matches or wanted.words else count_all
    capped = count(connection, organization, wanted, grid, tally)
    bars = tally.bars()
    total, failed = sum(bar.total for bar in bars), sum(bar.failed for bar in bars)
    return Summary(total, failed, grid.width, bars, tally.facets(values_max), capped)


def count_all(connection: sa.Connection, organization: str, wanted: EventFilter, grid: Grid, tally: Tally) -> bool:
    """Whole hours from the roll-ups, and the rest from the events; whether some were left out."""
    log = log_of.log(connection, organization)
    first = -(-grid.since // HOUR) * HOUR
    # The last hour is whole, too, when all of its events are before the end.
    last = (grid.until + HOUR * (grid.until > log.recorded_at)) // HOUR * HOUR
    if first >= last:
        return count_matching(connection, organization, wanted, grid, tally)
    tally.add_rollups(first, last, wanted.changes_only)
    size = min(log.size, log.counted + COUNT_MAX)
    bound = {"counted": log.counted, "size": size, "first": first, "last": last}
    for number, (since, until) in enumerate([(grid.since, first), (last, grid.until)], 1):
        low = high = 0
        if since < until and since <= log.recorded_at:
            low, high = (log_of.first_at(connection, organization, at, log.size) for at in (since, until))
        bound |= {f"low_{number}": low, f"high_{number}": high}
    tally.add(uncounted(tally.fields, wanted.changes_only), **bound)
    return size < log.size


def count_matching(connection: sa.Connection, organization: str, wanted: EventFilter, grid: Grid, tally: Tally) -> bool:
    """The events themselves, newest first; whether that stopped before the oldest, at COUNT_MAX or for want of time."""
    actions = actions_of(connection, organization) if needs_actions(wanted) else None
    of_filter = [events.c.superseded_by.is_(None), *conditions(wanted, connection.dialect.name, actions)]
    low, high = log_of.span(connection, organization, EventFilter(since=grid.since, until=grid.until))
    left, reached = COUNT_MAX, high
    for begin, end in log_of.pieces(low, high):
        rows = log_of.within(sa.select(*COUNTED, bar(events.c.recorded_at)), organization, begin, end)
        newest = rows.where(*of_filter).order_by(events.c.index.desc()).limit(left)
        left -= tally.add(sums_of(newest, tally.fields))
        if not left:
            return True
        reached = begin
    return reached > low
