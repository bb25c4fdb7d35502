"""Logs and exec over replicas: reader, agent and the agent's Bulk stream may each be at another one."""

import asyncio
import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from lading.v1 import access_pb2, agent_link_pb2, containers_pb2, replicas_pb2, replicas_pb2_grpc
from lading_server import root, tokens
from lading_server.clock import new_id, now
from lading_server.event import SYSTEM, ActorType, Outcome, Stage
from lading_server.interceptors.context import MESSAGE_BYTES_MAX
from lading_server.services import neighbours, openings
from lading_server.settings import ISSUER, Settings
from lading_server.store import boots
from tests.integration.server.commands import WEB, drain, gone, refused
from tests.integration.server.fake_agent import FakeAgent, connected, result_of
from tests.integration.server.running import Running, bearer, read_events, running, sign
from tests.integration.server.test_dispatch_exec import begin, summary
from tests.integration.server.test_tls import Authority

pytestmark = pytest.mark.timeout(60)
Piece = agent_link_pb2.BulkRequest
PIECE = 64 * 1024


@pytest.fixture(autouse=True)
def patient_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CALL_SECONDS", 30.0)


@contextlib.asynccontextmanager
async def three(settings: Settings) -> AsyncIterator[tuple[Running, Running, Running]]:
    async with Running(settings) as one, Running(settings) as two, Running(settings) as three:
        yield one, two, three


def read(server: Running, **fields: Any) -> Any:
    request = containers_pb2.StreamContainerLogsRequest(name=WEB, **fields)
    return server.stubs.containers.StreamContainerLogs(request, metadata=server.me, timeout=30)


async def bulk_at(server: Running, agent: FakeAgent, session: str, **first: Any) -> Any:
    """The agent's Bulk stream, as it comes out at this replica."""
    return await FakeAgent(server, agent.name).bulk(session, **first)


def end(code: int = 0, error: str = "") -> Piece:
    return Piece(end=agent_link_pb2.BulkEnd(code=code, error=error))


@pytest.mark.parametrize("at", [0, 1, 2], ids=["with the reader", "with the agent", "elsewhere"])
async def test_log_of_an_agent_at_another_replica_is_read(settings_on_postgresql: Settings, at: int) -> None:
    async with three(settings_on_postgresql) as servers, connected(servers[1]) as agent:
        log = read(servers[0], follow=True)
        asked = await agent.take("open_bulk")
        bulk = await bulk_at(servers[at], agent, asked.session)
        offset = 0
        for text in (b"one\n", b"two\n", b"three\n"):
            await bulk.write(Piece(data=text, offset=offset, position=f"p{offset}"))
            piece = await log.read()
            assert (piece.data, piece.offset, piece.position) == (text, offset, f"p{offset}")
            offset += len(text)
        await bulk.write(end())
        assert await log.read() is grpc.aio.EOF
        assert await log.code() is grpc.StatusCode.OK


async def test_slow_reader_makes_an_agent_elsewhere_wait(settings_on_postgresql: Settings) -> None:
    async with three(settings_on_postgresql) as servers, connected(servers[1]) as agent:
        log = read(servers[0])
        bulk = await bulk_at(servers[2], agent, (await agent.take("open_bulk")).session)
        sent = 0

        async def write_for_ever() -> None:
            nonlocal sent
            while True:
                await bulk.write(Piece(data=b"x" * PIECE, offset=sent))
                sent += PIECE

        writing = asyncio.create_task(write_for_ever())
        before = -1
        while sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 32 * 1024 * 1024
        goal, received = sent, 0
        while received < goal:
            received += len((await log.read()).data)
        writing.cancel()
        log.cancel()


async def test_reader_that_leaves_stops_an_agent_elsewhere(settings_on_postgresql: Settings) -> None:
    async with three(settings_on_postgresql) as servers, connected(servers[1]) as agent:
        log = read(servers[0], follow=True)
        bulk = await bulk_at(servers[2], agent, (await agent.take("open_bulk")).session)
        await bulk.write(Piece(data=b"one\n"))
        await log.read()
        log.cancel()
        async with asyncio.timeout(30):
            while not (await bulk.read()).stop:
                pass
            await bulk.done_writing()
            assert await bulk.code() is grpc.StatusCode.OK


