"""Calls that changed something, by their idempotency key, with their first answer."""

from typing import Any

import sqlalchemy as sa

from lading_server.store.schema import requests

Row = sa.Row[*tuple[Any, ...]]


def get(connection: sa.Connection, organization: str, actor: str, request_id: str) -> Row | None:
    """The call that this actor made under this key."""
    return connection.execute(
        sa.select(requests).where(
            requests.c.organization == organization,
            requests.c.actor == actor,
            requests.c.request_id == request_id,
        )
    ).first()


def insert(connection: sa.Connection, values: dict[str, Any]) -> None:
    """Keep a call; `values` by column name."""
    connection.execute(sa.insert(requests).values(values))


def forget(connection: sa.Connection, before: int) -> int:
    """Forget what was recorded before; how many there were."""
    return connection.execute(sa.delete(requests).where(requests.c.recorded_at < before)).rowcount
