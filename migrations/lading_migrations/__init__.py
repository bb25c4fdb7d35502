"""Alembic revisions of Lading's database, the same for SQLite and PostgreSQL."""

HEAD = "0003"
"""The revision that this version of the server works with."""
