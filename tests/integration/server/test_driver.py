"""Statements by the driver's own cursor say what they say by SQLAlchemy."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from lading_server.settings import Settings
from lading_server.store import agents, driver
from lading_server.store.database import open_engine
from lading_server.store.schema import agents as table


@pytest.fixture
def connection(any_settings: Settings) -> Iterator[sa.Connection]:
    engine = open_engine(any_settings.database_url)
    with engine.connect().execution_options(lading_writes=True) as made, made.begin() as transaction:
        yield made
        transaction.rollback()
    engine.dispose()


def test_row_is_what_sqlalchemy_makes_of_it(connection: sa.Connection) -> None:
    values = {"organization": "acme", "name": "dock-1", "version": "é%s?:x", "runtime": "", "labels": "{}"}
    flags = {"drained": True, "banned": False, "quarantined": False}
    connection.execute(sa.insert(table).values(**values, **flags, created_at=2**50))
    found = agents.get(connection, "acme", "dock-1")
    expected = connection.execute(agents._with_session().where(table.c.name == "dock-1")).first()
    assert found is not None
    assert expected is not None
    assert found._mapping == expected._mapping
    assert (found.drained, found.banned) == (True, False)
    assert isinstance(found.drained, bool)
    assert agents.get(connection, "acme", "dock-2") is None


def test_error_of_the_driver_is_sqlalchemys(connection: sa.Connection) -> None:
    with pytest.raises(sa.exc.ProgrammingError if connection.dialect.name == "postgresql" else sa.exc.OperationalError):
        driver.run(connection, "SELECT * FROM nowhere")
