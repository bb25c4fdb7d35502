"""The bytes of a log on their way from the agent to the reader."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import EOF, AioRpcError

from lading.v1 import agent_link_pb2, containers_pb2
from lading_server import errors
from lading_server import relay as relays
from lading_server.clock import new_id
from lading_server.event import Outcome, Stage
from lading_server.relay import PIECES_MAX
from lading_server.services import bulk, openings
from lading_server.settings import Settings
from tests.integration.server.commands import drain, refused
from tests.integration.server.fake_agent import FakeAgent, connected
from tests.integration.server.running import Running, bearer, running, sign

WEB = "agents/dock-1/containers/web"
Piece = agent_link_pb2.BulkRequest


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Running]:
    async with running(settings) as made:
        yield made


@pytest.fixture
async def agent(server: Running) -> AsyncIterator[FakeAgent]:
    async with connected(server) as made:
        yield made


def read(server: Running, metadata: Any = None, **fields: Any) -> Any:
    """Begin the call StreamContainerLogs of `web`."""
    request = containers_pb2.StreamContainerLogsRequest(**{"name": WEB, **fields})
    return server.stubs.containers.StreamContainerLogs(request, metadata=metadata or server.me, timeout=30)


def end(code: int = 0, error: str = "") -> Piece:
    return Piece(end=agent_link_pb2.BulkEnd(code=code, error=error))


async def test_log_is_brought_piece_by_piece_and_recorded(server: Running, agent: FakeAgent) -> None:
    log = read(server, tail=10, timestamps=True, follow=True)
    asked = await agent.take("open_bulk")
    assert (asked.container, asked.tail, asked.timestamps, asked.follow) == ("web", 10, True, True)
    bulk = await agent.bulk(asked.session)
    for text in (b"one\n", b"two\n"):
        await bulk.write(Piece(data=text, source=containers_pb2.LOG_SOURCE_STDERR))
        piece = await log.read()
        assert (piece.data, piece.source) == (text, containers_pb2.LOG_SOURCE_STDERR)
    await bulk.write(end())
    assert await log.read() is EOF
    while (told := await bulk.read()) is not EOF:
        assert told.stop or told.received == 0
    assert await bulk.code() is StatusCode.OK
    started, completed = server.events(action="container.logs")
    assert (started.stage, completed.stage) == (Stage.STARTED, Stage.COMPLETED)
    assert (completed.target, completed.outcome) == ("dock-1/web", Outcome.SUCCESS)
    assert completed.details["messages_out"] == 2
    carried = await server.event(action="agent.bulk", stage=Stage.COMPLETED)
    assert carried.details["reader"] == completed.operation


async def test_error_of_the_agent_is_the_error_of_the_reader(server: Running, agent: FakeAgent) -> None:
    log = read(server)
    bulk = await agent.bulk((await agent.take("open_bulk")).session)
    await bulk.write(end(StatusCode.NOT_FOUND.value[0], "No such container: web"))
    with pytest.raises(AioRpcError) as failure:
        await log.read()
    assert (failure.value.code(), failure.value.details()) == (StatusCode.NOT_FOUND, "No such container: web")


async def test_reader_that_stops_stops_the_agent(server: Running, agent: FakeAgent) -> None:
    log = read(server, follow=True)
    bulk = await agent.bulk((await agent.take("open_bulk")).session)
    await bulk.write(Piece(data=b"one\n"))
    await log.read()
    log.cancel()
    assert not (await bulk.read()).stop, "first it hears that it may send"
    assert (await bulk.read()).stop
    await bulk.done_writing()
    assert await bulk.code() is StatusCode.OK
    ended = await server.event(action="container.logs", stage=Stage.COMPLETED)
    assert ended.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_reader_is_told_when_the_agent_goes_away(
    server: Running, agent: FakeAgent, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "REOPEN_SECONDS", 0.05)
    log = read(server, follow=True)
    bulk = await agent.bulk((await agent.take("open_bulk")).session)
    await bulk.write(Piece(data=b"one\n"))
    await log.read()
    await bulk.done_writing() if how == "close" else bulk.cancel()
    with pytest.raises(AioRpcError) as failure:
        await log.read()
    assert failure.value.code() is StatusCode.UNAVAILABLE


@pytest.mark.parametrize("noticed", [True, False])
async def test_log_goes_on_where_the_agents_stream_broke(server: Running, agent: FakeAgent, noticed: bool) -> None:
    """What the agent sends again is left out; also when the server has not noticed yet that its stream is dead."""
    log = read(server, follow=True, after="p0")
    asked = await agent.take("open_bulk")
    assert asked.after == "p0"
    first = await agent.bulk(asked.session)
    assert not (await first.read()).received
    await first.write(Piece(data=b"one two ", position="p1"))
    piece = await log.read()
    assert (piece.data, piece.offset, piece.position) == (b"one two ", 0, "p1")
    if noticed:
        first.cancel()
        await server.event(action="agent.bulk", stage=Stage.COMPLETED)
    second = await agent.bulk(asked.session, offset=4)
    assert (await second.read()).received == 8
    await second.write(Piece(data=b"two ", position="p1", offset=4))
    await second.write(Piece(data=b"three four", position="p2", offset=8))
    piece = await log.read()
    assert (piece.data, piece.offset, piece.position) == (b"three four", 8, "p2")
    await second.write(end())
    assert await log.read() is EOF


async def test_bytes_that_the_agent_left_out_are_no_log(server: Running, agent: FakeAgent) -> None:
    log = read(server)
    asked = await agent.take("open_bulk")
    await agent.bulk(asked.session, offset=4)
    with pytest.raises(AioRpcError) as failure:
        await log.read()
    assert failure.value.code() is StatusCode.DATA_LOSS


async def test_nothing_after_a_gap_reaches_the_reader() -> None:
    relay = relays.Relay("acme", "dock-1", "")

    async def read() -> Any:
        return end()

    await bulk.pump(relay, relay.attach(), Piece(session="s", offset=4, data=b"later"), read)
    with pytest.raises(errors.Damaged):
        await relay.take()


async def test_reader_is_told_when_the_agent_opens_no_stream(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "ATTACH_SECONDS", 0.05)
    log = read(server)
    asked = await agent.take("open_bulk")
    with pytest.raises(AioRpcError) as failure:
        await log.read()
    assert failure.value.code() is StatusCode.UNAVAILABLE
    late = await agent.bulk(asked.session)
    assert await late.code() is StatusCode.NOT_FOUND


async def test_reader_is_told_when_the_agent_leaves_instead(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "ATTACH_SECONDS", 1000.0)
    log = read(server)
    await agent.take("open_bulk")
    await agent.leave()
    with pytest.raises(AioRpcError) as failure:
        await log.read()
    assert failure.value.code() is StatusCode.UNAVAILABLE


async def test_log_of_an_agent_that_is_offline_is_refused_at_once(server: Running, agent: FakeAgent) -> None:
    await agent.leave()
    with pytest.raises(AioRpcError) as failure:
        await read(server).read()
    assert failure.value.code() is StatusCode.UNAVAILABLE
    for name in ("agents/dock-1/containers/none", "agents/none/containers/web"):
        with pytest.raises(AioRpcError) as failure:
            await read(server, name=name).read()
        assert failure.value.code() is StatusCode.NOT_FOUND


async def test_slow_reader_makes_the_agent_wait_and_loses_nothing(server: Running, agent: FakeAgent) -> None:
    log = read(server)
    bulk = await agent.bulk((await agent.take("open_bulk")).session)
    size, count = 64 * 1024, 200
    written = 0

    async def write() -> None:
        nonlocal written
        for number in range(count):
            await bulk.write(Piece(data=number.to_bytes(4, "big") * (size // 4)))
            written += 1
        await bulk.write(end())

    writing = asyncio.ensure_future(write())
    relay = await the_relay(server)
    async with asyncio.timeout(30):
        while not relay.pieces.full():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert relay.pieces.qsize() == PIECES_MAX
    for _ in range(50):  # however long it waits, no more comes than the windows of the two streams hold
        await asyncio.sleep(0.002)
    assert written < count
    read_back = 0
    while (piece := await log.read()) is not EOF:
        assert piece.data == read_back.to_bytes(4, "big") * (size // 4)
        read_back += 1
    await writing
    assert (read_back, written) == (count, count)


async def the_relay(server: Running) -> Any:
    """The only log that is under way, once its agent has opened it."""
    (relay,) = server.server._agent_link._relays._open.values()
    await relay.attached.wait()
    return relay


async def test_stream_that_was_not_asked_for_is_refused(server: Running, agent: FakeAgent) -> None:
    for session in (new_id(), "", "x" * 1000):
        bulk = await agent.bulk(session)
        assert await bulk.code() is StatusCode.NOT_FOUND


async def test_stream_of_another_agent_or_organization_is_not_taken(server: Running, agent: FakeAgent) -> None:
    log = read(server)
    session = (await agent.take("open_bulk")).session
    for thief in (FakeAgent(server, "dock-2"), FakeAgent(server, "dock-1", "globex")):
        assert await (await thief.bulk(session)).code() is StatusCode.NOT_FOUND
    bulk = await agent.bulk(session)
    await bulk.write(Piece(data=b"mine"))
    assert (await log.read()).data == b"mine"
    await bulk.write(end())
    assert await log.read() is EOF


async def test_log_needs_its_permission(server: Running, agent: FakeAgent) -> None:
    with pytest.raises(AioRpcError) as failure:
        await read(server, metadata=bearer(sign(server.settings, "eve"))).read()
    assert failure.value.code() is StatusCode.PERMISSION_DENIED
    with pytest.raises(AioRpcError) as failure:
        await read(server, metadata=bearer(sign(server.settings, organization="globex"))).read()
    assert failure.value.code() is StatusCode.NOT_FOUND


async def test_piece_that_is_too_large_is_refused(server: Running, agent: FakeAgent) -> None:
    log = read(server)
    filling = await agent.bulk((await agent.take("open_bulk")).session)
    await filling.write(Piece(data=b"x" * bulk.PIECE_BYTES_MAX))
    assert len((await log.read()).data) == bulk.PIECE_BYTES_MAX
    await filling.write(Piece(data=b"x" * (bulk.PIECE_BYTES_MAX + 1), offset=bulk.PIECE_BYTES_MAX))
    failure = await refused(drain(filling))
    assert failure.code() is StatusCode.INVALID_ARGUMENT
    assert "65536 are the most" in (failure.details() or "")
    assert (await refused(log.read())).code() is StatusCode.DATA_LOSS
