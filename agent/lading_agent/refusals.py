"""What an agent refused, read from its journal beside it: for people, and for whoever must be shown the evidence."""

import contextlib
import pathlib
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.message import DecodeError

from lading.v1.agent_link_pb2 import ConnectResponse, Growth
from lading_agent.errors import JournalError
from lading_agent.journal import SCHEMA_VERSION

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Refusal:
    """One thing that was refused.

    `kind`: `log`, which did not extend the one that the agent saw, or `command`. `command`: its id, also of the one
    that such a log came with. `known`: the signed checkpoint that the agent had; empty before first contact.
    `frame`: what the server sent, a ConnectResponse, at most 256 KB of it.
    """

    at: datetime
    kind: str
    command: str
    reason: str
    known: str
    frame: bytes

    @property
    def shown(self) -> str:
        """The signed checkpoint that the server showed with it; empty when there was none."""
        return self._growth().checkpoint

    @property
    def log_key(self) -> str:
        """The key that the server said was the log's."""
        return self._growth().log_key

    def _growth(self) -> Growth:
        try:
            frame = ConnectResponse.FromString(self.frame)
        except DecodeError:
            return Growth()
        return frame.dispatch.growth if frame.WhichOneof("frame") == "dispatch" else frame.growth


def read(data: pathlib.Path) -> list[Refusal]:
    """All that the agent of this folder refused, oldest first, also while it runs. Writes nothing.

    Raises JournalError.
    """
    path = data / "journal.db"
    if not path.exists():
        raise JournalError(f"there is no journal in {data}: no agent ran with this --data folder")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as journal:
            (version,) = journal.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA_VERSION:
                newer = (
                    "update Lading" if version > SCHEMA_VERSION else "run the agent once, which brings it up to date"
                )
                raise JournalError(f"the journal in {data} has version {version}, known is {SCHEMA_VERSION}: {newer}")
            query = "SELECT at, kind, command, reason, checkpoint, frame FROM refusals ORDER BY rowid"
            return [Refusal(EPOCH + timedelta(microseconds=at), *rest) for at, *rest in journal.execute(query)]
    except sqlite3.Error as error:
        raise JournalError(f"the journal in {data} cannot be read: {error}") from None
