"""Carries out rollouts: begins the commands of their targets, wave by wave, and records how each one ends.

A rollout is in one replica's hands at a time, by a claim that it renews; when that process dies, another one, or the
next, takes it. Crash order: a target and its command commit together, so that whoever goes on sees which have begun;
the steps of the rollout itself (wave, end) commit with their events, under the claim. What was decided on is never
remembered, only read: after a crash the same decision comes from the same rows.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lading_server import errors, roles
from lading_server.call import Call
from lading_server.clock import Clock, new_id, now
from lading_server.commands import State
from lading_server.dispatch import Dispatcher
from lading_server.errors import Code
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.orders import Order
from lading_server.rollouts import Begin, Pace, RolloutState, Step, Tally, Wait, breach_of, next_step, tally_of
from lading_server.sessions import Sessions
from lading_server.store import access, rollouts
from lading_server.store.reader import Reader

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""What another replica made or settled is seen after this long at the latest."""
CLAIM_SECONDS = 15.0
REST_SECONDS = 0.02
"""Between two looks at one rollout: what ends meanwhile is seen together."""
RETRY_SECONDS = 0.5
DELIVER_MICROSECONDS = 60 * 1_000_000
"""A target whose agent is away for this long has failed."""
PERMISSION = "container.operate"
"""What the author of a rollout must still be allowed when its commands begin."""
CONDUCTOR = Actor(ActorType.SERVICE, "lading-server", auth_method="local")


@dataclass(frozen=True, slots=True)
class Work:
    """What a plan says of each command, and how carefully to go; by the service, which knows the message."""

    verb: int
    action: str
    arguments: bytes
    execute_within: int
    pace: Pace
    pause_on_breach: bool
    wave_ends: tuple[int, ...]


