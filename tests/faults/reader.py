"""An independent reader of the database: plain sqlite3 or psycopg, and nothing of Lading."""

import contextlib
import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Any

import psycopg

RECEIVED, STARTED, COMPLETED, ABANDONED = 1, 2, 3, 4


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    """What a query gives. `url`: as for `lading server run --database`."""
    if url.startswith("sqlite:///"):
        with contextlib.closing(
            sqlite3.connect(f"file:{url.removeprefix('sqlite:///')}?mode=ro", uri=True)
        ) as database:
            return database.execute(statement).fetchall()
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


@dataclass(frozen=True)
class Recorded:
    """One event, as far as the tests look at it."""

    organization: str
    index: int
    id: str
    operation: str
    stage: int
    action: str
    outcome: int
    code: int
    target: str


def events(url: str) -> list[Recorded]:
    """The whole log of every organization, in order."""
    columns = 'organization, "index", id, operation, stage, action, outcome, code, target'
    return [Recorded(*row) for row in rows(url, f'SELECT {columns} FROM events ORDER BY organization, "index"')]


def check_log(url: str) -> list[Recorded]:
    """Assert what holds of every log at any time, and return its events. The server must not write meanwhile."""
    found = events(url)
    sizes = Counter(event.organization for event in found)
    for organization, size in sizes.items():
        indexes = [event.index for event in found if event.organization == organization]
        assert indexes == list(range(size)), f"the log of {organization} has gaps or repeats"
    heads = dict(rows(url, "SELECT organization, size FROM logs"))
    assert {organization: size for organization, size in heads.items() if size} == dict(sizes)
    ends = Counter(event.operation for event in found if event.stage == COMPLETED)
    assert [operation for operation, count in ends.items() if count > 1] == [], "operations with more than one end"
    return found
