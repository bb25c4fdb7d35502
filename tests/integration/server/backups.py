"""Copies of whole databases, and what puts them back."""

import pathlib
import sqlite3
from typing import Any

import psycopg

from lading_server.settings import Settings


class Backup:
    """A copy of the whole database as it is now."""

    def __init__(self, settings: Settings, folder: pathlib.Path) -> None:
        self._url = settings.database_url
        self._file = folder / "backup"
        if self._url.startswith("sqlite"):
            copy(self._url.removeprefix("sqlite:///"), self._file)
        else:
            self._tables = self._read()

    def restore(self) -> None:
        """As a restore does: all of it, in one transaction."""
        if self._url.startswith("sqlite"):
            copy(self._file, self._url.removeprefix("sqlite:///"))
            return
        with psycopg.connect(self._url) as connection, connection.cursor() as cursor:
            for name, rows in self._tables.items():
                cursor.execute(f"DELETE FROM {name}".encode())
                if rows:
                    marks = ", ".join(["%s"] * len(rows[0]))
                    cursor.executemany(f"INSERT INTO {name} VALUES ({marks})".encode(), rows)

    def _read(self) -> dict[str, list[Any]]:
        with psycopg.connect(self._url) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            return {name: connection.execute(f"SELECT * FROM {name}".encode()).fetchall() for (name,) in tables}


def copy(source: str | pathlib.Path, target: str | pathlib.Path) -> None:
    with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
        one.backup(other)
    one.close()
    other.close()