class Conductor:
    """Drives the rollouts that this process has claimed. `work_of` reads what a rollout's row says is to be done."""

    def __init__(
        self,
        ledger: Ledger,
        reader: Reader,
        dispatcher: Dispatcher,
        sessions: Sessions,
        work_of: Callable[[rollouts.Row], Work],
        clock: Clock = now,
    ) -> None:
        self._ledger, self._reader, self._dispatcher, self._sessions = ledger, reader, dispatcher, sessions
        self._work_of, self._clock = work_of, clock
        self._driven: dict[str, asyncio.Task[None]] = {}
        self._awake = asyncio.Event()
        self._cancelling: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """A rollout was made or resumed."""
        self._awake.set()

    def cancel_undelivered(self, call: Call, rollout: str) -> None:
        """Cancel, in the name of a call, what a stopped rollout has not sent. A crash leaves it to run out of time."""
        task = asyncio.get_running_loop().create_task(self._cancel_undelivered(call, rollout))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def _cancel_undelivered(self, call: Call, rollout: str) -> None:
        tried: set[str] = set()
        while True:
            try:
                due = [one for one in await self._reader.read(rollouts.list_undelivered, rollout) if one not in tried]
                if not due:
                    return
                for command in due:
                    await self._cancel(call, command)
                    tried.add(command)
            except (errors.LedgerUnavailable, errors.StoreUnavailable, errors.Overloaded) as failure:
                log.warning("commands of rollout %s are not cancelled yet: %s", rollout, failure)
                await asyncio.sleep(RETRY_SECONDS)

    async def _cancel(self, call: Call, command: str) -> None:
        """Raises what an outage raises; what else fails is of this command alone."""
        try:
            await self._dispatcher.cancel(call, command)
        except errors.FailedPrecondition:
            pass  # it has ended by itself
        except (errors.LedgerUnavailable, errors.Overloaded):
            raise
        except errors.Error as failure:
            log.warning("command %s is not cancelled: %s", command, failure)

    async def run(self) -> None:
        """Until cancelled: claim what is to be done, and do it."""
        try:
            while True:
                self._awake.clear()
                try:
                    await self._claim()
                except errors.Error as failure:
                    log.warning("cannot look for rollouts now: %s", failure)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._awake.wait()
        finally:
            driven = [*self._driven.values(), *self._cancelling]
            for task in driven:
                task.cancel()
            await asyncio.gather(*driven, return_exceptions=True)

    async def _claim(self) -> None:
        if not await self._reader.read(rollouts.any_running):
            return
        replica = self._ledger.boot_id

        def apply(transaction: Transaction) -> list[rollouts.Row]:
            at = transaction.recorded_at
            return list(rollouts.claim(transaction.connection, replica, at, at + int(CLAIM_SECONDS * 1_000_000)))

        for row in await self._ledger.commit((), apply):
            if row.id not in self._driven:
                task = asyncio.get_running_loop().create_task(self._drive(row.organization, row.id))
                self._driven[row.id] = task
                task.add_done_callback(partial(self._let_go, row.id))

    def _let_go(self, rollout: str, task: asyncio.Task[None]) -> None:
        del self._driven[rollout]

    async def _drive(self, organization: str, rollout: str) -> None:
        """Go on with a rollout until it ends, is paused, or is in another replica's hands."""
        changed = self._sessions.watch(organization)
        try:
            while True:
                changed.clear()
                try:
                    pause = await self._go_on(organization, rollout)
                except errors.Error as failure:
                    log.warning("rollout %s cannot go on now: %s", rollout, failure)
                    pause = RETRY_SECONDS
                if pause is None:
                    return
                if pause:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await changed.wait()
                    await asyncio.sleep(REST_SECONDS)
        except Exception:
            log.exception("rollout %s stands still until it is claimed anew", rollout)
        finally:
            self._sessions.unwatch(organization, changed)

    async def _go_on(self, organization: str, rollout: str) -> float | None:
        """Do the next thing; returns for how many seconds there is nothing to do, None for ever."""
        row = await self._reader.read(rollouts.get, organization, rollout)
        if row is None or row.state != RolloutState.RUNNING or row.replica != self._ledger.boot_id:
            return None
        work = self._work_of(row)
        tally = tally_of((await self._reader.read(rollouts.count, [rollout]))[rollout])
        step = next_step(
            tally,
            work.pace,
            row.wave,
            work.wave_ends,
            wave_ended_at=row.wave_ended_at,
            now=self._clock(),
        )
        if isinstance(step, Begin):
            if await self._reader.read(may_operate, organization, row.actor):
                await self._begin(row, work, step.count)
                return 0.0
            step = Step.FORBID
        if isinstance(step, Wait):
            left = LOOK_SECONDS if step.until is None else (step.until - self._clock()) / 1_000_000
            return max(0.0, min(LOOK_SECONDS, left))
        await self._step(row, work, step, tally)
        return 0.0

    async def _begin(self, row: rollouts.Row, work: Work, count: int) -> None:
        targets = await self._reader.read(rollouts.list_waiting, row.id, row.wave, count)
        answers = await asyncio.gather(
            *(self._command(row, work, target) for target in targets), return_exceptions=True
        )
        refused = []
        for target, answer in zip(targets, answers, strict=True):
            if isinstance(answer, errors.NotFound | errors.FailedPrecondition) and not isinstance(
                answer, errors.NotRunning
            ):
                refused.append((target.number, answer.message))
            elif isinstance(answer, BaseException) and not isinstance(answer, errors.Error):
                raise answer
        if refused:
            await self._fail(row, refused)
        elif any(isinstance(answer, errors.Error) for answer in answers):
            await asyncio.sleep(RETRY_SECONDS)  # the database, or the queue: what was not begun is begun later

    async def _command(self, row: rollouts.Row, work: Work, target: rollouts.Row) -> None:
        call = Call(
            row.id,
            "",
            self._clock(),
            user_agent=row.source,
            request_id=row.correlation,
            actor=Actor(ActorType(row.actor_type), row.actor, row.actor_email),
            organization=row.organization,
            reason=row.reason,
        )
        order = Order(
            agent=target.agent,
            container=target.container,
            verb=work.verb,
            action=work.action,
            arguments=work.arguments,
            arguments_shown=work.arguments,
            precondition=b"",
            deliver_within=DELIVER_MICROSECONDS,
            execute_within=work.execute_within,
            reason=row.reason,
            request_id="",
            detach=True,
            rollout=row.id,
            number=target.number,
        )
        await self._dispatcher.create(call, order)

    async def _fail(self, row: rollouts.Row, refused: Iterable[tuple[int, str]]) -> None:
        def apply(transaction: Transaction) -> None:
            for number, error in refused:
                rollouts.fail_target(transaction.connection, row.id, number, State.FAILED, error)

        await self._ledger.commit((), apply)

    async def _step(self, row: rollouts.Row, work: Work, step: Step, tally: Tally) -> None:
        """Move the rollout itself, with its event; nothing when it was paused or taken meanwhile."""

        def apply(transaction: Transaction) -> rollouts.Row | None:
            at = transaction.recorded_at
            data = {"wave": row.wave, "waves": len(work.wave_ends), **counts_of(tally)}
            values: dict[str, Any]
            event = None
            if step is Step.END_WAVE:
                values = {"wave_ended_at": at}
                event = wave_event(row, at, data)
            elif step is Step.NEXT_WAVE:
                values = {"wave": row.wave + 1, "wave_ended_at": None}
            elif step is Step.SUCCEED:
                values = {"state": RolloutState.SUCCEEDED, "state_reason": "", "wave_ended_at": at, "settled_at": at}
                event = end_event(row, at, RolloutState.SUCCEEDED, data)
            elif step is Step.FORBID:
                why = f"{row.actor} may not operate containers any more"
                values = {"state": RolloutState.STOPPED, "state_reason": why, "settled_at": at}
                how = (Outcome.DENIED, Code.PERMISSION_DENIED)
                event = end_event(row, at, RolloutState.STOPPED, data, why, how)
            else:
                why = breach_of(tally, work.pace)
                if work.pause_on_breach:
                    # Why, is said when it is asked: by then an UNKNOWN may have turned out well.
                    values = {"state": RolloutState.PAUSED, "state_reason": ""}
                    event = breach_event(row, at, why, data)
                else:
                    values = {"state": RolloutState.FAILED, "state_reason": why, "settled_at": at}
                    event = end_event(row, at, RolloutState.FAILED, data, why)
            moved = rollouts.move(
                transaction.connection, row.id, (RolloutState.RUNNING,), self._ledger.boot_id, **values
            )
            if moved is not None and event is not None:
                transaction.append(event)
            return moved

        moved = await self._ledger.commit((row.organization,), apply)
        self._sessions.notify(row.organization)
        if moved is not None and moved.state in (RolloutState.FAILED, RolloutState.STOPPED):
            call = Call(row.id, "", self._clock(), actor=CONDUCTOR, organization=row.organization)
            self.cancel_undelivered(call, row.id)


