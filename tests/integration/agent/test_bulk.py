"""Logs on a channel of their own."""

import asyncio
import pathlib
import uuid
from collections.abc import AsyncIterator

import grpc
import pytest

from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT
from lading_agent.daemon import Daemon
from lading_agent.runtimes import LogPiece
from tests.integration.agent.control_plane import BulkLink, ControlPlane, Link, control_plane, make_settings
from tests.unit.agent.fake_runtime import FakeRuntime
from tests.unit.agent.honest_log import command


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with control_plane() as plane:
        yield plane


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime("web")


@pytest.fixture
async def link(plane: ControlPlane, runtime: FakeRuntime, tmp_path: pathlib.Path) -> AsyncIterator[Link]:
    daemon = Daemon(make_settings(plane.address, tmp_path), runtime)
    task = asyncio.create_task(daemon.run())
    link = await plane.link()
    await link.welcome(epoch=1)
    yield link
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def read_all(bulk: BulkLink) -> tuple[list[tuple[int, bytes]], int, str]:
    """The pieces, and code and words of the end."""
    pieces: list[tuple[int, bytes]] = []
    while message := await bulk.next():
        if message.HasField("end"):
            assert await bulk.next() is None, "nothing follows the end"
            bulk.over.set()
            return pieces, message.end.code, message.end.error
        pieces.append((message.source, message.data))
    raise AssertionError("the stream ended without its end")


async def test_a_log_is_carried_whole_in_pieces_of_64_kb(plane: ControlPlane, runtime: FakeRuntime, link: Link) -> None:
    large = bytes(range(256)) * 1024
    runtime.log_pieces = [LogPiece(LOG_SOURCE_STDOUT, large), LogPiece(LOG_SOURCE_STDERR, b"oops\n")]
    session = str(uuid.uuid4())
    await link.open_bulk(session)
    bulk = await plane.bulk()
    assert bulk.session == session
    assert bulk.peer != link.context.peer(), "a connection of its own"
    pieces, code, _ = await read_all(bulk)
    assert code == 0
    assert max(len(data) for _, data in pieces) == 64 * 1024
    assert b"".join(data for source, data in pieces if source == LOG_SOURCE_STDOUT) == large
    assert pieces[-1] == (LOG_SOURCE_STDERR, b"oops\n")


async def test_a_log_that_cannot_be_read_ends_with_its_code(plane: ControlPlane, link: Link) -> None:
    await link.open_bulk("s", container="gone")
    pieces, code, error = await read_all(await plane.bulk())
    assert (pieces, code) == ([], grpc.StatusCode.NOT_FOUND.value[0])
    assert "gone" in error


async def test_the_server_can_stop_a_log_that_is_followed(
    plane: ControlPlane, runtime: FakeRuntime, link: Link
) -> None:
    runtime.log_pieces = [LogPiece(LOG_SOURCE_STDOUT, b"one\n")]
    await link.open_bulk("s", follow=True)
    bulk = await plane.bulk()
    message = await bulk.next()
    assert message is not None
    assert message.data == b"one\n"
    await bulk.stop()
    assert await bulk.next() is None
    await link.dispatch(command("start"))
    await link.next("result")


async def test_a_reader_that_does_not_read_holds_the_log_up(
    plane: ControlPlane, runtime: FakeRuntime, link: Link
) -> None:
    given = 0

    class Endless(list[LogPiece]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal given
            for _ in range(10_000):
                given += 1
                yield LogPiece(LOG_SOURCE_STDOUT, b"x" * 65536)

    runtime.log_pieces = Endless()
    await link.open_bulk("s")
    bulk = await plane.bulk()
    # Commands go on meanwhile.
    await link.dispatch(command("start"))
    await link.next("result")
    assert given < 1000, "at most what the connection buffers"
    for _ in range(given + 50):
        assert await bulk.next() is not None
    await bulk.stop()
