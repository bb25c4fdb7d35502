"""What the engine sends, read without an engine."""

import asyncio
import contextlib
import json
import pathlib
import re
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.v1.commands_pb2 import ExecSpec, TerminalSize
from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT
from lading_agent.errors import InDoubt, RuntimeFailure, Unreadable
from lading_agent.runtimes import LogQuery, docker
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


async def test_what_an_engine_leaves_out_at_the_end_of_a_followed_log_comes(
    tmp_path: pathlib.Path,
) -> None:
    lines = [f"2026-11-21T10:00:00.{number:09}Z line {number}\n".encode() for number in range(3)]
    frames = [struct.pack(">BxxxI", 1, len(line)) + line for line in lines]
    engine = Engine(
        None,
        {
            "/containers/web/json": http({**INSPECTION, "Id": "a" * 64}),
            f"/containers/{'a' * 64}/logs followed": http(b"".join(frames[:2])),
            f"/containers/{'a' * 64}/logs": http(b"".join(frames)),
        },
    )
    async with listening(engine, tmp_path) as runtime, asyncio.timeout(10):
        got = [piece async for piece in runtime.logs("web", LogQuery(follow=True))]
    assert b"".join(piece.data for piece in got) == b"line 0\nline 1\nline 2\n"


@pytest.mark.parametrize(("status", "ends_well"), [("404 Not Found", True), ("503 Service Unavailable", False)])
async def test_a_followed_log_whose_end_cannot_be_read_ends_well_only_where_there_is_none(
    tmp_path: pathlib.Path, status: str, *, ends_well: bool
) -> None:
    answers = {
        "/containers/web/json": http({**INSPECTION, "Id": "a" * 64}),
        f"/containers/{'a' * 64}/logs followed": http(b""),
        f"/containers/{'a' * 64}/logs": http({"message": "no"}, status),
    }
    async with listening(Engine(None, answers), tmp_path) as runtime, asyncio.timeout(10):
        with contextlib.nullcontext() if ends_well else pytest.raises(RuntimeFailure):
            assert [piece async for piece in runtime.logs("web", LogQuery(follow=True))] == []


async def test_a_line_longer_than_any_buffer_is_one_document() -> None:
    long = "x" * 300_000
    data = f'{{"a": "{long}"}}\n\n{{"b": 1}}\n'.encode()
    assert [line async for line in json_lines(stream(cut(data, 65536)))] == [{"a": long}, {"b": 1}]


def test_a_renaming_touches_both_names_and_noise_touches_none() -> None:
    renamed = {"Action": "rename", "Actor": {"Attributes": {"name": "new", "oldName": "/old"}}, "timeNano": 5}
    assert [(event.container, event.at_ns) for event in read_events(renamed)] == [("new", 5), ("old", 5)]
    assert read_events({"Action": "exec_start: sh", "Actor": {"Attributes": {"name": "web"}}}) == []
    assert read_events({"status": "died", "Actor": {"Attributes": {"name": "web"}}, "time": 2})[0].action == "die"


