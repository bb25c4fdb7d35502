"""Who has a stopped server in hand: its database, and the key that signs its logs. But no agent's key."""

import json
import pathlib
import shutil
import sqlite3
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading.transparency import merkle, note
from lading.transparency.jcs import canonical
from lading.transparency.tiles import WIDTH, tiles_of
from tests.trees import root_of

ORGANIZATION = "acme"


class Forger:
    """Works on the data directory of a stopped server with its embedded database."""

    def __init__(self, data: pathlib.Path) -> None:
        self.data = data
        self.url = f"sqlite:///{data / 'lading.db'}"

    def rewrite(self, action: str, actor: str) -> int:
        """Lay the first call of this action at another's door, as if it had always been so: its row, its entry, and the
        whole tree above it. Its index."""
        with sqlite3.connect(self.data / "lading.db") as database:
            query = 'SELECT "index", entry FROM events WHERE organization = ? AND action = ? ORDER BY "index" LIMIT 1'
            index, raw = database.execute(query, (ORGANIZATION, action)).fetchone()
            entry = json.loads(raw)
            assert entry["actor"]["id"] != actor
            entry["actor"]["id"] = actor
            change = 'UPDATE events SET entry = ?, actor = ? WHERE organization = ? AND "index" = ?'
            database.execute(change, (canonical(entry), actor, ORGANIZATION, index))
            self._rebuild(database)
        database.close()
        self.forget_signed()
        return int(index)

    def forget_signed(self) -> None:
        """The signer believes that it never signed anything."""
        shutil.rmtree(self.data / "signed")

    def backup(self, folder: pathlib.Path) -> None:
        """Keep the database as it is now."""
        copy(self.data / "lading.db", folder / "backup.db")

    def restore(self, folder: pathlib.Path) -> None:
        """Bring back what was kept."""
        copy(folder / "backup.db", self.data / "lading.db")

    def cosignatures(self) -> list[tuple[Any, ...]]:
        """What the agents signed, as the server keeps it."""
        return self._run("SELECT * FROM cosignatures ORDER BY agent")

    def put_cosignature(self, row: tuple[Any, ...]) -> None:
        """Show this one as an agent's newest; the server may run."""
        self._run(f"INSERT OR REPLACE INTO cosignatures VALUES ({', '.join('?' * len(row))})", row)

    def drop_cosignatures(self) -> None:
        """Show none; the server may run."""
        self._run("DELETE FROM cosignatures")

    def invent_cosignature(self, agent: str) -> None:
        """Show a new key as that of an agent, and its cosignature of the log as it is; the server may run."""
        private = Ed25519PrivateKey.generate()
        key = note.Key(f"{ORGANIZATION}/{agent}", note.COSIGNATURE, private.public_key().public_bytes_raw())
        leaves = self.leaves()
        tree = note.Checkpoint(self._origin, len(leaves), root_of(leaves))
        at = int(time.time())
        blob = at.to_bytes(8, "big") + private.sign(note.cosigned(tree.text(), at))
        line = note.format_signature(key, blob)
        self.put_cosignature((ORGANIZATION, agent, str(key), tree.size, tree.root, line, at * 1_000_000))

    def leaves(self) -> list[bytes]:
        """Of the log as it is; the server may run."""
        query = 'SELECT entry FROM events WHERE organization = ? ORDER BY "index"'
        return [merkle.leaf_hash(entry) for (entry,) in self._run(query, (ORGANIZATION,))]

    @property
    def _origin(self) -> str:
        return f"{(self.data / 'log-name').read_text().strip()}/{ORGANIZATION}"

    def _run(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.data / "lading.db", timeout=20) as database:
            found = database.execute(statement, values).fetchall()
        database.close()
        return found

    def _rebuild(self, database: sqlite3.Connection) -> None:
        """Tiles and head of what the entries are now."""
        query = 'SELECT entry FROM events WHERE organization = ? ORDER BY "index"'
        leaves = [merkle.leaf_hash(entry) for (entry,) in database.execute(query, (ORGANIZATION,))]
        levels = [leaves]
        while len(levels[-1]) >= WIDTH:
            below = levels[-1]
            levels.append([root_of(below[at : at + WIDTH]) for at in range(0, len(below) // WIDTH * WIDTH, WIDTH)])
        database.execute("DELETE FROM tiles WHERE organization = ?", (ORGANIZATION,))
        for level, index, width in tiles_of(len(leaves)):
            if level or width == WIDTH:
                hashes = b"".join(levels[level][index * WIDTH : index * WIDTH + width])
                database.execute("INSERT INTO tiles VALUES (?, ?, ?, ?)", (ORGANIZATION, level, index, hashes))
        edge, begin = [], 0
        for level in range(len(leaves).bit_length() - 1, -1, -1):
            if len(leaves) >> level & 1:
                edge.append(root_of(leaves[begin : begin + (1 << level)]))
                begin += 1 << level
        database.execute("UPDATE logs SET edge = ? WHERE organization = ?", (b"".join(edge), ORGANIZATION))


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """All of one database over another."""
    with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
        one.backup(other)
    one.close()
    other.close()
