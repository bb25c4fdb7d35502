"""Commands in the database."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from lading_server.commands import BEFORE, ENDS, State
from lading_server.store.driver import Prepared
from lading_server.store.schema import agent_sessions, commands

Row = sa.Row[*tuple[Any, ...]]

# The statements of every command are made once: making them took longer than running them.
_GET = sa.select(commands).where(
    commands.c.id == sa.bindparam("command"), commands.c.organization == sa.bindparam("org")
)
_GET_BY_REQUEST = Prepared(
    sa.select(commands).where(
        commands.c.organization == sa.bindparam("org"),
        commands.c.actor == sa.bindparam("of_actor"),
        commands.c.request_id == sa.bindparam("key"),
        commands.c.request_id != sa.literal_column("''"),
    ),
    list(commands.c),
)


@functools.cache
def _insert(names: tuple[str, ...]) -> Prepared:
    to = {name: sa.bindparam(name, type_=commands.c[name].type) for name in names}
    return Prepared(sa.insert(commands).values(to).returning(*commands.c), list(commands.c))


@functools.cache
def _move(state: State, names: tuple[str, ...], *, fenced: bool, of_agent: bool) -> Prepared:
    conditions = [
        commands.c.id == sa.bindparam("of_command"),
        commands.c.organization == sa.bindparam("of_organization"),
        commands.c.state.in_([sa.literal_column(str(int(before))) for before in sorted(BEFORE[state])]),
    ]
    if fenced:
        conditions.append(commands.c.epoch <= sa.bindparam("of_epoch"))
    if of_agent:
        conditions.append(commands.c.agent == sa.bindparam("of_agent"))
    to = {name: sa.bindparam(f"to_{name}", type_=commands.c[name].type) for name in names}
    moved = sa.update(commands).where(*conditions).values(state=sa.literal_column(str(int(state))), **to)
    return Prepared(moved.returning(*commands.c), list(commands.c))


_OF_SESSION = sa.and_(
    agent_sessions.c.organization == commands.c.organization, agent_sessions.c.agent == commands.c.agent
)


def insert(connection: sa.Connection, values: dict[str, Any]) -> Row:
    """Add a command; `values` by column name."""
    row = _insert(tuple(values)).first(connection, values)
    assert row is not None
    return row


def get(connection: sa.Connection, organization: str, command: str) -> Row | None:
    """One command of this organization."""
    return connection.execute(_GET, {"command": command, "org": organization}).first()


def get_by_request(connection: sa.Connection, organization: str, actor: str, request_id: str) -> Row | None:
    """The command that this actor's call with this idempotency key made."""
    if not request_id:
        return None
    return _GET_BY_REQUEST.first(connection, {"org": organization, "of_actor": actor, "key": request_id})


def move(
    connection: sa.Connection,
    organization: str,
    command: str,
    state: State,
    *,
    epoch: int | None = None,
    agent: str | None = None,
    **values: Any,
) -> Row | None:
    """Move a command into `state` if it may come there, from this agent and in this session's epoch where given.

    Returns the command as it is then, or None when it was not in a state before, or another's.
    """
    if state in ENDS:
        # It may hold secrets, and after the end nobody needs more of them than is shown.
        values["envelope"] = b""
    statement = _move(state, tuple(values), fenced=epoch is not None, of_agent=agent is not None)
    of = {"of_command": command, "of_organization": organization, "of_epoch": epoch, "of_agent": agent}
    to = {f"to_{name}": value for name, value in values.items()}
    return statement.first(connection, {**{key: value for key, value in of.items() if value is not None}, **to})