async def test_message_that_no_replica_takes_ends_the_stream_and_its_reader(settings_on_postgresql: Settings) -> None:
    async with three(settings_on_postgresql) as servers, connected(servers[1]) as agent:
        log = read(servers[0], follow=True)
        bulk = await bulk_at(servers[2], agent, (await agent.take("open_bulk")).session)
        await bulk.write(Piece(data=b"one\n"))
        await log.read()
        await bulk.write(Piece(data=b"x" * (MESSAGE_BYTES_MAX + 1)))
        async with asyncio.timeout(30):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await bulk.read() is not grpc.aio.EOF:
                    pass
            assert await bulk.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await log.code() is grpc.StatusCode.UNAVAILABLE


async def test_bulk_stream_that_breaks_goes_on_at_another_replica(settings_on_postgresql: Settings) -> None:
    async with three(settings_on_postgresql) as servers, connected(servers[1]) as agent:
        log = read(servers[0], follow=True)
        session = (await agent.take("open_bulk")).session
        bulk = await bulk_at(servers[2], agent, session)
        await bulk.write(Piece(data=b"one\n", offset=0))
        assert (await log.read()).data == b"one\n"
        bulk.cancel()
        bulk = await bulk_at(servers[1], agent, session, offset=0)
        await bulk.write(Piece(data=b"one\ntwo\n", offset=0))
        await bulk.write(end())
        assert (await log.read()).data == b"two\n", "what came twice is left out"
        assert await log.read() is grpc.aio.EOF


@pytest.mark.parametrize("at", [0, 1, 2], ids=["with the caller", "with the agent", "elsewhere"])
async def test_exec_session_of_an_agent_at_another_replica_flows_both_ways(
    settings_on_postgresql: Settings, at: int
) -> None:
    async with three(settings_on_postgresql) as servers, connected(servers[1]) as agent:
        call = await begin(servers[0])
        command = await agent.dispatched()
        await agent.acknowledge(command)
        bulk = await bulk_at(servers[at], agent, command)
        assert (await call.read()).command == f"commands/{command}"
        await call.write(containers_pb2.ExecContainerRequest(input=b"typed"))
        while (told := await bulk.read()).input != b"typed":
            assert not told.input
        await bulk.write(Piece(data=b"shown", input_received=5))
        assert (await call.read()).output.data == b"shown"
        await bulk.write(end())
        await agent.send(result=result_of(command, exec=summary(b"shown", exit_code=0)))
        assert (await call.read()).WhichOneof("frame") == "exit_code"
        assert await call.read() is grpc.aio.EOF


async def test_agent_that_is_nowhere_is_offline(
    settings_on_postgresql: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "ATTACH_SECONDS", 0.05)
    async with three(settings_on_postgresql) as servers, connected(servers[1]) as agent:
        await gone(servers[1], agent)
        log = read(servers[0])
        failure = await refused(log.read())
        assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert "agent dock-1 is not connected" in str(failure.details())


async def test_bulk_of_another_agent_is_not_passed_on(settings_on_postgresql: Settings) -> None:
    async with (
        three(settings_on_postgresql) as servers,
        connected(servers[1]) as agent,
        connected(servers[1], "dock-2") as thief,
    ):
        log = read(servers[0], follow=True)
        session = (await agent.take("open_bulk")).session
        for server, name, organization in ((servers[2], "dock-2", "acme"), (servers[2], "dock-1", "globex")):
            stolen = await FakeAgent(server, name, organization).bulk(session)
            assert (await refused(stolen.read())).code() is grpc.StatusCode.NOT_FOUND
        log.cancel()
        assert thief.epoch


