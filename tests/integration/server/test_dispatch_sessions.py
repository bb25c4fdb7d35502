"""Sessions of agents: who may speak, who was first, what is settled when one comes back, and how a session ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError

from lading.v1 import agent_link_pb2, agents_pb2, commands_pb2, containers_pb2
from lading_server import dispatch as dispatch_module
from lading_server.commands import State
from lading_server.event import ActorType, Outcome, Stage
from lading_server.orders import require_online
from lading_server.services import commands as commands_module
from lading_server.services import upkeep as upkeep_module
from lading_server.settings import Settings
from tests.integration.server.commands import COMPLETED, RECEIVED, STARTED, WEB, gone, stages, start
from tests.integration.server.fake_agent import FakeAgent, connected, result_of
from tests.integration.server.ledgers import busy
from tests.integration.server.running import Running, bearer, detail, running, sign

SUCCEEDED, FAILED = commands_pb2.COMMAND_STATE_SUCCEEDED, commands_pb2.COMMAND_STATE_FAILED


@pytest.fixture
async def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 0.02)
    async with running(settings) as made:
        yield made


@pytest.fixture
async def agent(server: Running) -> AsyncIterator[FakeAgent]:
    async with connected(server) as made:
        yield made


# -- the first frames


async def test_session_is_recorded_from_its_begin_to_its_end(server: Running, agent: FakeAgent) -> None:
    (started,) = server.events(action="agent.connect")
    assert (started.summary, started.actor, started.target) == (STARTED, "dock-1", "")
    await agent.leave()
    ended = server.events(action="agent.connect")[-1]
    assert (ended.summary, ended.target, ended.operation) == (COMPLETED, "dock-1", started.operation)
    assert (ended.details["epoch"], ended.details["closing"]) == (agent.epoch, "bye")


async def test_first_frame_must_be_hello(server: Running) -> None:
    agent = FakeAgent(server)
    agent.open()
    await agent.send(heartbeat=agent_link_pb2.Heartbeat())
    assert await agent.ended() == (StatusCode.INVALID_ARGUMENT, "the first frame must be Hello")
    agent.open()
    await agent.call.done_writing()
    assert (await agent.ended())[0] is StatusCode.INVALID_ARGUMENT
    assert server.rows("SELECT * FROM agents") == []


async def test_only_agents_may_connect(server: Running) -> None:
    agent = FakeAgent(server)
    agent.metadata = server.me
    agent.open()
    assert (await agent.ended())[0] is StatusCode.PERMISSION_DENIED
    reader = bearer(sign(server.settings, "dock-1", ActorType.AGENT))
    with pytest.raises(AioRpcError) as refusal:
        await server.stubs.agents.ListAgents(agents_pb2.ListAgentsRequest(), metadata=reader)
    assert refusal.value.code() is StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("frame", [b"", b"\xa2\x06\x03abc", b"\xa8\x06\x01"], ids=["empty", "field 100", "field 101"])
async def test_unknown_frame_is_skipped(server: Running, agent: FakeAgent, frame: bytes) -> None:
    unknown = agent_link_pb2.ConnectRequest(epoch=agent.epoch, seq=agent.seq + 1).SerializeToString() + frame
    parsed = agent_link_pb2.ConnectRequest.FromString(unknown)
    assert parsed.WhichOneof("frame") is None
    agent.seq += 1
    await agent.call.write(parsed)
    await agent.sync()


async def test_frame_that_cannot_be_parsed_ends_the_session_with_its_reason(server: Running) -> None:
    stub = server.channel().stream_stream("/lading.v1.AgentLink/Connect")
    call = stub(metadata=FakeAgent(server).metadata)
    await call.write(b"\xff\xff\xff")
    assert await call.code() is StatusCode.INVALID_ARGUMENT
    assert (await server.event(action="agent.connect", stage=Stage.COMPLETED)).code == 3


async def test_frame_of_another_epoch_ends_the_session(server: Running, agent: FakeAgent) -> None:
    command = await start(server)
    await agent.dispatched()
    await agent.send(epoch=agent.epoch - 1, result=result_of(command))
    code, message = await agent.ended()
    assert (code, message) == (StatusCode.INVALID_ARGUMENT, "a frame of epoch 0 came in epoch 1")
    assert stages(server, command) == [RECEIVED]


@pytest.mark.parametrize("state", [0, 1, 2, 3, 9, 77])
async def test_result_that_is_no_end_is_refused(server: Running, agent: FakeAgent, state: int) -> None:
    command = await start(server)
    await agent.dispatched()
    await agent.send(result=result_of(command, state=state))
    assert (await agent.ended())[0] is StatusCode.INVALID_ARGUMENT
    assert stages(server, command) == [RECEIVED]


async def test_result_with_an_unknown_code_counts_as_unknown(server: Running, agent: FakeAgent) -> None:
    command = await start(server)
    await agent.dispatched()
    await agent.finish(command, state=FAILED, code=4711, error="new kind of error")
    assert stages(server, command)[-1] == (Stage.COMPLETED, Outcome.FAILURE, StatusCode.UNKNOWN.value[0])


async def test_agent_that_sees_a_higher_epoch_gets_a_higher_one_still(server: Running) -> None:
    agent = FakeAgent(server)
    agent.epoch = 41
    await agent.connect()
    assert agent.epoch == 42
    await agent.leave()
    await agent.connect()
    assert agent.epoch == 43
    agent.vanish()


async def test_acknowledged_frames_are_those_that_are_on_disk(server: Running, agent: FakeAgent) -> None:
    command = await start(server)
    await agent.dispatched()
    assert agent.last.ack == agent.seq, "nothing is under way"
    async with busy(server.ledger):
        await agent.send(result=result_of(command))
        await server.waiting(1)
        session = server.server._agent_link._sessions.get("acme", "dock-1")
        assert session is not None
        await session.send(agent_link_pb2.ConnectResponse(report_full=agent_link_pb2.ReportFull()))
        await agent.take("report_full")
        assert agent.last.ack == agent.seq - 1
    await agent.receipt(command)


# -- one session after another


async def test_newer_session_ends_the_older_one_with_aborted(server: Running, agent: FakeAgent) -> None:
    newer = FakeAgent(server)
    await newer.connect()
    assert newer.epoch == agent.epoch + 1
    code, message = await agent.ended()
    assert code is StatusCode.ABORTED
    assert "newer session" in message
    ended = await server.event(action="agent.connect", stage=Stage.COMPLETED)
    assert ended.code == StatusCode.ABORTED.value[0]
    command = await start(server)
    assert await newer.dispatched() == command
    listed = await server.stubs.agents.ListAgents(agents_pb2.ListAgentsRequest(), metadata=server.me)
    assert [one.state for one in listed.agents] == [agents_pb2.AGENT_STATE_ONLINE], (
        "the older one's end changes nothing"
    )
    newer.vanish()


async def test_command_that_was_recorded_while_a_newer_session_began_is_sent_by_that_one(
    server: Running, agent: FakeAgent
) -> None:
    newer = FakeAgent(server)
    newer.open()
    await server.until(lambda: len(server.events(action="agent.connect")) == 2)
    async with busy(server.ledger):
        connecting = asyncio.ensure_future(newer.hello())
        await server.waiting(1)
        creating = asyncio.ensure_future(start(server))
        await server.waiting(2)
    await connecting
    command = await creating
    assert await newer.dispatched() == command
    await newer.finish(command)
    newer.vanish()


async def test_command_that_was_asked_for_while_its_agent_connected_is_sent(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller finds no session, then finds the agent online: meanwhile it has connected, and nothing waited."""
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 100)
    await gone(server, agent)
    looking, look = asyncio.Event(), asyncio.Event()

    async def wait(*args: Any) -> None:
        looking.set()
        await look.wait()
        await require_online(*args)

    monkeypatch.setattr(dispatch_module, "require_online", wait)
    request = containers_pb2.StartContainerRequest(name=WEB)
    call = server.stubs.containers.StartContainer(request, metadata=server.me, timeout=20)
    await looking.wait()
    await agent.connect()
    await agent.sync()
    look.set()
    await agent.finish(await agent.dispatched())
    assert (await call).state == SUCCEEDED


