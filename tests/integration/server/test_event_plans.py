"""Which index the databases take for what a person looks for, in a log of a size where it matters."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from bench.events import fill
from lading_server.store import database, summary
from lading_server.store import events as log
from lading_server.store.event_counts import DAY, FACETS
from lading_server.store.event_filter import EventFilter, Field, Match

SIZE = 20_000
RARE: list[tuple[Field, str, str]] = [
    (Field.ACTOR, "nobody", "events_actor"),
    (Field.ACTOR, "nobody@example.com", "events_email"),
    (Field.ACTION, "rbac.role.assign", "events_action"),
    (Field.TARGET, "nothing", "events_target_name"),
    (Field.TARGET, "dock-1/nothing", "events_target"),
    (Field.AGENT, "nowhere", "events_agent"),
    (Field.OUTCOME, "UNKNOWN", "events_not_success"),
    (Field.CODE, "DATA_LOSS", "events_not_success"),
    (Field.OPERATION, "00000000-0000-7000-8000-000000000000", "events_operation"),
    (Field.OPERATION, "00000000-0000-7000-8000-000000000000", "events_parent"),
    (Field.CORRELATION, "none", "events_request"),
    (Field.EVENT, "00000000-0000-7000-8000-000000000000", "events_id"),
]


class Observed:
    """A filled log, and the plans of the statements that read its events."""

    def __init__(self, url: str) -> None:
        self.engine = database.open_engine(url)
        database.migrate(self.engine)
        self.engine.dispose()  # SQLite reads its statistics when a connection begins
        fill(self.engine, "acme", SIZE, seed=1)
        self.statements: list[tuple[str, Any]] = []
        sa.event.listen(self.engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM events" in statement and not statement.startswith("EXPLAIN"):
            self.statements.append((statement, parameters))

    def plan(self, connection: sa.Connection) -> str:
        """Of the last statement that read events."""
        explain = "EXPLAIN " if self.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        statement, parameters = self.statements[-1]
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters))


@pytest.fixture
def observed(database_url: str) -> Iterator[Observed]:
    made = Observed(database_url)
    yield made
    made.engine.dispose()


def test_rare_values_are_found_by_an_index(observed: Observed) -> None:
    with observed.engine.connect() as connection:
        for field, value, index in RARE:
            wanted = EventFilter(matches=(Match(field, (value,)),))
            log.page(connection, "acme", wanted, 100)
            assert index in observed.plan(connection), f"{field.name} {value}\n{observed.plan(connection)}"
        log.page(connection, "acme", EventFilter(words=("00000000-0000-7000-8000-000000000000",)), 100)
        plan = observed.plan(connection)
        assert {"events_operation", "events_id", "events_request"} <= {word.strip("(,") for word in plan.split()}, plan


def test_the_newest_are_read_in_the_order_of_the_log(observed: Observed) -> None:
    with observed.engine.connect() as connection:
        for wanted in (EventFilter(), EventFilter(latest_only=True, changes_only=True)):
            assert len(log.page(connection, "acme", wanted, 100).rows) == 100
            assert "sort" not in observed.plan(connection).lower()
            assert "temp b-tree" not in observed.plan(connection).lower()


def test_the_log_of_the_bench_is_counted_as_it_is(observed: Observed) -> None:
    with observed.engine.connect() as connection:
        size, counted, recorded_at = (
            getattr(log.log(connection, "acme"), name) for name in ("size", "counted", "recorded_at")
        )
        assert size == counted == SIZE
        grid = summary.grid(recorded_at - 31 * DAY, recorded_at + 1, 60)
        found = summary.summarize(connection, "acme", EventFilter(), grid, list(FACETS), 100)
        last_words = "SELECT count(*) FROM events WHERE superseded_by IS NULL"
        assert found.total == connection.exec_driver_sql(last_words).scalar()
        assert 0 < found.failed < found.total
