"""Commands in the database."""

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from lading_server.commands import BEFORE, ENDS, State
from lading_server.store.schema import agent_sessions, commands

Row = sa.Row[*tuple[Any, ...]]


def insert(connection: sa.Connection, values: dict[str, Any]) -> Row:
    """Add a command; `values` by column name."""
    return connection.execute(sa.insert(commands).values(values).returning(*commands.c)).one()


def get(connection: sa.Connection, organization: str, command: str) -> Row | None:
    """One command of this organization."""
    return connection.execute(
        sa.select(commands).where(commands.c.id == command, commands.c.organization == organization)
    ).first()


def get_by_request(connection: sa.Connection, organization: str, actor: str, request_id: str) -> Row | None:
    """The command that this actor's call with this idempotency key made."""
    return connection.execute(
        sa.select(commands).where(
            commands.c.organization == organization,
            commands.c.actor == actor,
            commands.c.request_id == request_id,
            commands.c.request_id != "",
        )
    ).first()


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
    conditions = [
        commands.c.id == command,
        commands.c.organization == organization,
        commands.c.state.in_(sorted(BEFORE[state])),
    ]
    if epoch is not None:
        conditions.append(commands.c.epoch <= epoch)
    if agent is not None:
        conditions.append(commands.c.agent == agent)
    moved = connection.execute(
        sa.update(commands).where(*conditions).values(state=int(state), **values).returning(*commands.c)
    ).first()
    if moved is not None and state in ENDS:
        forget_secrets(connection, command)
    return moved


def forget_secrets(connection: sa.Connection, command: str) -> None:
    """The envelope may hold secrets, and after the end nobody needs more of them than is shown."""
    connection.execute(sa.update(commands).where(commands.c.id == command).values(envelope=b""))


def take_pending(
    connection: sa.Connection, organization: str, agent: str, epoch: int, limit: int, at: int
) -> Sequence[Row]:
    """Mark the oldest pending commands of an agent DISPATCHED in this epoch, and return them, oldest first.

    None, once a newer session has begun: this one is fenced.
    """
    newest = sa.exists().where(
        agent_sessions.c.organization == organization, agent_sessions.c.agent == agent, agent_sessions.c.epoch == epoch
    )
    waiting = connection.execute(
        sa.select(commands.c.id)
        .where(
            commands.c.organization == organization,
            commands.c.agent == agent,
            commands.c.settled_at.is_(None),
            commands.c.state == int(State.PENDING),
            commands.c.deliver_by > at,
            newest,
        )
        .order_by(commands.c.created_at, commands.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).scalars()
    ids = list(waiting)
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
    """Commands of an agent that have not ended, oldest first."""
    return connection.execute(
        sa.select(commands)
        .where(
            commands.c.organization == organization,
            commands.c.agent == agent,
            commands.c.settled_at.is_(None),
        )
        .order_by(commands.c.created_at, commands.c.id)
    ).all()


def renew(connection: sa.Connection, command: str, epoch: int) -> Row:
    """Let a command in flight belong to the agent's newer session."""
    return connection.execute(
        sa.update(commands).where(commands.c.id == command).values(epoch=epoch).returning(*commands.c)
    ).one()


def list_overdue(connection: sa.Connection, at: int, limit: int) -> Sequence[Row]:
    """Pending commands whose time to be delivered has passed."""
    return connection.execute(
        sa.select(commands.c.id, commands.c.organization)
        .where(commands.c.settled_at.is_(None), commands.c.state == int(State.PENDING), commands.c.deliver_by <= at)
        .limit(limit)
    ).all()


def list_lost(connection: sa.Connection, at: int, limit: int) -> Sequence[Row]:
    """Commands in flight whose agent's lease is over."""
    return connection.execute(
        sa.select(commands.c.id, commands.c.organization, commands.c.epoch)
        .join(
            agent_sessions,
            sa.and_(
                agent_sessions.c.organization == commands.c.organization, agent_sessions.c.agent == commands.c.agent
            ),
        )
        .where(
            commands.c.settled_at.is_(None),
            commands.c.state.in_((int(State.DISPATCHED), int(State.ACKNOWLEDGED))),
            agent_sessions.c.lease_until <= at,
        )
        .limit(limit)
    ).all()


def list_waiting(connection: sa.Connection, at: int, limit: int) -> Sequence[Row]:
    """Agents for which commands wait."""
    return connection.execute(
        sa.select(commands.c.organization, commands.c.agent)
        .where(commands.c.settled_at.is_(None), commands.c.state == int(State.PENDING), commands.c.deliver_by > at)
        .distinct()
        .limit(limit)
    ).all()


def list_silent(connection: sa.Connection, before: int, limit: int) -> Sequence[Row]:
    """Commands that were dispatched before a time and never acknowledged, oldest first."""
    return connection.execute(
        sa.select(commands)
        .where(
            commands.c.settled_at.is_(None),
            commands.c.state == int(State.DISPATCHED),
            commands.c.dispatched_at < before,
        )
        .order_by(commands.c.created_at, commands.c.id)
        .limit(limit)
    ).all()


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