_OF_AGENT = (
    commands.c.organization == sa.bindparam("of_organization"),
    commands.c.agent == sa.bindparam("of_agent"),
    commands.c.settled_at.is_(None),
)
_PENDING = Prepared(
    sa.select(commands.c.id)
    .where(
        *_OF_AGENT,
        commands.c.state == int(State.PENDING),
        commands.c.deliver_by > sa.bindparam("at"),
        sa.exists().where(
            agent_sessions.c.organization == sa.bindparam("of_organization"),
            agent_sessions.c.agent == sa.bindparam("of_agent"),
            agent_sessions.c.epoch == sa.bindparam("in_epoch"),
        ),
    )
    .order_by(commands.c.created_at, commands.c.id)
    .limit(sa.bindparam("at_most", type_=sa.Integer))
    .with_for_update(skip_locked=True),
    [commands.c.id],
)
_UNSETTLED = Prepared(
    sa.select(commands)
    .where(*_OF_AGENT, commands.c.state != int(State.PENDING))
    .order_by(commands.c.created_at, commands.c.id),
    list(commands.c),
)


def take_pending(
    connection: sa.Connection, organization: str, agent: str, epoch: int, limit: int, at: int
) -> Sequence[Row]:
    """Mark the oldest pending commands of an agent DISPATCHED in this epoch, and return them, oldest first.

    None, once a newer session has begun: this one is fenced.
    """
    of = {"of_organization": organization, "of_agent": agent, "in_epoch": epoch}
    ids = [row.id for row in _PENDING.all(connection, {**of, "at_most": limit, "at": at})]
    if not ids:
        return []
    taken = connection.execute(
        sa.update(commands)
        .where(commands.c.id.in_(ids))
        .values(state=int(State.DISPATCHED), epoch=epoch, dispatched_at=at)
        .returning(*commands.c)
    ).all()
    return sorted(taken, key=lambda row: (row.created_at, row.id))


def list_unsettled(connection: sa.Connection, organization: str, agent: str) -> Sequence[Row]:
    """Commands of an agent that were dispatched and have not ended, oldest first."""
    return _UNSETTLED.all(connection, {"of_organization": organization, "of_agent": agent})


def list_settled_by(
    connection: sa.Connection, organization: str, agent: str, ids: Collection[str], evidence: str
) -> Sequence[str]:
    """Those of these commands of an agent that were settled by this evidence."""
    if not ids:
        return []
    found = sa.select(commands.c.id).where(
        commands.c.organization == organization,
        commands.c.agent == agent,
        commands.c.evidence == evidence,
        commands.c.settled_at.is_not(None),
    )
    chunks = [list(ids)[start : start + 500] for start in range(0, len(ids), 500)]
    return [id for chunk in chunks for id in connection.scalars(found.where(commands.c.id.in_(chunk)))]


def renew(connection: sa.Connection, command: str, epoch: int) -> Row:
    """Let a command in flight belong to the agent's newer session."""
    return connection.execute(
        sa.update(commands).where(commands.c.id == command).values(epoch=epoch).returning(*commands.c)
    ).one()


After = tuple[str, str, str]
"""Where a list goes on: after this organization, agent and id. By id alone SQLite would walk all commands ever made,
instead of those that have not ended, which are indexed so."""
FIRST: After = ("", "", "")


_IN_ORDER = (commands.c.organization, commands.c.agent, commands.c.id)


def _after(after: After) -> sa.ColumnElement[bool]:
    return sa.tuple_(*_IN_ORDER) > after


def list_overdue(connection: sa.Connection, at: int, after: After, limit: int) -> Sequence[Row]:
    """Pending commands whose time to be delivered has passed."""
    return connection.execute(
        sa.select(commands.c.id, commands.c.organization, commands.c.agent, commands.c.epoch)
        .where(
            commands.c.settled_at.is_(None),
            commands.c.state == int(State.PENDING),
            commands.c.deliver_by <= at,
            _after(after),
        )
        .order_by(*_IN_ORDER)
        .limit(limit)
    ).all()


def list_lost(connection: sa.Connection, at: int, after: After, limit: int) -> Sequence[Row]:
    """Commands in flight whose agent's lease is over."""
    return connection.execute(
        sa.select(commands.c.id, commands.c.organization, commands.c.agent, commands.c.epoch)
        .join(agent_sessions, _OF_SESSION)
        .where(
            commands.c.settled_at.is_(None),
            commands.c.state.in_((int(State.DISPATCHED), int(State.ACKNOWLEDGED))),
            agent_sessions.c.lease_until <= at,
            _after(after),
        )
        .order_by(*_IN_ORDER)
        .limit(limit)
    ).all()


