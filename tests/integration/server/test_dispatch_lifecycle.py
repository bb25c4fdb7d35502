"""From the call to the agent and back: what is recorded when, and what the caller is told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from lading.v1 import agent_link_pb2, agents_pb2, commands_pb2, containers_pb2
from lading_server import dispatch as dispatch_module
from lading_server.commands import State
from lading_server.event import Outcome, Stage
from lading_server.ledger import ledger as ledger_module
from lading_server.services import agent_link as agent_link_module
from lading_server.services import containers
from lading_server.sessions import Session
from lading_server.settings import Settings
from tests.integration.server.commands import DONE, WEB, ask, refused, stages, state_of
from tests.integration.server.fake_agent import FakeAgent, connected, held, result_of
from tests.integration.server.ledgers import busy
from tests.integration.server.running import Running, info, running

FAILED, CANCELLED = commands_pb2.COMMAND_STATE_FAILED, commands_pb2.COMMAND_STATE_CANCELLED

START = containers_pb2.StartContainerRequest


@pytest.fixture
async def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 0.02)
    async with running(settings) as made:
        yield made


@pytest.fixture
async def agent(server: Running) -> AsyncIterator[FakeAgent]:
    async with connected(server) as made:
        yield made


async def test_busy_server_receipts_by_the_ack_of_its_next_frame_what_comes_from_agents_that_know_it(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "BUSY_FROM", 0)
    call = ask(server)
    await agent.finish(await agent.dispatched())  # this one knows nothing of it
    await call
    agent.vanish()
    await agent.connect(capabilities=["ack-receipts"])
    call = ask(server)
    first = await agent.dispatched()
    await agent.send(result=result_of(first))
    told = agent.seq
    await call
    call = ask(server)
    second = await agent.dispatched()  # and no receipt before it
    assert agent.last.ack == told
    assert stages(server, first)[-1] == DONE[-1]
    await agent.send(result=result_of(second))
    await call


async def test_intent_is_committed_before_the_bytes_reach_the_agent(server: Running, agent: FakeAgent) -> None:
    call = ask(server)
    command = await agent.dispatched()
    (intent,) = server.events(operation=command)
    assert intent.summary == (Stage.RECEIVED, Outcome.PENDING, 0)
    assert (intent.action, intent.actor, intent.target, intent.agent) == (
        "container.start",
        "ada",
        "dock-1/web",
        "dock-1",
    )
    assert state_of(server, command) is State.DISPATCHED
    await agent.finish(command)
    await call


async def test_command_is_acknowledged_executed_and_answered(server: Running, agent: FakeAgent) -> None:
    call = ask(server)
    envelope = await agent.envelope()
    assert (envelope.organization, envelope.agent, envelope.container) == ("acme", "dock-1", "web")
    assert (envelope.verb, envelope.actor) == (commands_pb2.VERB_START, "ada")
    await agent.acknowledge(envelope.command)
    receipt = await agent.finish(envelope.command, container_id="c0ffee")
    reply = await call
    assert reply.name == f"commands/{envelope.command}"
    assert (reply.state, reply.container_id, reply.evidence) == (
        commands_pb2.COMMAND_STATE_SUCCEEDED,
        "c0ffee",
        "executed",
    )
    assert stages(server, envelope.command) == DONE
    received, started, completed = server.events(operation=envelope.command)
    assert receipt.index == completed.index
    assert (received.superseded_by, started.superseded_by) == (started.index, completed.index)
    rpc = await server.event(operation=reply.parent)
    assert rpc.summary == (Stage.COMPLETED, Outcome.SUCCESS, 0)
    assert rpc.superseded_by == received.index, "the list shows the command in its place"
    assert {received.parent, started.parent, completed.parent} == {rpc.operation}


async def test_result_says_how_the_container_is_before_the_caller_is_answered(
    server: Running, agent: FakeAgent
) -> None:
    call = ask(server)
    command = await agent.dispatched()
    await agent.finish(command, container=containers_pb2.Container(name="web", id="id-web", state="restarting"))
    await call
    request = containers_pb2.GetContainerRequest(name=WEB)
    assert (await server.stubs.containers.GetContainer(request, metadata=server.me)).state == "restarting"


async def test_commands_reach_the_agent_in_the_order_in_which_they_were_recorded(
    server: Running, agent: FakeAgent
) -> None:
    calls = [ask(server, detach=True) for _ in range(40)]
    arrived = [await agent.dispatched() for _ in calls]
    await asyncio.gather(*calls)
    recorded = [event.operation for event in server.events(stage=Stage.RECEIVED)]
    assert arrived == recorded


async def test_newer_command_does_not_overtake_those_that_waited(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.leave()
    for _ in range(5):
        await ask(server, detach=True)
    sending, send_on = asyncio.Event(), asyncio.Event()
    send = Session.send

    async def slow(session: Session, frame: Any) -> None:
        await send(session, frame)
        if frame.WhichOneof("frame") == "dispatch":
            sending.set()
            await send_on.wait()

    monkeypatch.setattr(Session, "send", slow)
    await agent.connect()
    await sending.wait()
    for _ in range(5):
        await ask(server, detach=True)
    send_on.set()
    arrived = [await agent.dispatched() for _ in range(10)]
    assert arrived == [event.operation for event in server.events(stage=Stage.RECEIVED)]


async def test_agent_has_no_more_commands_than_its_window(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link_module, "WINDOW", 3)
    monkeypatch.setattr(dispatch_module, "WINDOW", 3)
    agent = FakeAgent(server)
    assert (await agent.connect()).window == 3
    commands = [(await ask(server, detach=True)).name.removeprefix("commands/") for _ in range(5)]
    assert [await agent.dispatched() for _ in range(3)] == commands[:3]
    assert [state_of(server, one) for one in commands[3:]] == [State.PENDING] * 2
    await agent.send(result=result_of(commands[1]))
    assert {await next_of(agent), await next_of(agent)} == {("receipt", commands[1]), ("dispatch", commands[3])}
    assert state_of(server, commands[4]) is State.PENDING
    await agent.send(result=result_of(commands[1]))
    assert await next_of(agent) == ("receipt", commands[1])
    await agent.sync()
    assert state_of(server, commands[4]) is State.PENDING, "a result that is said twice frees no place"
    agent.vanish()


async def next_of(agent: FakeAgent) -> tuple[str, str]:
    """Kind of the next frame, and its command."""
    frame = await agent.next()
    kind = frame.WhichOneof("frame")
    agent.seen = frame.seq
    return (
        ("receipt", frame.result_receipt.command)
        if kind == "result_receipt"
        else (kind, agent_link_pb2.Envelope.FromString(frame.dispatch.envelope).command)
    )


@pytest.mark.parametrize(
    ("code", "error", "outcome"),
    [
        (StatusCode.FAILED_PRECONDITION, "container web is already running", Outcome.FAILURE),
        (StatusCode.NOT_FOUND, "No such container: web", Outcome.FAILURE),
        (StatusCode.DEADLINE_EXCEEDED, "it took longer than 10 min", Outcome.DEADLINE),
    ],
)
async def test_error_of_the_engine_is_the_error_of_the_call(
    server: Running, agent: FakeAgent, code: StatusCode, error: str, outcome: Outcome
) -> None:
    call = ask(server)
    command = await agent.dispatched()
    await agent.finish(command, state=FAILED, code=code.value[0], error=error)
    failure = await refused(call)
    assert (failure.code(), failure.details()) == (code, error)
    assert info(failure).metadata["command"] == f"commands/{command}"
    end = server.events(operation=command)[-1]
    assert (end.summary, end.error) == ((Stage.COMPLETED, outcome, code.value[0]), error)
    rpc = await server.event(operation=info(failure).metadata["operation"])
    assert rpc.code == code.value[0]


async def test_detached_call_is_answered_at_once_and_the_command_goes_on(server: Running, agent: FakeAgent) -> None:
    reply = await ask(server, detach=True)
    assert reply.state == commands_pb2.COMMAND_STATE_DISPATCHED
    command = await agent.dispatched()
    await agent.acknowledge(command)
    await agent.finish(command)
    assert stages(server, command) == DONE


async def test_agent_that_is_offline_is_said_to_be_so_at_once(server: Running, agent: FakeAgent) -> None:
    await agent.leave()
    failure = await refused(ask(server))
    assert failure.code() is StatusCode.UNAVAILABLE
    assert "detach" in str(failure.details())
    assert info(failure).metadata["agent"] == "dock-1"
    assert server.rows("SELECT * FROM commands") == []
    assert server.events(action="container.start")[-1].summary == (Stage.COMPLETED, Outcome.FAILURE, 14)


async def test_unknown_agent_is_not_found(server: Running) -> None:
    for detach in (False, True):
        failure = await refused(ask(server, name="agents/nowhere/containers/web", detach=detach))
        assert failure.code() is StatusCode.NOT_FOUND
    assert server.rows("SELECT * FROM commands") == []


async def test_detached_command_waits_for_its_agent(server: Running, agent: FakeAgent) -> None:
    await agent.leave()
    reply = await ask(server, detach=True)
    command = reply.name.removeprefix("commands/")
    assert (reply.state, state_of(server, command)) == (commands_pb2.COMMAND_STATE_PENDING, State.PENDING)
    await agent.connect()
    assert await agent.dispatched() == command
    await agent.finish(command)
    assert stages(server, command) == [DONE[0], DONE[2]]


async def test_command_that_is_not_delivered_in_time_expires(server: Running, agent: FakeAgent) -> None:
    await agent.leave()
    soon = Duration(nanos=1_000_000)
    reply = await ask(server, detach=True, deliver_within=soon)
    command = reply.name.removeprefix("commands/")
    end = await server.event(operation=command, stage=Stage.COMPLETED)
    assert end.summary == (Stage.COMPLETED, Outcome.DEADLINE, StatusCode.DEADLINE_EXCEEDED.value[0])
    assert state_of(server, command) is State.EXPIRED
    await agent.connect()
    await agent.sync()
    assert len(stages(server, command)) == 2, "what has expired is not delivered"


async def test_caller_is_told_before_its_deadline_that_the_command_goes_on(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = server.server._agent_link._dispatcher
    wait, given = dispatcher.wait, []

    async def wait_shortly(organization: str, command: str, seconds: float) -> Any:
        given.append(seconds)
        return await wait(organization, command, 0.3)

    monkeypatch.setattr(dispatcher, "wait", wait_shortly)
    call = ask(server, timeout=20)
    command = await agent.dispatched()
    failure = await refused(call)
    assert 0 < given[0] <= 20 - containers.ANSWER_EARLY_SECONDS
    assert failure.code() is StatusCode.DEADLINE_EXCEEDED
    assert info(failure).metadata["command"] == f"commands/{command}", "so it was the server that answered"
    rpc = await server.event(operation=info(failure).metadata["operation"])
    assert rpc.summary == (Stage.COMPLETED, Outcome.DEADLINE, 4)
    await agent.finish(command)
    assert stages(server, command) == [DONE[0], DONE[2]]


async def test_command_goes_on_when_its_caller_goes_away(server: Running, agent: FakeAgent) -> None:
    call = ask(server)
    command = await agent.dispatched()
    call.cancel()
    rpc = await server.event(action="container.start", outcome=Outcome.CANCELLED)
    await agent.finish(command)
    assert server.events(operation=command)[-1].summary == DONE[2]
    assert server.events(operation=command)[0].parent == rpc.operation


@pytest.mark.usefixtures("quiet")
async def test_recorded_command_reaches_its_agent_also_when_its_caller_left_during_the_commit(
    server: Running, agent: FakeAgent
) -> None:
    async with busy(server.ledger):
        call = ask(server)
        await server.waiting(1)
        call.cancel()
        await server.waiting(2)  # the record of a call that was cancelled
    command = await agent.dispatched()
    assert stages(server, command) == DONE[:1]
    await agent.finish(command)


async def test_duplicate_result_makes_no_second_end(server: Running, agent: FakeAgent) -> None:
    call = ask(server)
    command = await agent.dispatched()
    first = await agent.finish(command)
    await call
    second = await agent.finish(command, state=FAILED, code=13, error="no, it failed")
    assert (second.index, first.index >= 0) == (-1, True)
    assert stages(server, command) == [DONE[0], DONE[2]]
    assert state_of(server, command) is State.SUCCEEDED


async def test_acknowledge_after_the_result_is_harmless(server: Running, agent: FakeAgent) -> None:
    call = ask(server)
    command = await agent.dispatched()
    await agent.finish(command)
    await agent.acknowledge(command)
    await agent.acknowledge(command)
    await agent.sync()
    await call
    assert stages(server, command) == [DONE[0], DONE[2]]


async def test_command_of_another_organization_cannot_be_settled(server: Running, agent: FakeAgent) -> None:
    stranger = FakeAgent(server, organization="globex")
    await stranger.connect()
    call = ask(server)
    command = await agent.dispatched()
    await stranger.acknowledge(command)
    assert (await stranger.finish(command)).index == -1
    assert stages(server, command) == DONE[:1]
    stranger.vanish()
    other = FakeAgent(server, organization="globex")
    await other.connect(held=[held(command, state=FAILED, code=13)])
    await other.receipt(command)
    assert stages(server, command) == DONE[:1]
    other.vanish()
    await agent.finish(command)
    assert (await call).state == commands_pb2.COMMAND_STATE_SUCCEEDED


async def test_command_of_another_agent_cannot_be_settled(server: Running, agent: FakeAgent) -> None:
    async with connected(server, "dock-2") as other:
        call = ask(server)
        command = await agent.dispatched()
        await other.acknowledge(command)
        assert (await other.finish(command)).index == -1
        assert stages(server, command) == DONE[:1]
        await agent.finish(command)
        await call


async def test_drained_agent_takes_no_commands_until_it_is_resumed(server: Running, agent: FakeAgent) -> None:
    drain = agents_pb2.DrainAgentRequest(name="agents/dock-1", reason="kernel update")
    assert (await server.stubs.agents.DrainAgent(drain, metadata=server.me)).drained
    for detach in (False, True):
        failure = await refused(ask(server, detach=detach))
        assert failure.code() is StatusCode.FAILED_PRECONDITION
        assert "lading agents resume dock-1" in str(failure.details())
    resume = agents_pb2.DrainAgentRequest(name="agents/dock-1", resume=True)
    await server.stubs.agents.DrainAgent(resume, metadata=server.me)
    await ask(server, detach=True)
    await agent.dispatched()
    drained, resumed = server.events(action="agent.drain")
    assert drained.details["diff"] == [{"op": "replace", "path": "/drained", "value": True, "was": False}]
    assert resumed.details["diff"] == [{"op": "replace", "path": "/drained", "value": False, "was": True}]


async def test_every_verb_becomes_its_command(server: Running, agent: FakeAgent) -> None:
    stub = server.stubs.containers
    spec = commands_pb2.ContainerSpec(image="web:1")
    grace = Duration(seconds=3)
    verbs = {
        stub.CreateContainer: containers_pb2.CreateContainerRequest(name=WEB, detach=True, spec=spec),
        stub.StartContainer: START(name=WEB, detach=True),
        stub.StopContainer: containers_pb2.StopContainerRequest(name=WEB, detach=True, grace=grace),
        stub.RestartContainer: containers_pb2.RestartContainerRequest(name=WEB, detach=True, grace=grace),
        stub.KillContainer: containers_pb2.KillContainerRequest(name=WEB, detach=True, signal="TERM"),
        stub.PauseContainer: containers_pb2.PauseContainerRequest(name=WEB, detach=True),
        stub.UnpauseContainer: containers_pb2.UnpauseContainerRequest(name=WEB, detach=True),
        stub.RemoveContainer: containers_pb2.RemoveContainerRequest(name=WEB, detach=True, force=True),
        stub.PullImage: containers_pb2.PullImageRequest(agent="agents/dock-1", detach=True, image="web:1"),
    }
    seen = []
    for method, request in verbs.items():
        reply = await method(request, metadata=server.me)
        envelope = await agent.envelope()
        assert reply.verb == envelope.verb
        seen.append((envelope.verb, envelope.arguments))
        await agent.finish(envelope.command)
    arguments = commands_pb2.Arguments
    assert seen == [
        (commands_pb2.VERB_CREATE, arguments(spec=spec)),
        (commands_pb2.VERB_START, arguments()),
        (commands_pb2.VERB_STOP, arguments(grace=grace)),
        (commands_pb2.VERB_RESTART, arguments(grace=grace)),
        (commands_pb2.VERB_KILL, arguments(signal="TERM")),
        (commands_pb2.VERB_PAUSE, arguments()),
        (commands_pb2.VERB_UNPAUSE, arguments()),
        (commands_pb2.VERB_REMOVE, arguments(force=True)),
        (commands_pb2.VERB_PULL, arguments(image="web:1")),
    ]
    actions = [event.action for event in server.events(stage=Stage.RECEIVED)]
    assert actions[:2] + actions[-2:] == ["container.create", "container.start", "container.remove", "image.pull"]


async def test_command_that_was_cancelled_is_no_call_to_be_repeated(server: Running, agent: FakeAgent) -> None:
    call = ask(server)
    await agent.finish(await agent.dispatched(), state=CANCELLED, code=StatusCode.CANCELLED.value[0])
    failure = await refused(call)
    assert failure.code() is StatusCode.CANCELLED
    assert ("grpc-retry-pushback-ms", "-1") in tuple(failure.trailing_metadata() or ())


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("by", ["flush", "hello"])
async def test_command_that_was_made_in_the_same_transaction_is_sent(
    server: Running, agent: FakeAgent, by: str
) -> None:
    """Its event was looked for in the database, where it was not yet: it was sent by a sweep, and a Hello failed."""
    (session,) = server.server._agent_link._sessions.all()
    newer = FakeAgent(server)
    if by == "flush":
        session.credit = 0
    else:
        newer.epoch = agent.epoch
        newer.open()
        await server.until(lambda: len(server.events(action="agent.connect", stage=Stage.STARTED)) == 2)
    async with busy(server.ledger):
        call = ask(server, detach=True)
        await server.waiting(1)
        if by == "flush":
            session.credit, session.backlog = 1, True
            server.server._agent_link._dispatcher.wake(session)
        else:
            connecting = asyncio.create_task(newer.hello())
        await server.waiting(2)
    await call
    if by == "hello":
        await connecting
        agent = newer
    command = await agent.dispatched()
    await agent.finish(command)
    assert server.ledger._careful == 0, "no unit failed"
