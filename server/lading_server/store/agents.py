"""Agents and their sessions in the database."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from lading_server.store.driver import Prepared
from lading_server.store.schema import agent_sessions, agents, containers

Row = sa.Row[*tuple[Any, ...]]


def get(connection: sa.Connection, organization: str, name: str) -> Row | None:
    """One agent with its session."""
    return _get().first(connection, {"org": organization, "agent": name})


def list_by_name(connection: sa.Connection, organization: str, after: str, limit: int) -> Sequence[Row]:
    """Agents with their sessions, by name, after the name `after`."""
    return connection.execute(
        _with_session()
        .where(agents.c.organization == organization, agents.c.name > after)
        .order_by(agents.c.name)
        .limit(limit)
    ).all()


def _with_session() -> sa.Select[Any]:
    return sa.select(
        agents,
        agent_sessions.c.epoch,
        agent_sessions.c.replica,
        agent_sessions.c.lease_until,
        agent_sessions.c.connected,
        agent_sessions.c.boot_id,
        agent_sessions.c.journal_id,
        agent_sessions.c.boot_before,
        agent_sessions.c.heard_at,
        agent_sessions.c.acted_at,
    ).select_from(
        agents.outerjoin(
            agent_sessions,
            sa.and_(agent_sessions.c.organization == agents.c.organization, agent_sessions.c.agent == agents.c.name),
        )
    )


def list_held(connection: sa.Connection, replica: str) -> Sequence[Row]:
    """Agents whose newest session is with this process: its epoch, and whether it may be."""
    same = sa.and_(agents.c.organization == agent_sessions.c.organization, agents.c.name == agent_sessions.c.agent)
    held = sa.select(
        agent_sessions.c.organization,
        agent_sessions.c.agent,
        agent_sessions.c.epoch,
        agents.c.banned,
        agents.c.quarantined,
    )
    return connection.execute(held.join(agents, same).where(agent_sessions.c.replica == replica)).all()


def count_containers(connection: sa.Connection, organization: str) -> dict[str, tuple[int, int]]:
    """Containers by agent: those that run, and all."""
    running = sa.func.sum(sa.case((containers.c.state == "running", 1), else_=0))
    found = connection.execute(
        sa.select(containers.c.agent, running, sa.func.count())
        .where(containers.c.organization == organization)
        .group_by(containers.c.agent)
    )
    return {agent: (int(runs), number) for agent, runs, number in found}


def connect(
    connection: sa.Connection,
    organization: str,
    name: str,
    *,
    at: int,
    version: str,
    runtime: str,
    labels: dict[str, str],
    replica: str,
    boot_id: str,
    journal_id: str,
    seen_epoch: int,
    lease_until: int,
) -> tuple[int, str]:
    """Begin a session: raise the epoch above every earlier one, which fences them all.

    Returns the epoch and the journal's id of the session before (empty for the first).
    """
    facts = {
        "version": version,
        "runtime": runtime,
        "labels": json.dumps(labels, sort_keys=True),
        "connected_at": at,
        "last_seen_at": at,
    }
    mine = {"of": organization, "name_of": name}
    if _UPDATE_AGENT.first(connection, {**facts, **mine}) is None:
        connection.execute(
            sa.insert(agents).values(
                organization=organization, name=name, drained=False, banned=False, created_at=at, **facts
            )
        )
    before = _LOCK_SESSION.first(connection, mine)
    session = {
        "replica": replica,
        "boot_id": boot_id,
        "journal_id": journal_id,
        "connected": True,
        "lease_until": lease_until,
        "heard_at": at,
        "acted_at": None,
    }
    if before is None:
        epoch = seen_epoch + 1
        connection.execute(
            sa.insert(agent_sessions).values(organization=organization, agent=name, epoch=epoch, **session)
        )
        return epoch, ""
    epoch = max(before.epoch, seen_epoch) + 1
    other = before.boot_before if before.boot_id == boot_id else before.boot_id
    _UPDATE_SESSION.first(connection, {**session, **mine, "epoch": epoch, "boot_before": other})
    return epoch, before.journal_id


def keep(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write when these agents were last heard, each unless a newer session took over.

    A row: `of` and `name_of` (organization and agent), `in_epoch`, `seen` and `lease` (microseconds since the epoch),
    `is_connected`; `heard` and `acted`, None where they stay as they are and where nothing is known.
    """
    connection.execute(_KEEP_SESSION, rows)
    connection.execute(_KEEP_AGENT, rows)


