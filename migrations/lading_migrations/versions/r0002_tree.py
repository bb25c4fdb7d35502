"""The log becomes a Merkle tree: entries, salts, edges and tiles. Events that are there become its first leaves.

What follows is frozen: it encodes entries of version 1 as they were when this revision was made, and must not change
with the server.
"""

import base64
import hashlib
import json
import os
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

STAGES = {1: "RECEIVED", 2: "STARTED", 3: "COMPLETED", 4: "ABANDONED"}
OUTCOMES = ("PENDING", "SUCCESS", "FAILURE", "DENIED", "CANCELLED", "DEADLINE", "UNKNOWN")
ACTORS = {1: "user", 2: "service", 3: "agent", 4: "anonymous"}
CHUNK = 1_000
WIDTH = 256


def upgrade() -> None:
    op.add_column("events", sa.Column("entry", sa.LargeBinary, nullable=False, server_default=sa.text("''")))
    op.add_column("events", sa.Column("salt", sa.LargeBinary))
    op.add_column("logs", sa.Column("edge", sa.LargeBinary, nullable=False, server_default=sa.text("''")))
    op.alter_column("commands", "arguments", new_column_name="envelope")
    op.create_table(
        "tiles",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "boots",
        sa.Column("boot_id", sa.Text, primary_key=True),
        sa.Column("began_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
    )
    op.create_index(
        "events_open",
        "events",
        ["boot_id"],
        sqlite_where=sa.text("stage = 2 AND superseded_by IS NULL"),
        postgresql_where=sa.text("stage = 2 AND superseded_by IS NULL"),
    )
    if op.get_bind().dialect.name == "sqlite":
        # As in 0001: SQLite, which has not counted, shall not take an organization for the rarer thing.
        op.execute("INSERT INTO sqlite_stat1 VALUES ('events', 'events_open', '100 10')")
        op.execute("ANALYZE sqlite_schema")
    op.create_table(
        "cosignatures",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("agent", sa.Text, primary_key=True),
        sa.Column("witness_key", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.Text, nullable=False),
        sa.Column("signed_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "erasures",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("erased_at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    connection = op.get_bind()
    # Arguments are no envelope, and what is in no agent's journal cannot be proven to one any more: its time is over,
    # and the server ends it. What is in a journal goes on, and its result settles it.
    connection.execute(sa.text("UPDATE commands SET envelope = :none"), {"none": b""})
    connection.execute(sa.text("UPDATE commands SET deliver_by = 0 WHERE settled_at IS NULL AND state <= 2"))
    for (organization,) in connection.execute(sa.text("SELECT organization FROM logs ORDER BY organization")).all():
        grow(connection, organization)


def grow(connection: sa.Connection, organization: str) -> None:
    """Make leaves of the events of one log, in their order; memory is bounded by CHUNK."""
    roots: list[list[bytes]] = []
    edge: list[bytes] = []
    size = 0
    # Numbers were given to the events of all logs together; from now on those of one log are dense.
    sequences: dict[str, int] = {}
    while True:
        rows = connection.execute(
            sa.text(
                'SELECT * FROM events WHERE organization = :log AND "index" >= :first ORDER BY "index" LIMIT :chunk'
            ),
            {"log": organization, "first": size, "chunk": CHUNK},
        ).all()
        if not rows:
            break
        updates = []
        for row in rows:
            values = row._mapping
            assert values["index"] == size, f"the log {organization} has no event {size}"
            salt = os.urandom(16)
            details = details_of(values)
            sequence = sequences[row.boot_id] = sequences.get(row.boot_id, 0) + 1
            entry = entry_of({**values, "sequence": sequence}, hashlib.sha256(salt + details.encode()).digest())
            update = {"log": organization, "at": size, "entry": entry, "salt": salt, "details": details}
            updates.append({**update, "sequence": sequence})
            carry = hashlib.sha256(b"\0" + entry).digest()
            keep(connection, organization, roots, 0, size, carry)
            level = 0
            while size >> level & 1:
                carry = hashlib.sha256(b"\1" + edge.pop() + carry).digest()
                level += 1
                if level % 8 == 0:
                    keep(connection, organization, roots, level // 8, size >> level, carry)
            edge.append(carry)
            size += 1
        connection.execute(
            sa.text(
                "UPDATE events SET entry = :entry, salt = :salt, details = :details, sequence = :sequence"
                ' WHERE organization = :log AND "index" = :at'
            ),
            updates,
        )
    for level, hashes in enumerate(roots):
        if level and hashes:
            put(connection, organization, level, (size >> 8 * level) // WIDTH, hashes)
    connection.execute(
        sa.text("UPDATE logs SET edge = :edge WHERE organization = :log"),
        {"edge": b"".join(edge), "log": organization},
    )


def keep(
    connection: sa.Connection, organization: str, roots: list[list[bytes]], level: int, index: int, found: bytes
) -> None:
    """Put a hash into the open tile of its level, and write the tile once it is full."""
    while len(roots) <= level:
        roots.append([])
    roots[level].append(found)
    if len(roots[level]) == WIDTH:
        put(connection, organization, level, index // WIDTH, roots[level])
        roots[level] = []


def put(connection: sa.Connection, organization: str, level: int, index: int, hashes: list[bytes]) -> None:
    connection.execute(
        sa.text('INSERT INTO tiles (organization, level, "index", hashes) VALUES (:log, :level, :at, :hashes)'),
        {"log": organization, "level": level, "at": index, "hashes": b"".join(hashes)},
    )


def dump(value: Any) -> str:
    """RFC 8785: keys by their UTF-16 code units, numbers as ECMAScript writes doubles."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{dump(key)}:{dump(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    if isinstance(value, float) or (type(value) is int and abs(value) >= 2**53):
        return number(float(value))
    return json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    """A double as ECMAScript writes it: the shortest digits that read back as the same one."""
    if value.is_integer() and abs(value) < 1e21:
        whole = f"{abs(value)!r}".partition("e")[0].replace(".", "").rstrip("0") or "0"
        digits = str(int(abs(value)))
        return ("-" if value < 0 else "") + whole[: len(digits)].ljust(len(digits), "0")
    mantissa, _, exponent = f"{value!r}".partition("e")
    power = int(exponent or 0)
    if not exponent:
        return mantissa
    if -7 < power < 0:
        sign, digits = ("-", mantissa[1:]) if value < 0 else ("", mantissa)
        return f"{sign}0.{'0' * (-power - 1)}{digits.replace('.', '')}"
    return f"{mantissa.removesuffix('.0')}e{power:+d}"


def details_of(row: Any) -> str:
    details = json.loads(row["details"])
    actor = details.pop("actor", {})
    details["actor"] = {key: value for key, value in {**actor, "email": row["actor_email"]}.items() if value}
    for name in ("agent", "error", "reason", "request_id", "source"):
        if row[name]:
            details[name] = row[name]
    details["changes"] = bool(row["changes"])
    details["count"] = row["count"]
    return dump(details)


def entry_of(row: Any, commitment: bytes) -> bytes:
    targets = json.loads(row["details"]).get("targets") or (
        [[row["target_type"], row["target"]]] if row["target_type"] or row["target"] else []
    )
    return dump(
        {
            "action": row["action"],
            "actor": {"id": row["actor"], "type": ACTORS[row["actor_type"]]},
            "code": row["code"],
            "details": base64.b64encode(commitment).decode(),
            "emitter": {"boot_id": row["boot_id"], "sequence": row["sequence"]},
            "id": row["id"],
            "occurred_at": row["occurred_at"],
            "operation": row["operation"],
            "organization": row["organization"],
            "outcome": OUTCOMES[row["outcome"]],
            "parent": row["parent"],
            "recorded_at": row["recorded_at"],
            "stage": STAGES[row["stage"]],
            "targets": [{"id": target, "type": kind} for kind, target in targets],
            "v": 1,
        }
    ).encode()
