"""Engine, pool and revision of the database."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

import lading_migrations
from lading_server import errors

READERS_MAX = 8
CONNECT_SECONDS = 2
REVISION = sa.table("alembic_version", sa.column("version_num")).c.version_num


class WrongRevision(errors.Error):
    """The database is of another revision than this server."""


def sqlite_url(data: pathlib.Path) -> str:
    """URL of the embedded database in the data directory."""
    return f"sqlite:///{data / 'lading.db'}"


def open_engine(url: str) -> sa.Engine:
    """Engine for a `sqlite:///…` or `postgresql://…` URL; connects lazily. Raises ValueError for any other."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError("not a URL: use sqlite:///FILE or postgresql://USER@HOST/NAME") from None
    if parsed.get_backend_name() == "sqlite":
        engine = sa.create_engine(
            parsed,
            poolclass=sa.QueuePool,
            pool_size=READERS_MAX + 2,
            max_overflow=0,
            connect_args={"check_same_thread": False, "timeout": CONNECT_SECONDS},
        )
        sa.event.listen(engine, "connect", prepare_sqlite)
        sa.event.listen(engine, "begin", begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=READERS_MAX + 2,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "application_name": "lading",
                # A peer that is stopped, not gone, must not hold a caller longer than the promise of 2 s.
                "tcp_user_timeout": CONNECT_SECONDS * 1000,
                "options": "-c timezone=UTC -c statement_timeout=10000",
            },
        )
    raise ValueError(f"{parsed.get_backend_name()} is not supported: use sqlite:///FILE or postgresql://…")


def prepare_sqlite(connection: Any, _record: Any) -> None:
    """Durable writes, readers that never wait for the writer, and transactions begun by us."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA cache_size=-65536")
    cursor.execute("PRAGMA mmap_size=268435456")
    cursor.execute("PRAGMA secure_delete=ON")  # what is erased is gone from the file, too
    cursor.close()


def begin_sqlite(connection: sa.Connection) -> None:
    """A writer takes the lock at once, so that it never fails half-way for want of it."""
    writes = connection.get_execution_options().get("lading_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Raise StoreUnavailable, with the database's own words, where the driver says that it failed."""
    try:
        yield
    except sa.exc.DBAPIError as failure:
        said = " ".join(str(failure.orig).split())
        raise errors.StoreUnavailable(f"the database does not answer: {said}") from failure


def migrate(engine: sa.Engine) -> str:
    """Bring the database to this version's revision; returns that revision. Safe to repeat and to race."""
    # A quarter of the time in which a server starts, and a server that runs has no use for it.
    from alembic import command as alembic
    from alembic.config import Config

    with engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7443)"))
        config = Config()
        config.set_main_option("script_location", os.path.dirname(lading_migrations.__file__))
        config.attributes["connection"] = connection
        alembic.upgrade(config, "head")
    return lading_migrations.HEAD


def check_revision(engine: sa.Engine) -> None:
    """Raise WrongRevision, with the command to run, unless the database is of this server's revision."""
    with engine.connect() as connection:
        known = sa.inspect(connection).has_table("alembic_version")
        found = connection.scalar(sa.select(REVISION)) if known else None
    if found == lading_migrations.HEAD:
        return
    if found is None:
        raise WrongRevision("the database is empty: run `lading server init`, or `lading server migrate`")
    raise WrongRevision(
        f"the database is of revision {found}, this server needs {lading_migrations.HEAD}: "
        "run `lading server migrate` (newer databases need a newer server)"
    )