_HOLD = Prepared(
    sa.select(agent_sessions.c.epoch)
    .where(agent_sessions.c.organization == sa.bindparam("of"), agent_sessions.c.agent == sa.bindparam("name_of"))
    .with_for_update(read=True),
    [agent_sessions.c.epoch],
)


def hold(connection: sa.Connection, organization: str, name: str, epoch: int) -> bool:
    """Whether this is the agent's newest session; until the transaction ends no newer one begins."""
    row = _HOLD.first(connection, {"of": organization, "name_of": name})
    return row is not None and bool(row.epoch == epoch)


def mark(connection: sa.Connection, organization: str, name: str, **values: bool) -> None:
    """Set `drained`, `banned` or `quarantined`."""
    connection.execute(
        sa.update(agents).where(agents.c.organization == organization, agents.c.name == name).values(**values)
    )


def forgive(connection: sa.Connection, organization: str, name: str) -> None:
    """End the quarantine, and forget which process came before: each of the two may be the one that stays."""
    mark(connection, organization, name, quarantined=False)
    connection.execute(
        sa.update(agent_sessions)
        .where(agent_sessions.c.organization == organization, agent_sessions.c.agent == name)
        .values(boot_before="")
    )


def count_seen(connection: sa.Connection, since: int) -> int:
    """Agents of all organizations that were heard since a time, microseconds since the epoch."""
    return connection.execute(sa.select(sa.func.count()).where(agents.c.last_seen_at >= since)).scalar_one()


def _bound(*names: str) -> dict[str, Any]:
    return {name: sa.bindparam(name) for name in names}


_OF = (agent_sessions.c.organization == sa.bindparam("of"), agent_sessions.c.agent == sa.bindparam("name_of"))
_UPDATE_AGENT = Prepared(
    sa.update(agents)
    .where(agents.c.organization == sa.bindparam("of"), agents.c.name == sa.bindparam("name_of"))
    .values(_bound("version", "runtime", "labels", "connected_at", "last_seen_at"))
    .returning(agents.c.name),
    [agents.c.name],
)
_BEFORE: list[sa.ColumnElement[Any]] = [
    agent_sessions.c[name] for name in ("epoch", "boot_id", "journal_id", "boot_before")
]
_LOCK_SESSION = Prepared(sa.select(*_BEFORE).where(*_OF).with_for_update(), _BEFORE)
_UPDATE_SESSION = Prepared(
    sa.update(agent_sessions)
    .where(*_OF)
    .values(
        _bound(
            *("epoch", "replica", "boot_id", "journal_id", "connected", "lease_until", "heard_at", "acted_at"),
            "boot_before",
        )
    ),
    [],
)
_MINE = (*_OF, agent_sessions.c.epoch == sa.bindparam("in_epoch"))
_KEEP_SESSION = (
    sa.update(agent_sessions)
    .where(*_MINE)
    .values(
        lease_until=sa.bindparam("lease"),
        connected=sa.bindparam("is_connected"),
        acted_at=sa.bindparam("acted", type_=sa.BigInteger),
        heard_at=sa.func.coalesce(sa.bindparam("heard", type_=sa.BigInteger), agent_sessions.c.heard_at),
    )
)
_KEEP_AGENT = (
    sa.update(agents)
    .where(
        agents.c.organization == sa.bindparam("of"),
        agents.c.name == sa.bindparam("name_of"),
        sa.exists().where(*_MINE),
    )
    .values(last_seen_at=sa.bindparam("seen"))
)


@functools.cache
def _get() -> Prepared:
    """Made once: making it takes longer than running it."""
    found = _with_session()
    of = (agents.c.organization == sa.bindparam("org"), agents.c.name == sa.bindparam("agent"))
    return Prepared(found.where(*of), list(found.selected_columns))
