"""What the sweep of each second reads of the commands: those that have not ended, however many there were."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from lading_server.clock import new_id
from lading_server.commands import State
from lading_server.store import commands as store
from lading_server.store import database
from lading_server.store.schema import agent_sessions, commands

ENDED, OPEN = 10_000, 48


def filled(table: sa.Table, **values: Any) -> dict[str, Any]:
    """A row with nothing in it but these values."""
    kinds = {sa.Text: "", sa.LargeBinary: b"", sa.Boolean: False}
    empty = {one.name: None if one.nullable else kinds.get(type(one.type), 0) for one in table.c}
    return {**empty, **values}


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """A database whose commands have nearly all ended."""
    made = database.open_engine(database_url)
    database.migrate(made)
    rows = [
        filled(commands, id=new_id(), organization="acme", agent=f"dock-{number % 101}", event_index=number)
        | {"state": int(State.SUCCEEDED), "created_at": number, "settled_at": number}
        for number in range(ENDED)
    ]
    for number, row in enumerate(rows[:OPEN]):
        state = State.PENDING if number % 2 else State.DISPATCHED
        row |= {"state": int(state), "settled_at": None, "deliver_by": 5, "cancel_asked_at": 1, "dispatched_at": 1}
    with made.begin() as connection:
        connection.execute(sa.insert(commands), rows)
        of = {"organization": "acme", "replica": "this", "connected": True}
        sessions = [filled(agent_sessions, agent=f"dock-{number}", **of) for number in range(101)]
        connection.execute(sa.insert(agent_sessions), sessions)
        connection.exec_driver_sql("ANALYZE")
    made.dispose()  # SQLite reads its statistics when a connection begins
    yield made
    made.dispose()


def test_sweep_reads_only_what_has_not_ended(engine: sa.Engine) -> None:
    plans: list[str] = []

    def note(connection: sa.Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM commands" in statement and not statement.startswith("EXPLAIN"):
            explain = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
            rows = connection.exec_driver_sql(explain + statement, parameters)
            plans.append("\n".join(str(row[-1]) for row in rows))

    lists: list[tuple[Callable[..., Sequence[Any]], Any, int]] = [
        (store.list_overdue, (10,), OPEN // 2),
        (store.list_lost, (10,), OPEN // 2),
        (store.list_cancels, ("this",), OPEN // 2),
    ]
    with engine.connect() as connection:
        sa.event.listen(connection, "before_cursor_execute", note)
        for function, of, count in lists:
            rows = [*function(connection, *of, store.FIRST, 5)]
            while len(rows) % 5 == 0 and (more := function(connection, *of, key_of(rows[-1]), 5)):
                rows += more
            assert [key_of(row) for row in rows] == sorted({key_of(row) for row in rows}), function.__name__
            assert len(rows) == count, function.__name__
        waiting = store.list_waiting(connection, "this", 1, ("", ""), 500)
        after = store.list_waiting(connection, "this", 1, tuple(waiting[0]), 500)
        assert (len(waiting) > 1, after) == (True, waiting[1:])
        assert len(store.list_silent(connection, "this", 10, 500)) == OPEN // 2
    for plan in plans:
        assert "commands_unsettled" in plan, plan


def key_of(row: Any) -> store.After:
    return row.organization, row.agent, row.id