async def test_command_that_was_never_acknowledged_is_sent_again_once(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = await start(server)
    assert await agent.dispatched() == command
    monkeypatch.setattr(dispatch_module, "RESEND_MICROSECONDS", 0)
    assert await agent.dispatched() == command
    other = await start(server)
    assert [await agent.dispatched() for _ in range(2)] == [other] * 2, "and then no more of the first"
    await agent.finish(other)
    await agent.acknowledge(command)
    await agent.finish(command)
    assert stages(server, command) == [RECEIVED, STARTED, COMPLETED]


async def test_commands_that_hang_do_not_hide_one_that_was_not_sent(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "SWEEP_MAX", 1)
    monkeypatch.setattr(dispatch_module, "RESEND_MICROSECONDS", 0)
    for _ in range(2):
        command = await start(server)
        assert [await agent.dispatched(), await agent.dispatched()] == [command] * 2


async def test_command_that_somebody_else_recorded_is_found(server: Running, agent: FakeAgent) -> None:
    """As another replica does, which has no session of this agent."""
    command = await start(server)
    await agent.dispatched()
    columns = [name for (name,) in server.rows("SELECT name FROM pragma_table_info('commands')")]
    values = ", ".join({"id": "'copied'", "state": "1", "epoch": "0"}.get(name, name) for name in columns)
    server.write(f"INSERT INTO commands ({', '.join(columns)}) SELECT {values} FROM commands")
    assert await agent.dispatched() == command, "the bytes are those of the first"


# -- ban, drain, stop


def ban(server: Running, *, lift: bool = False) -> Any:
    request = agents_pb2.BanAgentRequest(name="agents/dock-1", reason="stolen", lift=lift)
    return server.stubs.agents.BanAgent(request, metadata=server.me)


async def test_ban_ends_the_session_and_keeps_the_agent_out(server: Running, agent: FakeAgent) -> None:
    assert (await ban(server)).banned
    assert await agent.ended() == (StatusCode.PERMISSION_DENIED, "agent dock-1 is banned")
    ended = await server.event(action="agent.connect", stage=Stage.COMPLETED)
    assert (ended.outcome, ended.code) == (Outcome.DENIED, StatusCode.PERMISSION_DENIED.value[0])
    with pytest.raises(AssertionError, match="is banned"):
        await agent.connect()
    with pytest.raises(AioRpcError) as refusal:
        await start(server)
    assert refusal.value.code() is StatusCode.FAILED_PRECONDITION
    assert not (await ban(server, lift=True)).banned
    await agent.connect()
    assert [event.details["diff"][0]["value"] for event in server.events(action="agent.ban")] == [True, False]


async def test_ban_that_is_not_committed_ends_no_session(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("lading_server.ledger.rows.encode", refuse)
        with pytest.raises(AioRpcError):
            await ban(server)
    await agent.sync()
    assert server.rows("SELECT banned FROM agents") == [(0,)]


async def test_server_that_stops_asks_its_agents_to_connect_anew(server: Running, agent: FakeAgent) -> None:
    (began,) = server.events(action="agent.connect")
    stopping = asyncio.ensure_future(server.stop(60))
    drain = await agent.take("drain")
    assert drain.reconnect_after.seconds == 1
    late = FakeAgent(server)
    late.open()
    await agent.leave()
    await stopping
    code, _ = await late.ended()
    assert code is StatusCode.UNAVAILABLE
    assert server.events(operation=began.operation)[-1].summary == COMPLETED


async def test_agent_that_connects_while_the_server_stops_is_told_when_to_come_again(
    server: Running, agent: FakeAgent
) -> None:
    late = FakeAgent(server)
    await late._stub.Connect(metadata=late.metadata).done_writing()  # the connection is there
    stopping = asyncio.ensure_future(server.server._agent_link.drain("the server stops"))
    await agent.take("drain")
    late.open()
    with pytest.raises(AioRpcError) as refusal:
        await late.call.read()
    assert refusal.value.code() is StatusCode.UNAVAILABLE
    assert detail(refusal.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1
    await stopping


async def test_agent_that_does_not_read_holds_up_no_stop(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "DRAIN_SECONDS", 0.1)
    session = server.server._agent_link._sessions.get("acme", "dock-1")
    assert session is not None
    big = agent_link_pb2.ConnectResponse(drain=agent_link_pb2.Drain(reason="x" * 1_000_000))
    stuck = [asyncio.ensure_future(session.send(big)) for _ in range(20)]
    async with asyncio.timeout(30):
        await server.stop(0.1)
    await asyncio.gather(*stuck, return_exceptions=True)
    assert agent.call is not None


# -- what agents may say


async def test_text_that_the_database_does_not_take_ends_no_session(any_settings: Settings) -> None:
    async with running(any_settings) as server:
        agent = FakeAgent(server)
        await agent.connect(labels={"a\0": "b\0"}, boot_id="b\0ot")
        bad = containers_pb2.Container(name="web", id="\0", image="i\0", state="running\0", health="\0")
        bad.created_at.seconds = 2**62
        bad.labels["a\0"] = "\0"
        await agent.send(inventory=agent_link_pb2.Inventory(snapshot=True, containers=[bad], version=1))
        await agent.sync()
        command = await start(server)
        await agent.dispatched()
        result = {"state": FAILED, "code": 2, "error": "exit\0", "evidence": "\0", "container_id": "\0"}
        await agent.finish(command, **result)
        await agent.finish("\0")
        await agent.acknowledge("\0")
        await agent.sync()
        assert server.events(operation=command)[-1].error == "exit\ufffd"
        shown = await server.stubs.containers.GetContainer(
            containers_pb2.GetContainerRequest(name=WEB), metadata=server.me
        )
        assert "\0" not in str(shown)
        agent.vanish()


async def test_container_with_an_improper_name_is_left_out(server: Running, agent: FakeAgent) -> None:
    await agent.report("web", "../../etc", "a/b", "x" * 200, "")
    listed = await server.stubs.containers.ListContainers(containers_pb2.ListContainersRequest(), metadata=server.me)
    assert [one.name for one in listed.containers] == [WEB]


async def test_delta_that_does_not_fit_is_answered_with_a_request_for_all(server: Running, agent: FakeAgent) -> None:
    for _ in range(2):
        delta = agent_link_pb2.Inventory(removed=["web"], base_version=7, version=8)
        await agent.send(inventory=delta)
        await agent.take("report_full")
    await agent.send(inventory=agent_link_pb2.Inventory(removed=["web"], base_version=1, version=2))
    await agent.sync()
    assert server.rows("SELECT * FROM containers") == []


async def test_agents_of_another_organization_are_not_seen(server: Running, agent: FakeAgent) -> None:
    globex = bearer(sign(server.settings, organization="globex"))
    assert not (await server.stubs.agents.ListAgents(agents_pb2.ListAgentsRequest(), metadata=globex)).agents
    assert not (
        await server.stubs.containers.ListContainers(containers_pb2.ListContainersRequest(), metadata=globex)
    ).containers
    for call in (
        server.stubs.agents.GetAgent(agents_pb2.GetAgentRequest(name="agents/dock-1"), metadata=globex),
        server.stubs.agents.BanAgent(agents_pb2.BanAgentRequest(name="agents/dock-1"), metadata=globex),
        server.stubs.agents.DrainAgent(agents_pb2.DrainAgentRequest(name="agents/dock-1"), metadata=globex),
        server.stubs.containers.GetContainer(containers_pb2.GetContainerRequest(name=WEB), metadata=globex),
        server.stubs.containers.StartContainer(containers_pb2.StartContainerRequest(name=WEB), metadata=globex),
    ):
        with pytest.raises(AioRpcError) as refusal:
            await call
        assert refusal.value.code() is StatusCode.NOT_FOUND
    await agent.sync()


async def test_watchers_see_agents_come_and_go(server: Running) -> None:
    watch = server.stubs.agents.WatchAgents(agents_pb2.WatchAgentsRequest(), metadata=server.me)
    agent = FakeAgent(server)
    await agent.connect()
    online = await watch.read()
    assert (online.name, online.state) == ("agents/dock-1", agents_pb2.AGENT_STATE_ONLINE)
    await agent.leave()
    while (seen := await watch.read()).state != agents_pb2.AGENT_STATE_OFFLINE:
        pass
    assert seen.name == "agents/dock-1"
    watch.cancel()


async def test_watcher_of_a_command_sees_each_of_its_states(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands_module, "POLL_SECONDS", 0.02)
    await agent.leave()
    command = await start(server)
    request = commands_pb2.WatchCommandRequest(name=f"commands/{command}")
    watch = server.stubs.commands.WatchCommand(request, metadata=server.me)
    states = [(await watch.read()).state]
    await agent.connect()
    await agent.dispatched()
    states.append((await watch.read()).state)
    await agent.acknowledge(command)
    states.append((await watch.read()).state)
    await agent.finish(command)
    states.append((await watch.read()).state)
    assert await watch.read() is grpc.aio.EOF
    assert states == [State.PENDING, State.DISPATCHED, State.ACKNOWLEDGED, State.SUCCEEDED]