def may_operate(connection: Any, /, organization: str, subject: str) -> bool:
    """Whether the author of a rollout may still do what its commands do."""
    held = [row.role for row in access.bindings_of(connection, organization, subject)]
    return PERMISSION in roles.permissions(held, organization)


def counts_of(tally: Tally) -> dict[str, int]:
    """For the log: targets by what became of them."""
    return {
        "targets": tally.total,
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "unknown": tally.unknown,
        "not_begun": tally.waiting,
    }


def plan_event(row: Any, at: int, data: dict[str, Any]) -> Event:
    """That a rollout begins: the first event of its operation, which is the parent of its commands."""
    return _event(row, at, "rollout.run", Stage.RECEIVED, Outcome.PENDING, data, operation=row.id, parent=row.parent)


ENDINGS = {
    RolloutState.SUCCEEDED: (Outcome.SUCCESS, Code.OK),
    RolloutState.STOPPED: (Outcome.CANCELLED, Code.CANCELLED),
    RolloutState.FAILED: (Outcome.FAILURE, Code.ABORTED),
}


def end_event(
    row: Any,
    at: int,
    state: RolloutState,
    data: dict[str, Any],
    why: str = "",
    how: tuple[Outcome, Code] | None = None,
) -> Event:
    """The end of a rollout's operation; `how` it ended, where the state does not say it."""
    outcome, code = how or ENDINGS[state]
    return _event(
        row, at, "rollout.run", Stage.COMPLETED, outcome, data, operation=row.id, parent=row.parent, code=code, why=why
    )


def wave_event(row: Any, at: int, data: dict[str, Any]) -> Event:
    """That a wave is over."""
    return _event(row, at, "rollout.wave", Stage.COMPLETED, Outcome.SUCCESS, data, actor=CONDUCTOR)


def breach_event(row: Any, at: int, why: str, data: dict[str, Any]) -> Event:
    """That too many failed, and the rollout was paused."""
    failed = Code.ABORTED
    return _event(
        row, at, "rollout.breach", Stage.COMPLETED, Outcome.FAILURE, data, actor=CONDUCTOR, code=failed, why=why
    )


def _event(
    row: Any,
    at: int,
    action: str,
    stage: Stage,
    outcome: Outcome,
    data: dict[str, Any],
    *,
    operation: str = "",
    parent: str = "",
    actor: Actor | None = None,
    code: Code = Code.OK,
    why: str = "",
) -> Event:
    """One more event of a rollout: of its own operation, or of a new one below it."""
    return Event(
        id=new_id(),
        organization=row.organization,
        operation=operation or new_id(),
        parent=parent if operation else row.id,
        stage=stage,
        occurred_at=at,
        actor=actor or Actor(ActorType(row.actor_type), row.actor, row.actor_email),
        action=action,
        outcome=outcome,
        code=code,
        changes=True,
        targets=(("rollout", row.id),),
        reason=row.reason,
        error=why,
        request_id=row.correlation,
        source=row.source,
        follows=bool(operation) and stage is not Stage.RECEIVED,
        details={"data": data},
    )