def list_waiting(connection: sa.Connection, replica: str, at: int, after: tuple[str, str], limit: int) -> Sequence[Row]:
    """Agents of this process for which commands wait, after this organization and agent."""
    return connection.execute(
        sa.select(commands.c.organization, commands.c.agent)
        .join(agent_sessions, _OF_SESSION)
        .where(
            commands.c.settled_at.is_(None),
            commands.c.state == int(State.PENDING),
            commands.c.deliver_by > at,
            agent_sessions.c.replica == replica,
            agent_sessions.c.connected,
            sa.tuple_(commands.c.organization, commands.c.agent) > after,
        )
        .distinct()
        .order_by(commands.c.organization, commands.c.agent)
        .limit(limit)
    ).all()


def ask_cancel(connection: sa.Connection, command: str, at: int) -> Row:
    """Keep that a command in flight is to be cancelled."""
    return connection.execute(
        sa.update(commands).where(commands.c.id == command).values(cancel_asked_at=at).returning(*commands.c)
    ).one()


def list_cancels(connection: sa.Connection, replica: str, after: After, limit: int) -> Sequence[Row]:
    """Commands in flight of this process's agents that are to be cancelled."""
    return connection.execute(
        sa.select(commands)
        .join(agent_sessions, _OF_SESSION)
        .where(
            commands.c.settled_at.is_(None),
            commands.c.state != int(State.PENDING),
            commands.c.cancel_asked_at.is_not(None),
            _after(after),
            agent_sessions.c.replica == replica,
            agent_sessions.c.connected,
        )
        .order_by(*_IN_ORDER)
        .limit(limit)
    ).all()


def list_settled(connection: sa.Connection, ids: Sequence[str]) -> Sequence[Row]:
    """Those of these commands that have ended, or are UNKNOWN."""
    ended = sa.or_(commands.c.settled_at.is_not(None), commands.c.state == int(State.UNKNOWN))
    return connection.execute(sa.select(commands).where(commands.c.id.in_(ids), ended)).all()


def list_silent(connection: sa.Connection, replica: str, before: int, limit: int) -> Sequence[Row]:
    """Commands that were dispatched before a time to agents of this process and never acknowledged: the newest of them,
    so that those that hang do not hide what comes after; oldest first."""
    found = connection.execute(
        sa.select(commands)
        .join(agent_sessions, _OF_SESSION)
        .where(
            commands.c.settled_at.is_(None),
            commands.c.state == int(State.DISPATCHED),
            commands.c.dispatched_at < before,
            agent_sessions.c.replica == replica,
            agent_sessions.c.connected,
        )
        .order_by(commands.c.created_at.desc(), commands.c.id.desc())
        .limit(limit)
    ).all()
    return found[::-1]


def list_newest(
    connection: sa.Connection,
    organization: str,
    *,
    before: tuple[int, str] | None,
    limit: int,
    agent: str = "",
    container: str = "",
    states: Collection[int] = (),
) -> Sequence[Row]:
    """Commands, newest first, older than `before` (created_at, id)."""
    query = sa.select(commands).where(commands.c.organization == organization)
    if before is not None:
        query = query.where(sa.tuple_(commands.c.created_at, commands.c.id) < before)
    if agent:
        query = query.where(commands.c.agent == agent)
    if container:
        query = query.where(commands.c.container == container)
    if states:
        query = query.where(commands.c.state.in_(sorted(states)))
    return connection.execute(query.order_by(commands.c.created_at.desc(), commands.c.id.desc()).limit(limit)).all()


def count_in_flight(connection: sa.Connection, organization: str) -> dict[str, int]:
    """Commands in flight by agent."""
    found = connection.execute(
        sa.select(commands.c.agent, sa.func.count())
        .where(
            commands.c.organization == organization,
            commands.c.settled_at.is_(None),
            commands.c.state != int(State.PENDING),
        )
        .group_by(commands.c.agent)
    )
    return {row[0]: row[1] for row in found}
