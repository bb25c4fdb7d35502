"""Rollouts on a real server, with agents by hand: waves, budgets, pauses, and what a crash leaves."""

import asyncio
import base64
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from lading.v1 import access_pb2, agent_link_pb2, commands_pb2, rollouts_pb2, rollouts_pb2_grpc
from lading_server import conductor as conductor_module
from lading_server import dispatch as dispatch_module
from lading_server import errors, paging
from lading_server.event import Outcome, Stage
from lading_server.ledger import ledger as ledger_module
from lading_server.rollouts import RolloutState
from lading_server.settings import Settings
from lading_server.store import commands as commands_store
from lading_server.store import rollouts as rollouts_store
from tests.integration.server.fake_agent import FakeAgent, connected
from tests.integration.server.ledgers import on_commit
from tests.integration.server.running import OTHER_ORGANIZATION, Running, bearer, detail, running, sign

NAMES = [f"web-{number}" for number in range(6)]
FAILED = commands_pb2.COMMAND_STATE_FAILED


class Fleet:
    """An agent whose containers all exist, and which settles commands as the test says."""

    def __init__(self, server: Running, agent: FakeAgent) -> None:
        self.server, self.agent = server, agent
        self.stub: Any = rollouts_pb2_grpc.RolloutsStub(server.channel())

    async def call(self, method: str, request: Any, metadata: Any = None) -> Any:
        return await getattr(self.stub, method)(request, metadata=metadata or self.server.me)

    async def create(self, *, validate_only: bool = False, reason: str = "release", **plan: Any) -> Any:
        plan = {"verb": commands_pb2.VERB_RESTART, "agent": "agents/dock-1", **plan}
        return await self.call(
            "CreateRollout",
            rollouts_pb2.CreateRolloutRequest(
                plan=rollouts_pb2.RolloutPlan(**plan), reason=reason, validate_only=validate_only
            ),
        )

    async def get(self, rollout: Any) -> Any:
        return await self.call("GetRollout", rollouts_pb2.GetRolloutRequest(name=rollout.name))

    async def targets(self, rollout: Any) -> Any:
        request = rollouts_pb2.ListRolloutTargetsRequest(rollout=rollout.name)
        return (await self.call("ListRolloutTargets", request)).targets

    async def take(self, count: int) -> dict[str, str]:
        """The next commands: ids by container."""
        envelopes = [await self.agent.envelope() for _ in range(count)]
        return {one.container: one.command for one in envelopes}

    async def settle(self, *commands: str, **result: Any) -> None:
        for command in commands:
            await self.agent.send(result=agent_link_pb2.Result(**{"command": command, **END, **result}))
            await self.agent.receipt(command)

    async def until(self, rollout: Any, condition: Callable[[Any], bool]) -> Any:
        """The rollout once it is so, as WatchRollout shows it."""
        async with asyncio.timeout(20):
            request = rollouts_pb2.WatchRolloutRequest(name=rollout.name)
            async for found in self.stub.WatchRollout(request, metadata=self.server.me):
                if condition(found):
                    return found
        raise AssertionError("the watch ended before")


END = {"state": commands_pb2.COMMAND_STATE_SUCCEEDED, "evidence": "executed"}


def is_in(state: RolloutState) -> Callable[[Any], bool]:
    return lambda rollout: bool(rollout.state == state)


