"""Rollouts and their targets in the database."""

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from lading_server.commands import ENDS, State
from lading_server.rollouts import SETTLED, RolloutState
from lading_server.store.schema import commands, rollout_targets, rollouts

Row = sa.Row[*tuple[Any, ...]]

_STATE = sa.func.coalesce(commands.c.state, rollout_targets.c.state)
"""State of a target's command; one that could not be recorded at all has its end in the target itself."""


def insert(connection: sa.Connection, values: dict[str, Any], targets: Sequence[dict[str, Any]]) -> Row:
    """Add a rollout with its targets, which are in the order of the plan."""
    row = connection.execute(sa.insert(rollouts).values(values).returning(*rollouts.c)).one()
    connection.execute(
        sa.insert(rollout_targets),
        [
            {"rollout": row.id, "number": number, "command": "", "state": 0, "error": "", "forgiven": False, **target}
            for number, target in enumerate(targets)
        ],
    )
    return row


def get(connection: sa.Connection, organization: str, rollout: str) -> Row | None:
    """One rollout of this organization."""
    return connection.execute(
        sa.select(rollouts).where(rollouts.c.id == rollout, rollouts.c.organization == organization)
    ).first()


def list_newest(
    connection: sa.Connection,
    organization: str,
    *,
    before: tuple[int, str] | None,
    limit: int,
    states: Collection[int] = (),
) -> Sequence[Row]:
    """Rollouts, newest first, older than `before` (created_at, id)."""
    query = sa.select(rollouts).where(rollouts.c.organization == organization)
    if before is not None:
        query = query.where(sa.tuple_(rollouts.c.created_at, rollouts.c.id) < before)
    if states:
        query = query.where(rollouts.c.state.in_(sorted(states)))
    return connection.execute(query.order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc()).limit(limit)).all()


def count(connection: sa.Connection, ids: Collection[str]) -> dict[str, list[tuple[int | None, bool, int]]]:
    """By rollout: how many of its targets there are in each state of a command, 0 for those that have not begun, and
    forgiven or not."""
    found = connection.execute(
        sa.select(rollout_targets.c.rollout, _STATE, rollout_targets.c.forgiven, sa.func.count())
        .select_from(_with_commands())
        .where(rollout_targets.c.rollout.in_(sorted(ids)))
        .group_by(rollout_targets.c.rollout, _STATE, rollout_targets.c.forgiven)
    )
    counts: dict[str, list[tuple[int | None, bool, int]]] = {one: [] for one in ids}
    for rollout, state, forgiven, number in found:
        counts[rollout].append((state, forgiven, number))
    return counts


def list_targets(
    connection: sa.Connection, rollout: str, *, after: int, limit: int, states: Collection[int] = ()
) -> Sequence[Row]:
    """Targets in the order of the plan, after the number `after`, with `state` and `error` of their commands."""
    query = (
        sa.select(
            rollout_targets.c.number,
            rollout_targets.c.agent,
            rollout_targets.c.container,
            rollout_targets.c.wave,
            rollout_targets.c.command,
            _STATE.label("state"),
            sa.func.coalesce(commands.c.error, rollout_targets.c.error).label("error"),
        )
        .select_from(_with_commands())
        .where(rollout_targets.c.rollout == rollout, rollout_targets.c.number > after)
    )
    if states:
        query = query.where(_STATE.in_(sorted(states)))
    return connection.execute(query.order_by(rollout_targets.c.number).limit(limit)).all()


def list_waiting(connection: sa.Connection, rollout: str, wave: int, limit: int) -> Sequence[Row]:
    """The next targets that have not begun, none beyond this wave: another replica may have begun some by now."""
    return connection.execute(
        sa.select(rollout_targets)
        .where(
            rollout_targets.c.rollout == rollout,
            rollout_targets.c.command == "",
            rollout_targets.c.state == 0,
            rollout_targets.c.wave <= wave,
        )
        .order_by(rollout_targets.c.number)
        .limit(limit)
    ).all()


