"""The first schema: access, agents, containers, commands, and the log with its counts.

Every time is a number of microseconds since the epoch, UTC: the same on both databases, and exact. Events refer to
nothing by foreign key, so that nothing can delete them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TARGET_NAME = "substr(target, length(rtrim(target, replace(target, '/', ''))) + 1, 200)"

STATISTICS = {
    "sqlite_autoindex_events_1": "1000000 1000000 1",
    "events_id": "1000000 1",
    "events_operation": "1000000 2",
    "events_parent": "400000 3",
    "events_superseded": "450000 450000 1",
    "events_time": "1000000 1000000 1 1",
    "events_actor": "1000000 1000000 5000 1",
    "events_email": "600000 600000 50000 1",
    "events_action": "1000000 1000000 50000 1",
    "events_target": "700000 700000 150 1",
    "events_target_name": "700000 700000 300 1",
    "events_agent": "600000 600000 3000 1",
    "events_request": "100000 100000 1 1",
    "events_not_success": "40000 40000 8000 1",
    "events_changes": "650000 650000 1",
}
"""What ANALYZE finds in a log of a million events: without it SQLite takes an organization for a rare thing, and reads
a whole log where an index has the answer."""


def upgrade() -> None:
    op.create_table(
        "organizations",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "role_bindings",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("role", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("type", sa.SmallInteger, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("created_by", sa.Text, nullable=False),
    )
    op.create_index("tokens_newest", "tokens", ["organization", "created_at", "id"])
    # One row: raised by whatever changes who may do what, so that each server sees when to read it anew.
    op.create_table("access_version", sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False))
    op.execute("INSERT INTO access_version VALUES (0)")
    op.create_table(
        "agents",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("runtime", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("drained", sa.Boolean, nullable=False),
        sa.Column("banned", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("connected_at", sa.BigInteger),
        sa.Column("last_seen_at", sa.BigInteger),
    )
    op.create_table(
        "agent_sessions",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("agent", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("replica", sa.Text, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("journal_id", sa.Text, nullable=False),
        sa.Column("connected", sa.Boolean, nullable=False),
        sa.Column("lease_until", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "containers",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("agent", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("image_digest", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("health", sa.Text, nullable=False),
        sa.Column("exit_code", sa.Integer, nullable=False),
        sa.Column("restart_count", sa.Integer, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("as_of", sa.BigInteger, nullable=False),
    )
    op.create_index("containers_by_name", "containers", ["organization", "name"])
    op.create_table(
        "commands",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("container", sa.Text, nullable=False),
        sa.Column("verb", sa.SmallInteger, nullable=False),
        sa.Column("arguments", sa.LargeBinary, nullable=False),
        sa.Column("arguments_shown", sa.LargeBinary, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("precondition", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor_type", sa.SmallInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("actor_email", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("correlation", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("parent", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("dispatched_at", sa.BigInteger),
        sa.Column("acknowledged_at", sa.BigInteger),
        sa.Column("settled_at", sa.BigInteger),
        sa.Column("deliver_by", sa.BigInteger, nullable=False),
        sa.Column("execute_within", sa.BigInteger, nullable=False),
        sa.Column("code", sa.SmallInteger, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("container_id", sa.Text, nullable=False),
        sa.Column("event_index", sa.BigInteger, nullable=False),
    )
    op.create_index("commands_newest", "commands", ["organization", "created_at", "id"])
    op.create_index(
        "commands_unsettled",
        "commands",
        ["organization", "agent"],
        sqlite_where=sa.text("settled_at IS NULL"),
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.create_index(
        "commands_request",
        "commands",
        ["organization", "actor", "request_id"],
        unique=True,
        sqlite_where=sa.text("request_id <> ''"),
        postgresql_where=sa.text("request_id <> ''"),
    )
    op.create_table(
        "logs",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("counted", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("operation", sa.Text, nullable=False),
        sa.Column("parent", sa.Text, nullable=False),
        sa.Column("stage", sa.SmallInteger, nullable=False),
        sa.Column("occurred_at", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("actor_type", sa.SmallInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("actor_email", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("changes", sa.Boolean, nullable=False),
        sa.Column("target_type", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("outcome", sa.SmallInteger, nullable=False),
        sa.Column("code", sa.SmallInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("superseded_by", sa.BigInteger),
        sa.Column("details", sa.Text, nullable=False),
    )
    op.create_index("events_id", "events", ["id"], unique=True)
    op.create_index("events_operation", "events", ["operation"])
    op.create_index(
        "events_parent",
        "events",
        ["parent"],
        sqlite_where=sa.text("parent <> ''"),
        postgresql_where=sa.text("parent <> ''"),
    )
    op.create_index(
        "events_superseded",
        "events",
        ["organization", "superseded_by"],
        sqlite_where=sa.text("superseded_by IS NOT NULL"),
        postgresql_where=sa.text("superseded_by IS NOT NULL"),
    )
    op.create_index("events_time", "events", ["organization", "recorded_at", "index"])
    op.create_index("events_actor", "events", ["organization", "actor", "index"])
    op.create_index(
        "events_email",
        "events",
        ["organization", "actor_email", "index"],
        sqlite_where=sa.text("actor_email <> ''"),
        postgresql_where=sa.text("actor_email <> ''"),
    )
    op.create_index("events_action", "events", ["organization", "action", "index"])
    op.create_index(
        "events_target",
        "events",
        ["organization", "target", "index"],
        sqlite_where=sa.text("target <> ''"),
        postgresql_where=sa.text("target <> ''"),
    )
    op.create_index(
        "events_target_name",
        "events",
        ["organization", sa.text(TARGET_NAME), "index"],
        sqlite_where=sa.text("target <> ''"),
        postgresql_where=sa.text("target <> ''"),
    )
    op.create_index(
        "events_agent",
        "events",
        ["organization", "agent", "index"],
        sqlite_where=sa.text("agent <> ''"),
        postgresql_where=sa.text("agent <> ''"),
    )
    op.create_index(
        "events_request",
        "events",
        ["organization", "request_id", "index"],
        sqlite_where=sa.text("request_id <> ''"),
        postgresql_where=sa.text("request_id <> ''"),
    )
    op.create_index(
        "events_not_success",
        "events",
        ["organization", "outcome", "index"],
        sqlite_where=sa.text("outcome > 1"),
        postgresql_where=sa.text("outcome > 1"),
    )
    op.create_index(
        "events_changes",
        "events",
        ["organization", "index"],
        sqlite_where=sa.text("changes"),
        postgresql_where=sa.text("changes"),
    )
    op.create_table(
        "event_counts",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("width", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("field", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("begins_at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("changes", sa.Boolean, primary_key=True),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute("ANALYZE")
        rows = [{"tbl": "events", "idx": index, "stat": stat} for index, stat in STATISTICS.items()]
        op.bulk_insert(sa.table("sqlite_stat1", sa.column("tbl"), sa.column("idx"), sa.column("stat")), rows)
        op.execute("ANALYZE sqlite_schema")