@pytest.fixture
async def server(any_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(conductor_module, "LOOK_SECONDS", 0.1)
    async with running(any_settings) as made:
        yield made


@pytest.fixture
async def fleet(server: Running) -> AsyncIterator[Fleet]:
    async with connected(server) as agent:
        await agent.report(*NAMES)
        yield Fleet(server, agent)


async def test_waves_follow_each_other_and_all_of_it_is_recorded(fleet: Fleet) -> None:
    rollout = await fleet.create(waves=["1", "50%", "100%"], max_concurrent=2)
    assert list(rollout.wave_ends) == [1, 3, 6]
    first = await fleet.take(1)
    assert list(first) == ["web-0"]
    await fleet.settle(*first.values())
    second = await fleet.take(2)
    assert sorted(second) == ["web-1", "web-2"]
    await fleet.settle(*second.values())
    third = await fleet.take(2)
    assert sorted(third) == ["web-3", "web-4"], "no more than two at a time"
    await fleet.settle(third["web-3"])
    last = await fleet.take(1)
    await fleet.settle(third["web-4"], *last.values())
    done = await fleet.until(rollout, is_in(RolloutState.SUCCEEDED))
    assert (done.targets_succeeded, done.targets_failed, done.wave) == (6, 0, 3)
    id = rollout.name.removeprefix("rollouts/")
    (plan, end) = fleet.server.events(operation=id)
    assert (plan.stage, plan.action, plan.reason) == (Stage.RECEIVED, "rollout.run", "release")
    listed = "".join(f"agents/dock-1/containers/{name}\n" for name in NAMES).encode()
    digest = base64.b64encode(hashlib.sha256(listed).digest()).decode()
    assert plan.details["data"]["targets_sha256"] == digest
    assert (end.stage, end.outcome, end.details["data"]["succeeded"]) == (Stage.COMPLETED, Outcome.SUCCESS, 6)
    assert len(fleet.server.events(action="rollout.wave", parent=id)) == 2
    intents = fleet.server.events(action="container.restart", stage=Stage.RECEIVED, parent=id)
    assert [event.actor for event in intents] == ["ada"] * 6
    assert {target.command for target in await fleet.targets(rollout)} == {
        f"commands/{event.operation}" for event in intents
    }


async def test_breach_pauses_and_resume_goes_on(fleet: Fleet) -> None:
    rollout = await fleet.create(waves=["2", "100%"], max_failures=1)
    first = await fleet.take(2)
    await fleet.settle(*first.values(), state=FAILED, code=9, error="it does not run")
    paused = await fleet.until(rollout, is_in(RolloutState.PAUSED))
    assert paused.state_reason == "2 failed, 1 were allowed"
    assert paused.targets_waiting == 4
    (breach,) = fleet.server.events(action="rollout.breach")
    assert (breach.outcome, breach.error) == (Outcome.FAILURE, "2 failed, 1 were allowed")
    await fleet.call("ResumeRollout", rollouts_pb2.ResumeRolloutRequest(name=rollout.name, reason="known"))
    rest = await fleet.take(4)
    await fleet.settle(*rest.values())
    done = await fleet.until(rollout, is_in(RolloutState.SUCCEEDED))
    assert (done.targets_succeeded, done.targets_failed) == (4, 2)
    again = await fleet.call("RetryRollout", rollouts_pb2.RetryRolloutRequest(name=rollout.name))
    assert (again.retry_of, again.targets_total) == (rollout.name, 2)
    assert sorted(await fleet.take(2)) == ["web-0", "web-1"]


async def test_breach_stops_where_the_plan_says_so(fleet: Fleet) -> None:
    rollout = await fleet.create(waves=["1", "100%"], on_breach=rollouts_pb2.ON_BREACH_STOP)
    await fleet.settle(*(await fleet.take(1)).values(), state=FAILED, code=9, error="it does not run")
    ended = await fleet.until(rollout, is_in(RolloutState.FAILED))
    assert (ended.targets_waiting, ended.targets_failed) == (5, 1)
    end = await fleet.server.event(operation=rollout.name.removeprefix("rollouts/"), stage=Stage.COMPLETED)
    assert end.outcome is Outcome.FAILURE


async def test_stop_cancels_what_no_agent_has(fleet: Fleet) -> None:
    await fleet.agent.leave()
    rollout = await fleet.create()
    await fleet.until(rollout, lambda found: bool(found.targets_in_flight == 6))
    await fleet.call("StopRollout", rollouts_pb2.StopRolloutRequest(name=rollout.name, reason="wrong"))
    async with asyncio.timeout(20):
        while (found := await fleet.get(rollout)).targets_failed < 6:
            await fleet.server.event(outcome=Outcome.CANCELLED, action="container.restart")
    assert found.state == RolloutState.STOPPED
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await fleet.call("ResumeRollout", rollouts_pb2.ResumeRolloutRequest(name=rollout.name))
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.value.details() == "the rollout is STOPPED already"


async def test_paused_rollout_begins_nothing(fleet: Fleet) -> None:
    rollout = await fleet.create(waves=["1", "100%"])
    first = await fleet.take(1)
    await fleet.call("PauseRollout", rollouts_pb2.PauseRolloutRequest(name=rollout.name, reason="look"))
    await fleet.settle(*first.values())
    found = await fleet.until(rollout, lambda one: bool(one.targets_succeeded == 1))
    assert (found.state, found.targets_waiting) == (RolloutState.PAUSED, 5)
    await fleet.agent.sync()  # nothing came before the receipt
    await fleet.call("ResumeRollout", rollouts_pb2.ResumeRolloutRequest(name=rollout.name))
    await fleet.take(5)


async def test_plan_can_be_looked_at_first(fleet: Fleet) -> None:
    plan = await fleet.create(waves=["10%"], validate_only=True)
    assert (plan.name, plan.targets_total, list(plan.wave_ends)) == ("", 6, [1, 6])
    assert fleet.server.events(action="rollout.run") == []


async def test_looking_at_a_plan_uses_up_no_request_id(fleet: Fleet) -> None:
    plan = rollouts_pb2.RolloutPlan(verb=commands_pb2.VERB_RESTART, agent="agents/dock-1", max_concurrent=1)
    for validate_only in (True, False, False):
        request = rollouts_pb2.CreateRolloutRequest(plan=plan, request_id="once", validate_only=validate_only)
        await fleet.call("CreateRollout", request)
    assert len(fleet.server.rows("SELECT id FROM rollouts")) == 1


async def test_nothing_begins_beyond_the_wave(fleet: Fleet) -> None:
    """As by a replica that counted before another one went on with the same wave."""
    rollout = await fleet.create(waves=["2"])
    await fleet.take(2)
    id = rollout.name.removeprefix("rollouts/")
    assert await fleet.server.server._reader.read(rollouts_store.list_waiting, id, 1, 100) == []


async def test_drained_agent_fails_its_targets(fleet: Fleet) -> None:
    fleet.server.write("UPDATE agents SET drained = true")
    rollout = await fleet.create(max_failures=6)
    done = await fleet.until(rollout, is_in(RolloutState.SUCCEEDED))
    assert done.targets_failed == 6
    target, *_ = await fleet.targets(rollout)
    assert (target.command, target.state) == ("", FAILED)
    assert "drained" in target.error


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        ({"verb": commands_pb2.VERB_CREATE}, "plan.verb"),
        ({"waves": ["50%", "1"]}, "plan.waves"),
        ({"agent": "", "labels": {}}, "plan.labels"),
        ({"containers": ["agents/dock-1/containers/web-0"]}, "plan.containers"),
        ({"max_concurrent": 5000}, "plan.max_concurrent"),
        ({"arguments": commands_pb2.Arguments(image="x")}, "plan.arguments"),
    ],
)
async def test_bad_plans_are_refused_by_their_field(fleet: Fleet, plan: dict[str, Any], field: str) -> None:
    from google.rpc import error_details_pb2

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await fleet.create(**plan)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [one.field for one in detail(refusal.value, error_details_pb2.BadRequest).field_violations] == [field]


