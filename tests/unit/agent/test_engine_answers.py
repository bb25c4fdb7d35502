"""What the engine sends, read without an engine."""

import struct
from collections.abc import AsyncIterator, Iterable

from hypothesis import given
from hypothesis import strategies as st

from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT
from lading_agent.runtimes.docker import read_container, read_events
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
