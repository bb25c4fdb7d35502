"""What was erased of the log: details and salts of events, the columns that repeat them, and counts by their values.

Entries stay, and with them every proof. Of a command or a rollout whose events are erased, what repeats them goes too.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from lading_server import errors
from lading_server.commands import State
from lading_server.event import Stage
from lading_server.store.event_counts import DAY, FAILED, HOUR, SECOND, VALUE_MAX
from lading_server.store.event_filter import EventFilter, Field, actions_of, conditions, needs_actions
from lading_server.store.events import Row, pieces, span, within
from lading_server.store.schema import commands, erasures, event_counts, events, logs, requests, rollouts

BLANK = {"details": "{}", "salt": None, "actor_email": "", "reason": "", "error": "", "request_id": "", "source": ""}
BLANK_COMMAND = {
    **dict.fromkeys(("actor_email", "source", "reason", "correlation", "error", "evidence"), ""),
    **dict.fromkeys(("arguments_shown", "envelope"), b""),
}
BLANK_ROLLOUT = dict.fromkeys(("actor_email", "source", "reason", "correlation"), "")
COLUMNS = [
    events.c[name]
    for name in (
        *("index", "operation", "parent", "stage", "recorded_at", "actor", "actor_email", "source", "changes", "count"),
        *("outcome", "superseded_by"),
    )
]
Key = tuple[int, int, int, str, bool]
"""Of a count: width and begin in microseconds, field, value, changes."""


class CommandNeedsDetails(errors.FailedPrecondition):
    """A command on its way to its agent is proven by these details: wait for its end, or cancel it."""


def matching(
    connection: sa.Connection, organization: str, wanted: EventFilter, limit: int, before: int | None
) -> tuple[list[int], int | None]:
    """Indexes of events that match and are not erased, the newest first; before which index to go on, None at the end.

    Raises InvalidArgument for a filter that makes no sense.
    """
    actions = actions_of(connection, organization) if needs_actions(wanted) else None
    of_filter = [events.c.salt.is_not(None), *conditions(wanted, connection.dialect.name, actions)]
    low, high = span(connection, organization, wanted)
    found: list[int] = []
    reached = high if before is None else min(high, before)
    for begin, end in pieces(low, reached):
        some = within(sa.select(events.c.index), organization, begin, end).where(*of_filter)
        found += connection.scalars(some.order_by(events.c.index.desc()).limit(limit - len(found)))
        reached = begin
        if len(found) == limit:
            return found, found[-1]
    return found, reached if reached > low else None


def indexes_of(connection: sa.Connection, organization: str, ids: Sequence[str]) -> dict[str, int]:
    """Indexes of the organization's events by id."""
    found = sa.select(events.c.id, events.c.index).where(events.c.organization == organization, events.c.id.in_(ids))
    rows: Sequence[Row] = connection.execute(found).all()
    return {row.id: row.index for row in rows}


def erase(
    connection: sa.Connection, organization: str, indexes: Sequence[int], *, at: int, actor: str, reason: str
) -> int:
    """Erase the details of events of a log whose head is locked; returns how many had any.

    `at` in microseconds since the epoch. Raises CommandNeedsDetails, and then nothing may be committed.
    """
    chosen = sa.and_(events.c.organization == organization, events.c.index.in_(indexes), events.c.salt.is_not(None))
    rows: Sequence[Row] = connection.execute(sa.select(*COLUMNS).where(chosen)).all()
    if not rows:
        return 0
    erase_commands(connection, organization, rows)
    erase_rollouts(connection, organization, rows)
    move_counts(connection, organization, rows)
    connection.execute(sa.update(events).where(chosen).values(**BLANK))
    values = {"organization": organization, "erased_at": at, "actor": actor, "reason": reason}
    connection.execute(sa.insert(erasures), [{**values, "index": row.index} for row in rows])
    return len(rows)


def erase_commands(connection: sa.Connection, organization: str, rows: Sequence[Row]) -> None:
    """Erase what commands repeat of these events. Raises CommandNeedsDetails."""
    operations = {row.operation for row in rows if row.stage != Stage.COMPLETED or row.parent}
    mine = sa.and_(commands.c.organization == organization, commands.c.id.in_(operations))
    received = {row.operation for row in rows if row.stage == Stage.RECEIVED}
    on_its_way = sa.and_(commands.c.id.in_(received), commands.c.state.in_((State.PENDING, State.DISPATCHED)))
    needed = connection.execute(sa.select(commands.c.id).where(mine, on_its_way).limit(1)).scalar()
    if needed is not None:
        raise CommandNeedsDetails(
            f"the command {needed} is on its way to its agent and is proven by these details: wait for its end, or "
            "cancel it",
            metadata={"command": f"commands/{needed}"},
        )
    connection.execute(sa.update(commands).where(mine).values(**BLANK_COMMAND))


