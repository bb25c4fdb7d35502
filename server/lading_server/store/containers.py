"""Containers as the agents last reported them."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from lading_server.store.driver import Prepared
from lading_server.store.schema import agent_sessions, containers

Row = sa.Row[*tuple[Any, ...]]

_INSERT = sa.insert(containers)
_DROP_ALL = Prepared(
    sa.delete(containers).where(
        containers.c.organization == sa.bindparam("org"), containers.c.agent == sa.bindparam("of_agent")
    ),
    [],
)
_DROP = sa.delete(containers).where(
    containers.c.organization == sa.bindparam("org"),
    containers.c.agent == sa.bindparam("of_agent"),
    containers.c.name.in_(sa.bindparam("names", expanding=True)),
)


def replace(connection: sa.Connection, organization: str, agent: str, found: Iterable[dict[str, Any]]) -> None:
    """These are all containers of the agent."""
    _DROP_ALL.first(connection, {"org": organization, "of_agent": agent})
    rows = [{"organization": organization, "agent": agent, **values} for values in found]
    if rows:
        connection.execute(_INSERT, rows)


def put(connection: sa.Connection, organization: str, agent: str, found: Iterable[dict[str, Any]]) -> None:
    """These containers of the agent are now so; `found` by column name."""
    rows = [{"organization": organization, "agent": agent, **values} for values in found]
    if not rows:
        return
    drop(connection, organization, agent, [row["name"] for row in rows])
    connection.execute(_INSERT, rows)


def drop(connection: sa.Connection, organization: str, agent: str, names: Collection[str]) -> None:
    """These containers of the agent are gone."""
    if names:
        connection.execute(_DROP, {"org": organization, "of_agent": agent, "names": list(names)})


def get(connection: sa.Connection, organization: str, agent: str, name: str) -> Row | None:
    """One container, and whether its agent is connected."""
    return connection.execute(
        _with_session().where(
            containers.c.organization == organization, containers.c.agent == agent, containers.c.name == name
        )
    ).first()


def list_by_name(
    connection: sa.Connection,
    organization: str,
    *,
    after: tuple[str, str],
    limit: int,
    agent: str = "",
    name: str = "",
    states: Collection[str] = (),
    labels: Mapping[str, str] | None = None,
) -> Sequence[Row]:
    """Containers by agent and name, after the pair `after`."""
    query = _with_session().where(
        containers.c.organization == organization,
        sa.tuple_(containers.c.agent, containers.c.name) > after,
    )
    if agent:
        query = query.where(containers.c.agent == agent)
    if name:
        query = query.where(containers.c.name == name)
    if states:
        query = query.where(containers.c.state.in_(sorted(states)))
    for key, value in (labels or {}).items():
        # Labels are stored as JSON with sorted keys and fixed separators, so that a pair is a piece of that text.
        pair = json.dumps({key: value}, sort_keys=True)[1:-1]
        query = query.where(containers.c.labels.contains(pair, autoescape=True))
    return connection.execute(query.order_by(containers.c.agent, containers.c.name).limit(limit)).all()


def list_known(
    connection: sa.Connection, organization: str, wanted: Collection[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Which of these (agent, name) pairs are reported."""
    agents_wanted = sorted({agent for agent, _ in wanted})
    found: set[tuple[str, str]] = set()
    for begin in range(0, len(agents_wanted), 500):
        rows = connection.execute(
            sa.select(containers.c.agent, containers.c.name).where(
                containers.c.organization == organization, containers.c.agent.in_(agents_wanted[begin : begin + 500])
            )
        )
        found.update((row.agent, row.name) for row in rows)
    return found & set(wanted)


def _with_session() -> sa.Select[Any]:
    return sa.select(containers, agent_sessions.c.connected, agent_sessions.c.lease_until).select_from(
        containers.outerjoin(
            agent_sessions,
            sa.and_(
                agent_sessions.c.organization == containers.c.organization,
                agent_sessions.c.agent == containers.c.agent,
            ),
        )
    )
