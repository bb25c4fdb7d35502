"""An independent reader of an agent's journal, also while the agent runs: plain sqlite3."""

import contextlib
import pathlib
import sqlite3
from dataclasses import dataclass
from typing import Any

from lading.v1.agent_link_pb2 import Envelope
from lading.v1.commands_pb2 import VERB_RESTART, VERB_START


@dataclass(frozen=True)
class Taken:
    """A command that the agent took. `executing_at`: microseconds since 1970, None when it was never begun."""

    id: str
    envelope: bytes
    executing_at: int | None

    @property
    def starts(self) -> str:
        """The container that it may have started, or nothing."""
        envelope = Envelope.FromString(self.envelope)
        return envelope.container if self.executing_at and envelope.verb in (VERB_START, VERB_RESTART) else ""


def taken(data: pathlib.Path) -> dict[str, Taken]:
    """By id, all that the agent in this folder took."""
    return {row[0]: Taken(*row) for row in rows(data, "SELECT id, envelope, executing_at FROM commands")}


def refusals(data: pathlib.Path) -> list[tuple[str, str, str]]:
    """Kind, command and reason of all that it refused."""
    return rows(data, "SELECT kind, command, reason FROM refusals ORDER BY rowid")


def rows(data: pathlib.Path, statement: str) -> list[tuple[Any, ...]]:
    """What a query gives."""
    with contextlib.closing(sqlite3.connect(f"file:{data / 'journal.db'}?mode=ro", uri=True)) as journal:
        return journal.execute(statement).fetchall()
