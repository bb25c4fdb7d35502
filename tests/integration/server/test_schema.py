"""The tables that queries are written for are those that the migrations make."""

from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import lading_migrations
from lading_server.store import database
from lading_server.store.schema import metadata


@pytest.fixture
def engine(database_url: str) -> Any:
    made = database.open_engine(database_url)
    yield made
    made.dispose()


# SQLite cannot tell Alembic of expressions: the next test compares them.
@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_migrations_make_the_tables_of_the_schema(engine: sa.Engine) -> None:
    assert database.migrate(engine) == lading_migrations.HEAD
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_indexes_are_the_same_down_to_their_conditions(engine: sa.Engine, tmp_path: Any) -> None:
    """What the comparison of Alembic leaves out: conditions and expressions of indexes, WITHOUT ROWID."""
    database.migrate(engine)
    made = definitions(engine)
    with engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
        connection.exec_driver_sql("DROP TABLE alembic_version")
        metadata.drop_all(connection)
        metadata.create_all(connection)
    assert {name: text for name, text in made.items() if "alembic" not in name} == definitions(engine)


def definitions(engine: sa.Engine) -> dict[str, str]:
    """Every index, and on SQLite every table, as the database itself describes it."""
    query = (
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        if engine.dialect.name == "postgresql"
        else "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    )
    with engine.connect() as connection:
        return {name: " ".join(text.split()) for name, text in connection.exec_driver_sql(query)}


def test_migration_is_safe_to_repeat(engine: sa.Engine) -> None:
    database.migrate(engine)
    assert database.migrate(engine) == lading_migrations.HEAD
    database.check_revision(engine)


def test_database_of_another_revision_is_refused_with_the_command_to_run(engine: sa.Engine) -> None:
    with pytest.raises(database.WrongRevision, match="lading server init"):
        database.check_revision(engine)
    database.migrate(engine)
    with engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'r9999'")
    with pytest.raises(database.WrongRevision, match="lading server migrate"):
        database.check_revision(engine)
