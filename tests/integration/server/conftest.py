"""Databases that `lading server init` made, once for all tests: each test gets a copy of its own."""

import asyncio
import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from lading_server import boots, bootstrap, dispatch
from lading_server.interceptors import repeats
from lading_server.ledger import checkpoints, counts, ledger
from lading_server.roles import Role
from lading_server.services import cosignatures, leases, upkeep
from lading_server.settings import Settings
from lading_server.store import access, database, reader, schema
from tests.integration.server.running import ADMIN, ORGANIZATION, OTHER_ORGANIZATION
from tests.postgres import Cluster

LISTEN = "127.0.0.1:0"
OWN_LIMITS = (
    (ledger, "ANSWER_SECONDS", ledger.ANSWER_SECONDS),
    (reader, "ANSWER_SECONDS", reader.ANSWER_SECONDS),
    (reader, "_SETTINGS", reader._SETTINGS),
)
"""As the product has them."""
LONG_LIMITS = (
    (ledger, "ANSWER_SECONDS", 30.0),
    (reader, "ANSWER_SECONDS", 30.0),
    (reader, "_SETTINGS", reader._SETTINGS.replace(str(int(reader.ANSWER_SECONDS * 1000)), "30000")),
)


def initialize(data: pathlib.Path, url: str = "") -> Settings:
    """A new database with the organizations acme and globex, and ada as the admin of both."""
    settings = Settings(data, LISTEN, url)
    bootstrap.initialize(settings, ORGANIZATION, ADMIN, f"{ADMIN}@acme.example", 3600)
    engine = database.open_engine(settings.database_url)
    with engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
        access.create_organization(connection, OTHER_ORGANIZATION, 0)
        access.assign_role(connection, OTHER_ORGANIZATION, ADMIN, Role.ADMIN, 0, ADMIN)
    engine.dispose()
    return settings


@pytest.fixture(scope="session")
def newborn(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data directory with key and embedded database: copy it."""
    settings = initialize(tmp_path_factory.mktemp("newborn") / "data")
    # Nothing of it is left in the log beside the database, so that copying the one file is enough.
    engine = database.open_engine(settings.database_url)
    with engine.connect() as connection:
        connection.commit()
        connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[attr-defined]
    engine.dispose()
    return settings


@pytest.fixture(scope="session")
def newborn_on_postgresql(newborn: Settings, postgres: Cluster) -> tuple[str, dict[str, list[Any]]]:
    """URL of a PostgreSQL database of the same key, and the rows that it was born with."""
    url = initialize(newborn.data, postgres.fresh_database()).database
    with psycopg.connect(url) as connection:
        tables = {
            table.name: connection.execute(f"SELECT * FROM {table.name}".encode()).fetchall()
            for table in schema.metadata.sorted_tables
        }
    return url, tables


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told UNAVAILABLE, and no command is sent a second time, because this machine is busy."""
    for limit in LONG_LIMITS:
        monkeypatch.setattr(*limit)
    monkeypatch.setattr(dispatch, "RESEND_MICROSECONDS", 3600 * 1_000_000)


@contextlib.contextmanager
def own_limits() -> Iterator[None]:
    """The product's own limits again, for what is measured."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in OWN_LIMITS:
            patch.setattr(*limit)
        yield


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server hands its ledger nothing of its own accord."""

    async def rest(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(counts, "keep", rest)
    monkeypatch.setattr(repeats, "forget", rest)
    for module, name in (
        (checkpoints, "PAUSE_SECONDS"),
        (boots, "SEEN_SECONDS"),
        (upkeep, "GROWTH_SECONDS"),
        (cosignatures, "WRITE_SECONDS"),
        (leases, "LOOK_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 3600.0)


@pytest.fixture
def settings(newborn: Settings, tmp_path: pathlib.Path, patient: None) -> Settings:
    """For a server on SQLite, with organizations and an admin."""
    data = tmp_path / "data"
    shutil.copytree(newborn.data, data)
    return Settings(data, LISTEN)


@pytest.fixture
def settings_on_postgresql(settings: Settings, newborn_on_postgresql: tuple[str, dict[str, list[Any]]]) -> Settings:
    """For a server on PostgreSQL, with organizations and an admin. The database is the same one, as it was born."""
    url, tables = newborn_on_postgresql
    with psycopg.connect(url, options="-c lock_timeout=30000") as connection, connection.cursor() as cursor:
        for name, rows in tables.items():
            cursor.execute(f"DELETE FROM {name}".encode())  # TRUNCATE takes a second, for it makes new files
            if rows:
                marks = ", ".join(["%s"] * len(rows[0]))
                cursor.executemany(f"INSERT INTO {name} VALUES ({marks})".encode(), rows)
    return Settings(settings.data, LISTEN, url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def any_settings(request: pytest.FixtureRequest) -> Settings:
    """For a server on each database."""
    return request.getfixturevalue("settings" if request.param == "sqlite" else "settings_on_postgresql")  # type: ignore[no-any-return]
