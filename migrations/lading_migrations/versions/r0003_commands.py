"""Commands on many servers: answers to repeated calls, rollouts, clones, where a process is reached."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("agents", sa.Column("quarantined", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("agent_sessions", sa.Column("boot_before", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("agent_sessions", sa.Column("heard_at", sa.BigInteger))
    op.add_column("agent_sessions", sa.Column("acted_at", sa.BigInteger))
    op.add_column("boots", sa.Column("address", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("commands", sa.Column("rollout", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("commands", sa.Column("exit_code", sa.Integer))
    op.add_column("commands", sa.Column("cancel_asked_at", sa.BigInteger))
    op.create_table(
        "requests",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("actor", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("fingerprints", sa.Text, nullable=False),
        sa.Column("reply", sa.LargeBinary, nullable=False),
        sa.Column("operation", sa.Text, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
    )
    op.create_index("requests_recorded", "requests", ["recorded_at"])
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("plan", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("state_reason", sa.Text, nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("wave_ends", sa.Text, nullable=False),
        sa.Column("wave_ended_at", sa.BigInteger),
        sa.Column("targets_sha256", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor_type", sa.SmallInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("actor_email", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("correlation", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("parent", sa.Text, nullable=False),
        sa.Column("retry_of", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("settled_at", sa.BigInteger),
        sa.Column("replica", sa.Text, nullable=False),
        sa.Column("replica_until", sa.BigInteger, nullable=False),
    )
    op.create_index("rollouts_newest", "rollouts", ["organization", "created_at", "id"])
    op.create_index(
        "rollouts_unsettled",
        "rollouts",
        ["id"],
        sqlite_where=sa.text("settled_at IS NULL"),
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.create_table(
        "rollout_targets",
        sa.Column("rollout", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("container", sa.Text, nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("forgiven", sa.Boolean, nullable=False),
    )
