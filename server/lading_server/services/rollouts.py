"""Rollouts: plans for many containers, recorded here and carried out by the conductor."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from lading.v1 import commands_pb2, rollouts_pb2, rollouts_pb2_grpc
from lading_server import call as calls
from lading_server import conductor, errors, names, paging
from lading_server import rollouts as pace
from lading_server.call import Call, Change
from lading_server.clock import Clock, new_id, now
from lading_server.commands import State
from lading_server.conductor import Conductor, Work
from lading_server.ledger.transaction import Transaction
from lading_server.rollouts import RolloutState, Tally, tally_of
from lading_server.services.resources import microseconds, stamp
from lading_server.sessions import Sessions
from lading_server.store import containers, rollouts
from lading_server.store.reader import Reader

WATCH_SECONDS = 1.0
EXECUTE_SECONDS, EXECUTE_SECONDS_MAX = 600, 86_400
SOAK_SECONDS_MAX = 7 * 86_400
GRACE_SECONDS_MAX = 3600
ACTIONS = {
    commands_pb2.VERB_START: "container.start",
    commands_pb2.VERB_STOP: "container.stop",
    commands_pb2.VERB_RESTART: "container.restart",
    commands_pb2.VERB_KILL: "container.kill",
    commands_pb2.VERB_PAUSE: "container.pause",
    commands_pb2.VERB_UNPAUSE: "container.unpause",
    commands_pb2.VERB_REMOVE: "container.remove",
}
AGAIN = [int(state) for state in (0, State.UNKNOWN, State.FAILED, State.REJECTED, State.CANCELLED, State.EXPIRED)]
"""States of targets, 0 for those that have not begun, that a retry does again."""


class Rollouts(rollouts_pb2_grpc.RolloutsServicer):
    """See protos/lading/v1/rollouts.proto."""

    def __init__(self, reader: Reader, sessions: Sessions, carrier: Conductor, clock: Clock = now) -> None:
        self._reader, self._sessions, self._conductor, self._clock = reader, sessions, carrier, clock

    async def CreateRollout(self, request: rollouts_pb2.CreateRolloutRequest, context: Any) -> Any:
        call = calls.current()
        plan = checked(request.plan)
        targets = await self._targets(call.organization, plan)
        values = self._values(call, plan, targets, request.reason, request.request_id)
        if request.validate_only:
            return validated(values, len(targets))
        return self._make(call, values, targets)

    async def _targets(self, organization: str, plan: rollouts_pb2.RolloutPlan) -> list[tuple[str, str]]:
        """(agent, container) of what the plan selects, in its order. Raises FailedPrecondition, InvalidArgument."""
        if plan.containers:
            chosen = list(dict.fromkeys(names.container_of(name) for name in plan.containers))
            known = await self._reader.read(containers.list_known, organization, chosen)
            if missing := [f"{agent}/{name}" for agent, name in chosen if (agent, name) not in known]:
                raise errors.FailedPrecondition(
                    f"no agent of your organization reports {', '.join(missing[:5])}"
                    f"{' and others' if missing[5:] else ''}: see `lading ps -a`"
                )
            return chosen
        rows = await self._reader.read(
            containers.list_by_name,
            organization,
            after=("", ""),
            limit=pace.TARGETS_MAX + 1,
            agent=names.agent_of(plan.agent),
            labels=dict(plan.labels),
        )
        if not rows:
            raise errors.FailedPrecondition("no container matches: see `lading ps -a -l …`")
        if len(rows) > pace.TARGETS_MAX:
            raise errors.InvalidArgument(f"more than {pace.TARGETS_MAX} containers match: choose fewer at a time")
        return [(row.agent, row.name) for row in rows]

    def _values(
        self,
        call: Call,
        plan: rollouts_pb2.RolloutPlan,
        targets: Sequence[tuple[str, str]],
        reason: str,
        request_id: str,
        retry_of: str = "",
    ) -> dict[str, Any]:
        """The columns of a new rollout. Raises InvalidArgument."""
        try:
            ends = pace.wave_ends_of(list(plan.waves), len(targets))
        except pace.InvalidWaves as failure:
            raise errors.InvalidArgument(str(failure), violations={"plan.waves": str(failure)}) from None
        return {
            "id": new_id(),
            "organization": call.organization,
            "plan": without_names(plan).SerializeToString(deterministic=True),
            "state": int(RolloutState.RUNNING),
            "state_reason": "",
            "wave": 1,
            "wave_ends": json.dumps(ends),
            "wave_ended_at": None,
            "targets_sha256": pace.digest_of(names.container_name(*target) for target in targets),
            "reason": reason,
            "actor_type": int(call.actor.type),
            "actor": call.actor.id,
            "actor_email": call.actor.email,
            "source": call.user_agent,
            "correlation": call.request_id,
            "request_id": request_id,
            "parent": call.operation,
            "retry_of": retry_of,
            "created_at": self._clock(),
            "settled_at": None,
            "replica": "",
            "replica_until": 0,
        }

    def _make(self, call: Call, values: dict[str, Any], targets: Sequence[tuple[str, str]]) -> Change[Any]:
        ends = json.loads(values["wave_ends"])
        rows = [
            {"agent": agent, "container": container, "wave": pace.wave_of(number, ends)}
            for number, (agent, container) in enumerate(targets)
        ]
        call.targets = (("rollout", values["id"]),)
        data = {
            "targets": len(targets),
            # Whoever has the list of the targets can show that this was it.
            "targets_sha256": base64.b64encode(values["targets_sha256"]).decode(),
            "wave_ends": ends,
            **({"retry_of": values["retry_of"]} if values["retry_of"] else {}),
        }
        call.details["data"] = data

        def apply(transaction: Transaction) -> rollouts_pb2.Rollout:
            at = transaction.recorded_at
            row = rollouts.insert(transaction.connection, {**values, "created_at": at}, rows)
            transaction.append(conductor.plan_event(row, at, data))
            return rollout_of(row, Tally(waiting=len(rows)))

        return Change(apply, then=self._conductor.wake)

    async def _find(self, name: str) -> rollouts.Row:
        row = await self._reader.read(rollouts.get, calls.current().organization, names.rollout_of(name))
        if row is None:
            raise errors.NotFound(
                f"there is no rollout {names.rollout_of(name)} in your organization: see `lading rollouts ls`"
            )
        return row

    async def _message(self, row: rollouts.Row) -> rollouts_pb2.Rollout:
        counts = await self._reader.read(rollouts.count, [row.id])
        return rollout_of(row, tally_of(counts[row.id]))

    async def GetRollout(self, request: rollouts_pb2.GetRolloutRequest, context: Any) -> Any:
        return await self._message(await self._find(request.name))

    async def ListRollouts(self, request: rollouts_pb2.ListRolloutsRequest, context: Any) -> Any:
        size = paging.size(request.page_size)
        before: Any = paging.key("rollouts", request.page_token, int, str)
        rows = await self._reader.read(
            rollouts.list_newest,
            calls.current().organization,
            before=before,
            limit=size + 1,
            states=list(request.states),
        )
        page = paging.portion(rows[:size], lambda row: len(row.plan))
        counts = await self._reader.read(rollouts.count, [row.id for row in page])
        return rollouts_pb2.ListRolloutsResponse(
            rollouts=[rollout_of(row, tally_of(counts[row.id])) for row in page],
            next_page_token=paging.token("rollouts", page[-1].created_at, page[-1].id) if len(rows) > len(page) else "",
        )

    async def ListRolloutTargets(self, request: rollouts_pb2.ListRolloutTargetsRequest, context: Any) -> Any:
        row = await self._find(request.rollout)
        size = paging.size(request.page_size)
        key: Any = paging.key(f"rollout {row.id}", request.page_token, int)
        found = await self._reader.read(
            rollouts.list_targets,
            row.id,
            after=key[0] if key else -1,
            limit=size + 1,
            states=list(request.states),
        )
        page = found[:size]
        return rollouts_pb2.ListRolloutTargetsResponse(
            targets=[target_of(target) for target in page],
            next_page_token=paging.token(f"rollout {row.id}", page[-1].number) if len(found) > size else "",
        )

    async def WatchRollout(
        self, request: rollouts_pb2.WatchRolloutRequest, context: Any
    ) -> AsyncIterator[rollouts_pb2.Rollout]:
        organization = calls.current().organization
        changed = self._sessions.watch(organization)
        shown = None
        try:
            while True:
                changed.clear()
                message = await self._message(await self._find(request.name))
                if message != shown:
                    shown = message
                    yield message
                if RolloutState(message.state) in pace.SETTLED:
                    return
                try:
                    async with asyncio.timeout(WATCH_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    pass
                await asyncio.sleep(conductor.REST_SECONDS)
        finally:
            self._sessions.unwatch(organization, changed)

    async def PauseRollout(self, request: rollouts_pb2.PauseRolloutRequest, context: Any) -> Any:
        why = f"paused by {calls.current().actor.id}"
        return self._move(request.name, (RolloutState.RUNNING,), state=RolloutState.PAUSED, state_reason=why)

    async def ResumeRollout(self, request: rollouts_pb2.ResumeRolloutRequest, context: Any) -> Any:
        return self._move(request.name, (RolloutState.PAUSED,), state=RolloutState.RUNNING, state_reason="")

    async def StopRollout(self, request: rollouts_pb2.StopRolloutRequest, context: Any) -> Any:
        why = f"stopped by {calls.current().actor.id}"
        before = (RolloutState.RUNNING, RolloutState.PAUSED)
        return self._move(request.name, before, state=RolloutState.STOPPED, state_reason=why)

    def _move(self, name: str, before: tuple[RolloutState, ...], **values: Any) -> Change[rollouts_pb2.Rollout]:
        call = calls.current()
        state = values["state"]
        rollout = names.rollout_of(name)

        def apply(transaction: Transaction) -> rollouts_pb2.Rollout:
            connection, at = transaction.connection, transaction.recorded_at
            row = rollouts.get(connection, call.organization, rollout)
            if row is None:
                raise errors.NotFound(f"there is no rollout {rollout} in your organization: see `lading rollouts ls`")
            tally = tally_of(rollouts.count(connection, [rollout])[rollout])
            more: dict[str, Any] = {"settled_at": at} if state in pace.SETTLED else {}
            if state is RolloutState.RUNNING:
                rollouts.forgive(connection, rollout)
            moved = rollouts.move(connection, rollout, before, **values, **more)
            if moved is None:
                raise errors.FailedPrecondition(f"the rollout is {RolloutState(row.state).name} already")
            was = RolloutState(row.state).name
            call.diff = [{"op": "replace", "path": "/state", "value": state.name, "was": was}]
            if state in pace.SETTLED:
                data = {"wave": row.wave, "waves": len(json.loads(row.wave_ends)), **conductor.counts_of(tally)}
                transaction.append(conductor.end_event(moved, at, state, data, values["state_reason"]))
            return rollout_of(moved, tally)

        return Change(apply, then=partial(self._moved, call, rollout, state))

    def _moved(self, call: Call, rollout: str, state: RolloutState) -> None:
        self._sessions.notify(call.organization)
        self._conductor.wake()
        if state is RolloutState.STOPPED:
            self._conductor.cancel_undelivered(call, rollout)

    async def RetryRollout(self, request: rollouts_pb2.RetryRolloutRequest, context: Any) -> Any:
        call = calls.current()
        row = await self._find(request.name)
        if row.settled_at is None:
            raise errors.FailedPrecondition("the rollout has not ended: stop it first")
        found = await self._reader.read(rollouts.list_targets, row.id, after=-1, limit=pace.TARGETS_MAX, states=AGAIN)
        if not found:
            raise errors.FailedPrecondition("every target succeeded: there is nothing to do again")
        targets = [(target.agent, target.container) for target in found]
        plan = rollouts_pb2.RolloutPlan.FromString(row.plan)
        values = self._values(call, plan, targets, request.reason or row.reason, request.request_id, retry_of=row.id)
        return self._make(call, values, targets)


def checked(asked: rollouts_pb2.RolloutPlan) -> rollouts_pb2.RolloutPlan:
    """The plan with what it leaves out filled in. Raises InvalidArgument."""
    plan = rollouts_pb2.RolloutPlan()
    plan.CopyFrom(asked)
    wrong: dict[str, str] = {}
    if plan.verb not in ACTIONS:
        wrong["plan.verb"] = "must be one of start, stop, restart, kill, pause, unpause, remove"
    if plan.containers and (plan.labels or plan.agent):
        wrong["plan.containers"] = "must not be given together with labels or an agent"
    if not (plan.containers or plan.labels or plan.agent):
        wrong["plan.labels"] = "must say which containers: labels, an agent, or their names"
    if plan.max_concurrent > pace.CONCURRENT_MAX:
        wrong["plan.max_concurrent"] = f"must be at most {pace.CONCURRENT_MAX}"
    arguments = plan.arguments
    if arguments.HasField("spec") or arguments.image or arguments.HasField("exec"):
        wrong["plan.arguments"] = "must be only what the verb takes: grace, signal or force"
    if arguments.HasField("grace") and not 0 <= microseconds(arguments.grace) <= GRACE_SECONDS_MAX * 1_000_000:
        wrong["plan.arguments.grace"] = f"must be 0 to {GRACE_SECONDS_MAX} s"
    if not plan.HasField("execute_within"):
        plan.execute_within.seconds = EXECUTE_SECONDS
    if not 1000 <= microseconds(plan.execute_within) <= EXECUTE_SECONDS_MAX * 1_000_000:
        wrong["plan.execute_within"] = f"must be between 0.001 s and {EXECUTE_SECONDS_MAX} s"
    if not 0 <= microseconds(plan.soak) <= SOAK_SECONDS_MAX * 1_000_000:
        wrong["plan.soak"] = f"must be 0 to {SOAK_SECONDS_MAX} s"
    if wrong:
        raise errors.InvalidArgument("; ".join(f"{field}: {why}" for field, why in wrong.items()), violations=wrong)
    plan.max_concurrent = plan.max_concurrent or pace.CONCURRENT
    plan.on_breach = plan.on_breach or rollouts_pb2.ON_BREACH_PAUSE
    return plan


def without_names(plan: rollouts_pb2.RolloutPlan) -> rollouts_pb2.RolloutPlan:
    """What is kept of a plan: its targets are rows of their own, and up to 10,000 names would be in every answer."""
    kept = rollouts_pb2.RolloutPlan()
    kept.CopyFrom(plan)
    del kept.containers[:]
    return kept


def work_of(row: rollouts.Row) -> Work:
    """What the conductor is to do for a rollout."""
    plan = rollouts_pb2.RolloutPlan.FromString(row.plan)
    return Work(
        verb=plan.verb,
        action=ACTIONS[plan.verb],
        arguments=plan.arguments.SerializeToString(deterministic=True),
        execute_within=microseconds(plan.execute_within),
        pace=pace.Pace(plan.max_concurrent, plan.max_failures, microseconds(plan.soak)),
        pause_on_breach=plan.on_breach != rollouts_pb2.ON_BREACH_STOP,
        wave_ends=tuple(json.loads(row.wave_ends)),
    )


def reason_of(row: rollouts.Row, tally: Tally) -> str:
    """Why it is in its state. One that was paused for its failures says how many they are now."""
    if row.state == RolloutState.PAUSED and not row.state_reason:
        return pace.breach_of(tally, work_of(row).pace)
    return str(row.state_reason)


def rollout_of(row: rollouts.Row, tally: Tally) -> rollouts_pb2.Rollout:
    """A rollout as it is."""
    return rollouts_pb2.Rollout(
        name=names.rollout_name(row.id),
        plan=rollouts_pb2.RolloutPlan.FromString(row.plan),
        state=row.state,
        state_reason=reason_of(row, tally),
        wave=row.wave,
        wave_ends=json.loads(row.wave_ends),
        targets_total=tally.total,
        targets_waiting=tally.waiting,
        targets_in_flight=tally.in_flight,
        targets_succeeded=tally.succeeded,
        targets_failed=tally.failed,
        targets_unknown=tally.unknown,
        targets_sha256=row.targets_sha256,
        reason=row.reason,
        actor=row.actor,
        actor_email=row.actor_email,
        retry_of=names.rollout_name(row.retry_of) if row.retry_of else "",
        created_at=stamp(row.created_at),
        wave_ended_at=stamp(row.wave_ended_at),
        settled_at=stamp(row.settled_at),
    )


def validated(values: dict[str, Any], total: int) -> rollouts_pb2.Rollout:
    """What a rollout would be."""
    return rollouts_pb2.Rollout(
        plan=rollouts_pb2.RolloutPlan.FromString(values["plan"]),
        wave_ends=json.loads(values["wave_ends"]),
        targets_total=total,
        targets_waiting=total,
        targets_sha256=values["targets_sha256"],
        reason=values["reason"],
        actor=values["actor"],
        actor_email=values["actor_email"],
    )


def target_of(row: rollouts.Row) -> rollouts_pb2.RolloutTarget:
    """One target as it is."""
    return rollouts_pb2.RolloutTarget(
        container=names.container_name(row.agent, row.container),
        wave=row.wave,
        command=names.command_name(row.command) if row.command else "",
        state=row.state,
        error=row.error,
    )
