"""Calls that changed something, by their idempotency key, with their first answer."""

from typing import Any

import sqlalchemy as sa

from lading_server.store.driver import Prepared
from lading_server.store.schema import requests

Row = sa.Row[*tuple[Any, ...]]

_GET = Prepared(
    sa.select(requests).where(
        requests.c.organization == sa.bindparam("org"),
        requests.c.actor == sa.bindparam("of_actor"),
        requests.c.request_id == sa.bindparam("key"),
    ),
    list(requests.c),
)


def get(connection: sa.Connection, organization: str, actor: str, request_id: str) -> Row | None:
    """The call that this actor made under this key."""
    if not request_id:
        return None
    return _GET.first(connection, {"org": organization, "of_actor": actor, "key": request_id})


def insert(connection: sa.Connection, values: dict[str, Any]) -> None:
    """Keep a call; `values` by column name."""
    connection.execute(sa.insert(requests).values(values))


def forget(connection: sa.Connection, before: int) -> int:
    """Forget what was recorded before; how many there were."""
    return connection.execute(sa.delete(requests).where(requests.c.recorded_at < before)).rowcount