def list_undelivered(connection: sa.Connection, rollout: str) -> Sequence[str]:
    """Commands of the rollout that no agent was sent yet."""
    return (
        connection.execute(
            sa.select(commands.c.id)
            .join(rollout_targets, rollout_targets.c.command == commands.c.id)
            .where(rollout_targets.c.rollout == rollout, commands.c.state == int(State.PENDING))
        )
        .scalars()
        .all()
    )


def _with_commands() -> sa.Join:
    return rollout_targets.outerjoin(commands, commands.c.id == rollout_targets.c.command)


def begin_target(connection: sa.Connection, rollout: str, number: int, command: str) -> bool:
    """A target begins with this command; False unless the rollout runs and the target has not begun."""
    running = sa.exists().where(rollouts.c.id == rollout, rollouts.c.state == int(RolloutState.RUNNING))
    return bool(
        connection.execute(
            sa.update(rollout_targets)
            .where(
                rollout_targets.c.rollout == rollout,
                rollout_targets.c.number == number,
                rollout_targets.c.command == "",
                rollout_targets.c.state == 0,
                running,
            )
            .values(command=command)
        ).rowcount
    )


def free_target(connection: sa.Connection, rollout: str, command: str) -> None:
    """A target whose command was withdrawn before anybody was sent it has not begun."""
    connection.execute(
        sa.update(rollout_targets)
        .where(rollout_targets.c.rollout == rollout, rollout_targets.c.command == command)
        .values(command="")
    )


def forgive(connection: sa.Connection, rollout: str) -> None:
    """A person has seen the failures so far: they count no more, also those that were not known yet to be some."""
    failures = sorted(int(state) for state in (ENDS | {State.UNKNOWN}) - {State.SUCCEEDED})
    failed = sa.exists().where(commands.c.id == rollout_targets.c.command, commands.c.state.in_(failures))
    connection.execute(
        sa.update(rollout_targets)
        .where(rollout_targets.c.rollout == rollout, sa.or_(rollout_targets.c.state.in_(failures), failed))
        .values(forgiven=True)
    )


def fail_target(connection: sa.Connection, rollout: str, number: int, state: State, error: str) -> None:
    """No command could be made for a target."""
    assert state in ENDS
    connection.execute(
        sa.update(rollout_targets)
        .where(
            rollout_targets.c.rollout == rollout,
            rollout_targets.c.number == number,
            rollout_targets.c.command == "",
        )
        .values(state=int(state), error=error)
    )


def move(
    connection: sa.Connection, rollout: str, before: Collection[RolloutState], replica: str | None = None, **values: Any
) -> Row | None:
    """Change a rollout that is in one of the states `before`, and in this replica's hands where given.

    None when it is not. Leaving RUNNING takes it out of every replica's hands.
    """
    conditions = [rollouts.c.id == rollout, rollouts.c.state.in_(sorted(int(state) for state in before))]
    if replica is not None:
        conditions.append(rollouts.c.replica == replica)
    state = values.get("state")
    if state is not None:
        values["state"] = int(state)
        if state in SETTLED or state == RolloutState.PAUSED:
            values |= {"replica": "", "replica_until": 0}
    return connection.execute(sa.update(rollouts).where(*conditions).values(**values).returning(*rollouts.c)).first()


def claim(connection: sa.Connection, replica: str, at: int, until: int) -> Sequence[Row]:
    """Take the rollouts that run and are in nobody's hands, or whose replica did not renew its claim, and keep ours."""
    free = sa.or_(rollouts.c.replica == replica, rollouts.c.replica_until <= at)
    found = list(
        connection.execute(
            sa.select(rollouts.c.id)
            .where(rollouts.c.settled_at.is_(None), rollouts.c.state == int(RolloutState.RUNNING), free)
            .with_for_update(skip_locked=True)
        ).scalars()
    )
    if not found:
        return []
    return connection.execute(
        sa.update(rollouts)
        .where(rollouts.c.id.in_(found))
        .values(replica=replica, replica_until=until)
        .returning(*rollouts.c)
    ).all()


def any_running(connection: sa.Connection) -> bool:
    """Whether there is a rollout that runs, so that `claim` is worth a transaction."""
    query = sa.select(rollouts.c.id).where(
        rollouts.c.settled_at.is_(None), rollouts.c.state == int(RolloutState.RUNNING)
    )
    return connection.execute(query.limit(1)).first() is not None
