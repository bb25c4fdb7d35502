"""The driver's own cursor, for what every command and every batch does: SQLAlchemy's way to it takes several times as
long as the statement."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.result import SimpleResultMetaData

Row = sa.Row[*tuple[Any, ...]]


@contextlib.contextmanager
def cursor(connection: sa.Connection) -> Iterator[Any]:
    """A cursor of the driver, in the transaction of `connection`. Raises the driver's errors as SQLAlchemy's
    DBAPIError."""
    driver: Any = connection.connection.driver_connection
    with wrapped(connection), contextlib.closing(driver.cursor()) as found:
        yield found


@contextlib.contextmanager
def wrapped(connection: sa.Connection) -> Iterator[None]:
    """Raise the driver's errors as SQLAlchemy's DBAPIError."""
    try:
        yield
    except connection.dialect.loaded_dbapi.Error as failure:
        raise as_sqlalchemy(connection, failure) from failure


def as_sqlalchemy(connection: sa.Connection, failure: Exception) -> BaseException:
    """An error of the driver as SQLAlchemy's."""
    kind = connection.dialect.loaded_dbapi.Error
    return sa.exc.DBAPIError.instance("a statement by the driver", None, failure, kind, dialect=connection.dialect)


def run(connection: sa.Connection, text: str, parameters: Any = ()) -> list[Any]:
    """Run one statement to its end, in the transaction of `connection`; returns its rows. Raises DBAPIError."""
    driver: Any = connection.connection.driver_connection
    try:
        done = driver.execute(text, parameters)
        return done.fetchall() if done.description else []
    except connection.dialect.loaded_dbapi.Error as failure:
        raise as_sqlalchemy(connection, failure) from failure


class Prepared:
    """A statement that is compiled once for each kind of database. Its parameters, by the names of its bindparams, go
    to the driver as they are; columns are of kinds that come back as they are, and booleans."""

    def __init__(self, statement: "sa.sql.base.Executable", columns: "list[sa.ColumnElement[Any]]") -> None:
        """`columns`: those of its rows."""
        self._statement = statement
        self._shape = SimpleResultMetaData([column.key or "" for column in columns])
        self._places: dict[Any, int] = {column.key or "": place for place, column in enumerate(columns)}
        self._booleans = tuple(place for place, column in enumerate(columns) if isinstance(column.type, sa.Boolean))
        self._compiled: dict[str, tuple[str, dict[str, Any], list[str] | None]] = {}

    def first(self, connection: sa.Connection, values: Mapping[str, Any]) -> Row | None:
        """Run it to its end, and return its first row. Raises DBAPIError."""
        rows = self._run(connection, values)
        return self._row(rows[0]) if rows else None

    def all(self, connection: sa.Connection, values: Mapping[str, Any]) -> list[Row]:
        """Run it, and return its rows. Raises DBAPIError."""
        return [self._row(data) for data in self._run(connection, values)]

    def _run(self, connection: sa.Connection, values: Mapping[str, Any]) -> list[Any]:
        dialect = connection.dialect
        text, constants, order = self._compiled.get(dialect.name) or self._compile(dialect)
        named = {**constants, **values}
        return run(connection, text, named if order is None else [named[name] for name in order])

    def _row(self, data: Any) -> Row:
        if self._booleans:
            data = tuple(
                bool(value) if place in self._booleans and value is not None else value
                for place, value in enumerate(data)
            )
        return sa.Row(self._shape, None, self._places, data)

    def _compile(self, dialect: sa.Dialect) -> tuple[str, dict[str, Any], list[str] | None]:
        compiled: Any = self._statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        made = self._compiled[dialect.name] = (compiled.string, constants, compiled.positiontup)
        return made
