"""Counts over time and by field: from the roll-ups where they have the answer, from the events where they have not.

Whole hours come from the roll-ups, the rest of the first and the last hour from the events, and what is not counted
yet is added, so that a summary is exact at once. A filter asks every event, newest first, up to COUNT_MAX of them.
"""

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


class Tally:
    """Sums by field and value; the values of TOTAL are numbers of bars."""

    def __init__(self, connection: sa.Connection, organization: str, grid: Grid, fields: Sequence[Field]) -> None:
        self._connection, self._organization, self._grid, self._fields = connection, organization, grid, fields
        self._sums: defaultdict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])

    def bar(self, time: sa.ColumnElement[int]) -> sa.Label[str]:
        """The number of the bar that a time is in."""
        return sa.cast((time - self._grid.begins_at) // self._grid.width, sa.Text).label("bar")

    def count_events(self, rows: sa.Select[Any] | sa.CompoundSelect[Any]) -> int:
        """Add the sums over rows of `COUNTED` with their bar; returns how many rows there were."""
        of = rows.cte("counted")
        sums = sa.func.sum(of.c.total), sa.func.sum(of.c.failed)
        bars = sa.select(sa.literal_column(str(TOTAL)), of.c.bar, *sums).group_by(of.c.bar)
        text, number = sa.literal_column("''", sa.Text), sa.literal_column("0", sa.Integer)
        size = sa.select(number + ROWS, text, sa.func.count(), number).select_from(of)
        self._add(self._connection.execute(sa.union_all(bars, *by_field(of, self._fields), size)))
        return self._sums.pop((ROWS, ""))[0]

    def count_rollups(self, first: int, last: int, changes_only: bool) -> None:
        """Add what the roll-ups have of the whole hours in [first, last)."""
        unit = MINUTE if self._grid.width % HOUR else HOUR
        bars = self._rollups(unit, first, last, changes_only, self.bar(event_counts.c.begins_at))
        self._add(self._connection.execute(bars.where(event_counts.c.field == TOTAL)))
        days = -(-first // DAY) * DAY, last - last % DAY
        spans = [(HOUR, first, days[0]), (DAY, *days), (HOUR, days[1], last)]
        if days[0] >= days[1]:
            spans = [(HOUR, first, last)]
        for width, begin, end in spans:
            values = self._rollups(width, begin, end, changes_only, event_counts.c.value)
            self._add(self._connection.execute(values.where(event_counts.c.field.in_(self._fields))))

    def _rollups(
        self, width: int, begin: int, end: int, changes_only: bool, value: sa.ColumnElement[str]
    ) -> sa.Select[Any]:
        of = event_counts.c
        sums = sa.select(of.field, value, sa.func.sum(of.total), sa.func.sum(of.failed)).where(
            of.organization == self._organization,
            of.width == width // SECOND,
            of.begins_at >= begin,
            of.begins_at < end,
        )
        if changes_only:
            sums = sums.where(of.changes.is_(True))
        return sums.group_by(of.field, sa.literal_column(value.name))

    def _add(self, rows: Iterable[Any]) -> None:
        for field, value, total, failed in rows:
            sums = self._sums[field, value]
            sums[0] += int(total)
            sums[1] += int(failed)

    def bars(self) -> list[Bar]:
        """All of them, oldest first."""
        of = self._grid
        numbers = range(of.size)
        return [
            Bar(of.begins_at + number * of.width, *self._sums.get((TOTAL, str(number)), (0, 0))) for number in numbers
        ]

    def facets(self, values_max: int) -> dict[Field, list[Value]]:
        """The most frequent values of each field."""
        found: dict[Field, list[Value]] = {field: [] for field in self._fields}
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
    tally.count_rollups(first, last, wanted.changes_only)
    bar = tally.bar(events.c.recorded_at)
    end = min(log.size, log.counted + COUNT_MAX)
    uncounted = growth(organization, log.counted, end, bar).subquery()
    recorded_at = without_index(uncounted.c.recorded_at)
    parts = [sa.select(uncounted).where(recorded_at >= first, recorded_at < last)]
    for since, until in ((grid.since, first), (last, grid.until)):
        if since < until and since <= log.recorded_at:
            low, high = (log_of.first_at(connection, organization, at, log.size) for at in (since, until))
            rest = log_of.within(sa.select(*COUNTED, bar), organization, low, high)
            parts.append(rest.where(events.c.superseded_by.is_(None)))
    rows = sa.union_all(*parts).subquery()
    tally.count_events(sa.select(rows).where(rows.c.changes) if wanted.changes_only else sa.select(rows))
    return end < log.size


def count_matching(connection: sa.Connection, organization: str, wanted: EventFilter, grid: Grid, tally: Tally) -> bool:
    """The events themselves, newest first; whether that stopped before the oldest, at COUNT_MAX or for want of time."""
    actions = actions_of(connection, organization) if needs_actions(wanted) else None
    of_filter = [events.c.superseded_by.is_(None), *conditions(wanted, connection.dialect.name, actions)]
    low, high = log_of.span(connection, organization, EventFilter(since=grid.since, until=grid.until))
    left, reached = COUNT_MAX, high
    for begin, end in log_of.pieces(low, high):
        rows = log_of.within(sa.select(*COUNTED, tally.bar(events.c.recorded_at)), organization, begin, end)
        newest = rows.where(*of_filter).order_by(events.c.index.desc()).limit(left)
        left -= tally.count_events(newest)
        if not left:
            return True
        reached = begin
    return reached > low