async def test_only_processes_of_this_server_call_the_private_address(settings_on_postgresql: Settings) -> None:
    async with Running(settings_on_postgresql) as server, connected(server):
        ((private,),) = server.rows("SELECT address FROM boots WHERE ended_at IS NULL")
        assert private != server.address
        ask = agent_link_pb2.OpenBulk(session=new_id(), container="web")
        request = replicas_pb2.OpenLogRequest(organization="acme", agent="dock-1", open=ask)
        async with grpc.aio.insecure_channel(private) as channel:
            stub: Any = replicas_pb2_grpc.ReplicasStub(channel)
            for who in (server.me, bearer(sign(settings_on_postgresql, "dock-1", ActorType.AGENT)), ()):
                code = await stub.OpenLog(request, metadata=who).code()
                assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
            at = now() // 1_000_000 * 1_000_000
            claims = tokens.Claims(
                ISSUER, SYSTEM, ActorType.SERVICE, "replica-x", new_id(), at, at + 10**8, replica=True
            )
            key = tokens.load_key(settings_on_postgresql.data)
            replica = bearer(tokens.sign(key, claims, "lading"))
            assert await stub.OpenLog(request, metadata=replica).code() is grpc.StatusCode.OK
            roles: Any = server.stubs.access.ListRoleBindings(access_pb2.ListRoleBindingsRequest(), metadata=replica)
            assert await roles.code() is grpc.StatusCode.PERMISSION_DENIED
            public: Any = replicas_pb2_grpc.ReplicasStub(server.channel())
            assert await public.OpenLog(request, metadata=replica).code() is grpc.StatusCode.UNIMPLEMENTED
        found = read_events(settings_on_postgresql, SYSTEM, action="replica.open_log", outcome=Outcome.SUCCESS)
        assert [(one.stage, one.actor, one.target) for one in found] == [(Stage.COMPLETED, "replica-x", "dock-1")]


async def test_processes_on_several_hosts_speak_tls(
    settings_on_postgresql: Settings, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Authority(tmp_path).make()
    for module in (root, neighbours):
        monkeypatch.setattr(module, "is_loopback", lambda _host: False)  # as if it were another machine
    files = {"tls_cert": tmp_path / "server.pem", "tls_key": tmp_path / "server-key.pem"}
    settings = dataclasses.replace(settings_on_postgresql, **files)
    async with Running(settings) as one, Running(settings) as other:
        reader, key = one.server._reader, tokens.load_key(settings.data)
        address = await reader.read(boots.address_of, other.ledger.boot_id)
        caller = neighbours.Neighbours(reader, one.ledger.boot_id, key, settings)
        request = replicas_pb2.OpenLogRequest(organization="acme", agent="x", open=agent_link_pb2.OpenBulk(session="s"))
        code = await caller._stub(address).OpenLog(request, metadata=caller._who(), timeout=30).code()
        assert code is grpc.StatusCode.NOT_FOUND, "it was let in, and has no such agent"
        await caller.close()
        async with grpc.aio.insecure_channel(address) as plain:
            stub: Any = replicas_pb2_grpc.ReplicasStub(plain)
            code = await stub.OpenLog(request, metadata=caller._who(), timeout=30).code()
            assert code is grpc.StatusCode.UNAVAILABLE


async def test_connections_to_other_processes_are_few(
    settings_on_postgresql: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CHANNELS_MAX", 2)
    async with running(settings_on_postgresql) as server:
        found = server.server._agent_link._neighbours
        for port in (1, 2, 1, 3):
            found._stub(f"127.0.0.1:{port}")
        assert list(found._channels) == ["127.0.0.1:1", "127.0.0.1:3"]


async def test_piece_that_is_too_large_is_refused_by_another_replica_too(settings_on_postgresql: Settings) -> None:
    async with three(settings_on_postgresql) as servers, connected(servers[1]) as agent:
        log = read(servers[0])
        bulk = await bulk_at(servers[2], agent, (await agent.take("open_bulk")).session)
        await bulk.write(Piece(data=b"x" * (PIECE + 1)))
        assert (await refused(drain(bulk))).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await refused(log.read())).code() is grpc.StatusCode.DATA_LOSS


async def test_callers_learn_no_private_address(
    settings_on_postgresql: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_on_postgresql
    async with Running(settings) as one, Running(settings) as two, connected(two):
        one.write(f"UPDATE boots SET address = '{two.address}'")  # where nobody answers what is asked
        failure = await refused(read(one).read())
        assert failure.details() == "the process that has the agent answered UNIMPLEMENTED"
        assert two.address in caplog.text