INSPECTION: dict[str, Any] = {
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


def test_a_container_of_podman_reads_like_one_of_docker() -> None:
    container = read_container(INSPECTION)
    assert (container.name, container.state, container.exit_code) == ("web", "exited", 3)
    assert container.image_digest == f"sha256:{'a' * 64}"
    assert container.created_at.ToJsonString() == "2026-11-21T09:00:00.500Z"
    assert not container.HasField("started_at")


class Engine:
    """Listens as an engine does, and answers every request but a ping with `answer`: nothing at all, when that is None,
    and when it is empty the connection is closed; `answers` are those of paths, and of "PATH followed" of those that
    are to be followed. `asked` are the requests."""

    def __init__(self, answer: bytes | None, answers: dict[str, bytes] | None = None) -> None:
        self.answer, self.answers = answer, answers or {}
        self.asked: list[str] = []
        self.serving: list[asyncio.Task[None]] = []
        self.heard = asyncio.Semaphore(0)
        # What came last on a connection that was taken over.
        self.rest = b""

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
                self.heard.release()
                bare, _, query = path.removeprefix("/v1.41").partition("?")
                follows = f"{bare} followed" if "follow=1" in query else bare
                answer = self.answers.get(follows, self.answers.get(bare, self.answer))
                if answer is not None:
                    writer.write(answer)
                    if answer.startswith(b"HTTP/1.1 101"):
                        self.rest = await reader.read()
                    if not answer:
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


def http(document: object, status: str = "200 OK") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


UNREADABLE = {
    "a list": [],
    "no state": {**INSPECTION, "State": None},
    "a time of the year 99999": {**INSPECTION, "Created": "99999-01-01T00:00:00Z"},
    "a code out of range": {**INSPECTION, "State": {"Status": "exited", "ExitCode": 2**40}},
    "labels that are none": {**INSPECTION, "Config": {"Image": "web:1", "Labels": {"a": {}}}},
    "no JSON": b"{",
}


@pytest.mark.parametrize("inspection", [http(each) for each in UNREADABLE.values()], ids=UNREADABLE)
async def test_a_container_that_cannot_be_read_hides_no_other(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, inspection: bytes
) -> None:
    answers = {
        "/containers/json": http([{"Id": "bad"}, {"Id": "abc"}, {"Id": "gone"}]),
        "/containers/abc/json": http(INSPECTION),
        "/containers/bad/json": inspection,
        "/containers/gone/json": http({"message": "No such container: gone"}, "404 Not Found"),
    }
    async with listening(Engine(None, answers), tmp_path) as runtime:
        for _ in range(2):
            assert [each.id for each in await runtime.containers()] == ["abc"]
        with pytest.raises(Unreadable):
            await runtime.get("bad")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("container bad is left out of the inventory")


async def test_what_is_left_out_is_said_once_while_it_is_there(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, gone = http([{"Id": "bad"}]), http([])
    answers = {"/containers/bad/json": http([])}
    async with listening(Engine(None, answers), tmp_path) as runtime:
        for answers["/containers/json"] in (there, there, gone, there):
            assert await runtime.containers() == []
    assert len(caplog.messages) == 2


async def test_a_container_that_the_engine_cannot_inspect_hides_no_other_and_an_engine_that_can_none_does(
    tmp_path: pathlib.Path,
) -> None:
    answers = {
        "/containers/json": http([{"Id": "bad"}, {"Id": "abc"}]),
        "/containers/abc/json": http(INSPECTION),
    }
    refusal = http({"message": "no such layer"}, "500 Internal Server Error")
    async with listening(Engine(refusal, answers), tmp_path) as runtime:
        assert [each.id for each in await runtime.containers()] == ["abc"]
        del answers["/containers/abc/json"]
        with pytest.raises(RuntimeFailure, match="no such layer"):
            await runtime.containers()


async def test_what_is_no_json_leaves_an_act_in_doubt_and_ends_no_session(tmp_path: pathlib.Path) -> None:
    events = b'{"Action": []}\n[]\n{"Action": "start", "Actor": {"Attributes": {"name": "web"}}, "time": 2}\n{\n'
    async with listening(Engine(http(b"<html>"), {"/events": http(events)}), tmp_path) as runtime:
        assert await runtime.title() == "docker"
        with pytest.raises(Unreadable):
            await runtime.containers()
        with pytest.raises(InDoubt):
            await runtime.start("abc")
        found = runtime.events(1)
        assert (await anext(found)).action == "start"
        with pytest.raises(InDoubt):
            await anext(found)


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


async def test_a_program_whose_size_the_engine_does_not_take_is_there_to_be_hung_up(tmp_path: pathlib.Path) -> None:
    engine = Engine(None, {"/exec/an-exec/start": b"HTTP/1.1 101 UPGRADED\r\n\r\n"})
    spec = ExecSpec(tty=True, input=True, size=TerminalSize(rows=33, columns=99))
    async with listening(engine, tmp_path) as runtime, asyncio.timeout(10):
        program = await runtime.start_program("abc", "an-exec", spec)
        writing = asyncio.create_task(program.write(b"not before it has its size"))
        for _ in range(2):
            await engine.heard.acquire()
        assert not writing.done()
        await program.hang_up()
        await writing
        await asyncio.sleep(0)
        await program.close()
    assert engine.asked == ["POST /v1.41/exec/an-exec/start", "POST /v1.41/exec/an-exec/resize?h=33&w=99"]
    assert b"\x03" in engine.rest


async def test_an_engine_that_hangs_has_a_title_all_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "TITLE_WITHIN", 0.05)
    async with listening(Engine(None), tmp_path) as runtime, asyncio.timeout(30):
        assert await runtime.title() == "docker"