async def test_nobody_sees_another_organizations_rollout(fleet: Fleet) -> None:
    rollout = await fleet.create(waves=["1", "100%"])
    other = bearer(sign(fleet.server.settings, organization=OTHER_ORGANIZATION))
    for method, request in (
        ("GetRollout", rollouts_pb2.GetRolloutRequest(name=rollout.name)),
        ("ListRolloutTargets", rollouts_pb2.ListRolloutTargetsRequest(rollout=rollout.name)),
        ("PauseRollout", rollouts_pb2.PauseRolloutRequest(name=rollout.name)),
        ("StopRollout", rollouts_pb2.StopRolloutRequest(name=rollout.name)),
        ("RetryRollout", rollouts_pb2.RetryRolloutRequest(name=rollout.name)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await fleet.call(method, request, other)
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND, method
    assert not (await fleet.call("ListRollouts", rollouts_pb2.ListRolloutsRequest(), other)).rollouts


async def test_restarted_server_goes_on_where_it_was(any_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductor_module, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(conductor_module, "CLAIM_SECONDS", 0.5)
    async with running(any_settings) as server, connected(server) as agent:
        await agent.report(*NAMES)
        fleet = Fleet(server, agent)
        rollout = await fleet.create(waves=["2", "100%"])
        first = await fleet.take(2)
        await fleet.settle(first["web-0"])
        held = agent_link_pb2.HeldCommand(command=first["web-1"])
        epoch = agent.epoch
    async with running(any_settings) as server:
        agent = FakeAgent(server)
        agent.epoch = epoch
        await agent.connect(held=[held])
        fleet = Fleet(server, agent)
        await fleet.settle(first["web-1"])
        rest = await fleet.take(4)
        assert sorted(rest) == NAMES[2:]
        await fleet.settle(*rest.values())
        done = await fleet.until(rollout, is_in(RolloutState.SUCCEEDED))
        assert done.targets_succeeded == 6
        assert len(server.events(action="container.restart", stage=Stage.RECEIVED)) == 6
        agent.vanish()


async def test_target_whose_command_came_to_disk_too_late_is_tried_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conductor was told UNAVAILABLE, so the command is withdrawn: its target has not begun, and has not failed."""
    monkeypatch.setattr(conductor_module, "LOOK_SECONDS", 0.1)
    async with running(settings) as server, connected(server) as agent:
        await agent.report(*NAMES)
        fleet = Fleet(server, agent)
        reached, leave, insert = threading.Event(), threading.Event(), commands_store.insert

        def hold(commit: Callable[[], None]) -> None:
            reached.set()
            assert leave.wait(30)
            commit()

        def arm(*args: Any) -> Any:
            monkeypatch.setattr(commands_store, "insert", insert)
            on_commit(server, hold)
            return insert(*args)

        monkeypatch.setattr(commands_store, "insert", arm)
        rollout = await fleet.create(agent="", containers=["agents/dock-1/containers/web-3"])
        assert await asyncio.to_thread(reached.wait, 10)
        monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 0.0)
        async with asyncio.timeout(30):
            while not all(unit.withdrawn for unit in server.ledger._batch):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
        leave.set()
        again = await fleet.take(1)
        await fleet.settle(*again.values())
        done = await fleet.until(rollout, is_in(RolloutState.SUCCEEDED))
        assert (done.targets_succeeded, done.targets_failed) == (1, 0)
        (target,) = await fleet.targets(rollout)
        assert target.command == f"commands/{again['web-3']}"
        assert [event.outcome for event in server.events(action="container.restart", stage=Stage.COMPLETED)] == [
            Outcome.CANCELLED,
            Outcome.SUCCESS,
        ]


async def test_unknown_that_turns_out_well_leaves_no_larger_budget(fleet: Fleet) -> None:
    """Resumed after an UNKNOWN, which then settles as SUCCEEDED: the next failures are counted from nothing."""
    rollout = await fleet.create(waves=["1", "3", "100%"])
    first = await fleet.take(1)
    await fleet.settle(*first.values(), state=commands_pb2.COMMAND_STATE_UNKNOWN, evidence="none")
    await fleet.until(rollout, is_in(RolloutState.PAUSED))
    resolve = commands_pb2.ResolveCommandRequest(
        name=f"commands/{first['web-0']}", state=commands_pb2.COMMAND_STATE_SUCCEEDED, reason="it runs"
    )
    await fleet.call("ResumeRollout", rollouts_pb2.ResumeRolloutRequest(name=rollout.name))
    second = await fleet.take(2)
    await fleet.server.stubs.commands.ResolveCommand(resolve, metadata=fleet.server.me)
    await fleet.settle(second["web-1"], state=FAILED, code=9, error="it does not run")
    paused = await fleet.until(rollout, is_in(RolloutState.PAUSED))
    assert paused.state_reason == "1 failed, 0 were allowed"
    assert (paused.targets_succeeded, paused.targets_unknown, paused.targets_waiting) == (1, 0, 3)


async def test_paused_rollout_says_why_as_it_is_by_now(fleet: Fleet) -> None:
    rollout = await fleet.create(waves=["1", "100%"])
    first = await fleet.take(1)
    await fleet.settle(*first.values(), state=commands_pb2.COMMAND_STATE_UNKNOWN, evidence="none")
    paused = await fleet.until(rollout, is_in(RolloutState.PAUSED))
    assert paused.state_reason == "1 failed or were unknown, 0 were allowed"
    await fleet.settle(*first.values())
    found = await fleet.until(rollout, lambda one: bool(one.targets_succeeded == 1))
    assert found.state == RolloutState.PAUSED, "a person saw it stop, and a person lets it go on"
    assert found.state_reason == "more than 0 had failed or were unknown, by now 0: resume it to go on"
    await fleet.call("ResumeRollout", rollouts_pb2.ResumeRolloutRequest(name=rollout.name))
    await fleet.settle(*(await fleet.take(5)).values())
    assert (await fleet.until(rollout, is_in(RolloutState.SUCCEEDED))).state_reason == ""


async def test_command_that_cannot_be_cancelled_leaves_no_other_to_run(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor_module, "RETRY_SECONDS", 0.01)
    await fleet.agent.leave()
    rollout = await fleet.create()
    await fleet.until(rollout, lambda found: bool(found.targets_in_flight == 6))
    cancel, failures = dispatch_module.Dispatcher.cancel, iter([errors.Error, errors.LedgerUnavailable])

    async def fail(*args: Any) -> Any:
        for failure in failures:
            raise failure
        return await cancel(*args)

    monkeypatch.setattr(dispatch_module.Dispatcher, "cancel", fail)
    await fleet.call("StopRollout", rollouts_pb2.StopRolloutRequest(name=rollout.name, reason="wrong"))
    await fleet.until(rollout, is_in(RolloutState.STOPPED))
    await fleet.server.until(lambda: len(fleet.server.events(outcome=Outcome.CANCELLED, stage=Stage.COMPLETED)) == 6)
    assert (await fleet.get(rollout)).targets_failed == 5


async def test_breach_that_stops_cancels_what_no_agent_has(fleet: Fleet) -> None:
    async with connected(fleet.server, "dock-2") as away:
        await away.report("web")
        await away.leave()
    names = ["agents/dock-1/containers/web-0", "agents/dock-2/containers/web"]
    rollout = await fleet.create(agent="", containers=names, on_breach=rollouts_pb2.ON_BREACH_STOP)
    first = await fleet.take(1)
    await fleet.until(rollout, lambda found: bool(found.targets_in_flight == 2))
    await fleet.settle(*first.values(), state=FAILED, code=9, error="it does not run")
    cancelled = await fleet.server.event(outcome=Outcome.CANCELLED, action="container.restart")
    assert (cancelled.agent, cancelled.error) == ("dock-2", "cancelled by lading-server")
    found = await fleet.get(rollout)
    assert (found.state, found.targets_failed, found.targets_in_flight) == (RolloutState.FAILED, 2, 0)


async def test_rollout_ends_when_its_author_may_no_longer_operate(fleet: Fleet) -> None:
    server, role = fleet.server, {"subject": "bob", "role": access_pb2.ROLE_OPERATOR}
    await server.stubs.access.AssignRole(access_pb2.AssignRoleRequest(**role), metadata=server.me)
    plan = rollouts_pb2.RolloutPlan(verb=commands_pb2.VERB_RESTART, agent="agents/dock-1", waves=["1", "100%"])
    request = rollouts_pb2.CreateRolloutRequest(plan=plan)
    rollout = await fleet.call("CreateRollout", request, bearer(sign(server.settings, "bob")))
    first = await fleet.take(1)
    await server.stubs.access.RemoveRole(access_pb2.RemoveRoleRequest(**role), metadata=server.me)
    await fleet.settle(*first.values())
    ended = await fleet.until(rollout, is_in(RolloutState.STOPPED))
    assert ended.state_reason == "bob may not operate containers any more"
    assert (ended.targets_succeeded, ended.targets_waiting) == (1, 5)
    end = await server.event(operation=rollout.name.removeprefix("rollouts/"), stage=Stage.COMPLETED)
    assert (end.outcome, end.code, end.error) == (Outcome.DENIED, 7, ended.state_reason)
    again = await fleet.call("RetryRollout", rollouts_pb2.RetryRolloutRequest(name=rollout.name))
    assert (again.actor, again.targets_total) == ("ada", 5)


async def test_answers_repeat_no_names_and_pages_are_bounded(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"agents/dock-1/containers/{name}" for name in NAMES]
    made = [await fleet.create(agent="", containers=names, validate_only=number == 0) for number in range(4)]
    found = [*made, await fleet.get(made[1]), await fleet.until(made[1], lambda _rollout: True)]
    assert [list(rollout.plan.containers) for rollout in found] == [[]] * 6
    assert [target.container for target in await fleet.targets(made[1])] == names
    monkeypatch.setattr(paging, "BYTES", 1)
    listed, token = [], "begin"
    while token:
        request = rollouts_pb2.ListRolloutsRequest(page_token=token.removeprefix("begin"))
        page = await fleet.call("ListRollouts", request)
        assert len(page.rollouts) == 1
        listed, token = [*listed, *page.rollouts], page.next_page_token
    assert [rollout.name for rollout in listed] == [rollout.name for rollout in reversed(made[1:])]
    assert not any(rollout.plan.containers for rollout in listed)