def erase_rollouts(connection: sa.Connection, organization: str, rows: Sequence[Row]) -> None:
    """Erase what rollouts, and answers that are kept for repeated calls, repeat of these events."""
    operations = {row.operation for row in rows}
    mine = sa.and_(
        rollouts.c.organization == organization,
        sa.or_(rollouts.c.id.in_(operations), rollouts.c.parent.in_(operations)),
    )
    connection.execute(sa.update(rollouts).where(mine).values(**BLANK_ROLLOUT))
    kept = sa.and_(requests.c.organization == organization, requests.c.operation.in_(operations))
    connection.execute(sa.delete(requests).where(kept))


def move_counts(connection: sa.Connection, organization: str, rows: Sequence[Row]) -> None:
    """Take these events, as far as they are counted, out of the roll-ups by e-mail and source; by actor they stay."""
    head = sa.select(logs.c.counted).where(logs.c.organization == organization)
    counted = connection.execute(head).scalar_one()
    totals: Counter[Key] = Counter()
    failures: Counter[Key] = Counter()
    for row in rows:
        if row.index < counted and (row.superseded_by is None or row.superseded_by >= counted):
            for key, sign in moves(row):
                totals[key] += sign * row.count
                failures[key] += sign * row.count * (row.outcome in FAILED)
    for key, total in totals.items():
        add_count(connection, organization, key, total, failures[key])


def moves(row: Row) -> Iterator[tuple[Key, int]]:
    """The counts that an event leaves (-1) and enters (1) when it is erased."""
    for width in (HOUR, DAY):
        begins_at = row.recorded_at - row.recorded_at % width
        if row.actor_email and row.actor_email != row.actor:
            yield (width, begins_at, Field.ACTOR, row.actor_email[:VALUE_MAX], row.changes), -1
            yield (width, begins_at, Field.ACTOR, row.actor[:VALUE_MAX], row.changes), 1
        if row.source:
            yield (width, begins_at, Field.SOURCE, row.source[:VALUE_MAX], row.changes), -1


def add_count(connection: sa.Connection, organization: str, key: Key, total: int, failed: int) -> None:
    """Add to one count; one that becomes zero is gone, and with it its value."""
    width, begins_at, field, value, changes = key
    names = {"width": width // SECOND, "begins_at": begins_at, "field": int(field), "value": value, "changes": changes}
    names["organization"] = organization
    where = [event_counts.c[name] == one for name, one in names.items()]
    more = {"total": event_counts.c.total + total, "failed": event_counts.c.failed + failed}
    if not connection.execute(sa.update(event_counts).where(*where).values(**more)).rowcount:
        connection.execute(sa.insert(event_counts).values(**names, total=total, failed=failed))
    connection.execute(sa.delete(event_counts).where(*where, event_counts.c.total == 0, event_counts.c.failed == 0))


def rewrite_counts(connection: sa.Connection) -> None:
    """Write the counts to fresh pages of the embedded database: where their tree was rebalanced, copies of values that
    it no longer holds stay in the gaps of its pages, past `secure_delete`, which only wipes what is freed."""
    if connection.dialect.name != "sqlite":
        return
    kept = "kept_counts"
    connection.exec_driver_sql(f"CREATE TEMP TABLE {kept} AS SELECT * FROM event_counts")
    connection.exec_driver_sql("DELETE FROM event_counts")
    connection.exec_driver_sql(f"INSERT INTO event_counts SELECT * FROM temp.{kept} ORDER BY 1, 2, 3, 4, 5, 6")
    connection.exec_driver_sql(f"DROP TABLE temp.{kept}")


def of_events(connection: sa.Connection, organization: str, indexes: Sequence[int]) -> dict[int, Row]:
    """When, by whom and why these events were erased, by index."""
    found = sa.select(erasures).where(erasures.c.organization == organization, erasures.c.index.in_(indexes))
    rows: Sequence[Row] = connection.execute(found).all()
    return {row.index: row for row in rows}
