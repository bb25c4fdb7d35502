"""What the engine sends, read without an engine."""

import asyncio
import contextlib
import pathlib
import re
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.v1.commands_pb2 import ExecSpec
from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT
from lading_agent.errors import InDoubt, RuntimeFailure
from lading_agent.runtimes import docker
from lading_agent.runtimes.docker import DockerRuntime, read_container, read_events
from lading_agent.runtimes.docker_log import framed_entries
from lading_agent.runtimes.engine import json_lines


async def stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@given(
    frames=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=20),
    size=st.integers(min_value=1, max_value=64),
)
async def test_a_log_is_the_same_however_it_is_cut(frames: list[tuple[int, bytes]], size: int) -> None:
    data = b"".join(struct.pack(">BxxxI", source, len(piece)) + piece for source, piece in frames)
    pieces = [piece async for batch in framed_entries(stream(cut(data, size))) for piece in batch]
    for source, number in ((LOG_SOURCE_STDOUT, 1), (LOG_SOURCE_STDERR, 2)):
        read = b"".join(piece.stamp + piece.data for piece in pieces if piece.source == source)
        assert read == b"".join(piece for each, piece in frames if each == number)


async def test_a_line_longer_than_any_buffer_is_one_document() -> None:
    long = "x" * 300_000
    data = f'{{"a": "{long}"}}\n\n{{"b": 1}}\n'.encode()
    assert [line async for line in json_lines(stream(cut(data, 65536)))] == [{"a": long}, {"b": 1}]


def test_a_renaming_touches_both_names_and_noise_touches_none() -> None:
    renamed = {"Action": "rename", "Actor": {"Attributes": {"name": "new", "oldName": "/old"}}, "timeNano": 5}
    assert [(event.container, event.at_ns) for event in read_events(renamed)] == [("new", 5), ("old", 5)]
    assert read_events({"Action": "exec_start: sh", "Actor": {"Attributes": {"name": "web"}}}) == []
    assert read_events({"status": "died", "Actor": {"Attributes": {"name": "web"}}, "time": 2})[0].action == "die"


def test_a_container_of_podman_reads_like_one_of_docker() -> None:
    container = read_container(
        {
            "Id": "abc",
            "Name": "/web",
            "Image": "a" * 64,
            "Created": "2026-11-21T10:00:00.5+01:00",
            "RestartCount": None,
            "State": {
                "Status": "stopped",
                "ExitCode": 3,
                "StartedAt": "0001-01-01T00:00:00Z",
                "Health": {},
            },
            "Config": {"Image": "web:1", "Labels": None},
        }
    )
    assert (container.name, container.state, container.exit_code) == ("web", "exited", 3)
    assert container.image_digest == f"sha256:{'a' * 64}"
    assert container.created_at.ToJsonString() == "2026-11-21T09:00:00.500Z"
    assert not container.HasField("started_at")


class Engine:
    """Listens as an engine does, and answers every request but a ping with `answer`: nothing at all, when that is None,
    and when it is empty the connection is closed. `asked` are the requests."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.serving: list[asyncio.Task[None]] = []

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if length := re.search(r"content-length: (\d+)", head, re.IGNORECASE):
                    await reader.readexactly(int(length[1]))
                method, path, _ = head.split(maxsplit=2)
                if path == "/_ping":
                    writer.write(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK")
                    continue
                self.asked.append(f"{method} {path}")
                if self.answer is not None:
                    writer.write(self.answer)
                    if not self.answer:
                        break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def listening(engine: Engine, folder: pathlib.Path) -> AsyncIterator[DockerRuntime]:
    path = folder / "engine.sock"
    server = await asyncio.start_unix_server(engine.take, path)
    runtime = DockerRuntime(f"unix://{path}")
    await runtime.open()
    try:
        yield runtime
    finally:
        await runtime.close()
        server.close()
        await asyncio.gather(*engine.serving)


async def test_a_removal_that_was_not_answered_is_in_doubt_and_not_asked_again(tmp_path: pathlib.Path) -> None:
    engine = Engine(b"")
    async with listening(engine, tmp_path) as runtime:
        with pytest.raises(InDoubt, match="broke off before it answered"):
            await runtime.remove("abc", force=False)
        assert engine.asked == ["DELETE /v1.41/containers/abc"]


@pytest.mark.parametrize("status", [502, 504])
async def test_a_proxy_that_did_not_get_the_answer_leaves_it_in_doubt(tmp_path: pathlib.Path, status: int) -> None:
    engine = Engine(f"HTTP/1.1 {status} No Answer\r\nContent-Length: 0\r\n\r\n".encode())
    async with listening(engine, tmp_path) as runtime:
        for act in (runtime.stop("abc", 10), runtime.remove("abc", force=True), runtime.pull("web:1")):
            with pytest.raises(InDoubt, match=f"a proxy says {status}"):
                await act
        with pytest.raises(InDoubt, match=f"a proxy says {status}"):
            await runtime.start_program("abc", "an-exec", ExecSpec())
        with pytest.raises(RuntimeFailure):
            await runtime.get("web")


async def test_an_engine_that_hangs_has_a_title_all_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "TITLE_WITHIN", 0.05)
    async with listening(Engine(None), tmp_path) as runtime, asyncio.timeout(30):
        assert await runtime.title() == "docker"
