"""The docker runtime on a real engine."""

import asyncio
import pathlib
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from grpc import StatusCode

from lading.v1.agent_link_pb2 import Change, ConnectRequest, Result
from lading.v1.commands_pb2 import COMMAND_STATE_SUCCEEDED, VERB_CREATE, VERB_REMOVE, VERB_START, ContainerSpec
from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT
from lading_agent.drifts import Drifts
from lading_agent.errors import RuntimeFailure
from lading_agent.evidence import weigh
from lading_agent.journal import Journal, Start
from lading_agent.runtimes import COMMAND_LABEL, LogQuery, RuntimeEvent, find
from lading_agent.runtimes.docker import DockerRuntime
from tests.engine import Engine
from tests.unit.agent.honest_log import command


@pytest.fixture
async def runtime(engine: Engine) -> AsyncIterator[DockerRuntime]:
    """Removes what the test made."""
    runtime = DockerRuntime(engine.url)
    await runtime.open()
    yield runtime
    for container in await runtime.containers():
        await runtime.remove(container.id, force=True)
    await runtime.close()


def spec(engine: Engine, script: str = "exec sleep 1000", **labels: str) -> ContainerSpec:
    return ContainerSpec(image=engine.image, command=["sh", "-c", script], network="none", labels=labels)


async def code_of(action: object) -> StatusCode:
    with pytest.raises(RuntimeFailure) as failure:
        await action  # type: ignore[misc]
    assert str(failure.value)
    return failure.value.code


async def test_the_title_names_the_engine_and_its_version(runtime: DockerRuntime, engine: Engine) -> None:
    program, version = (await runtime.title()).split()
    assert program == engine.name
    assert version[0].isdigit()


async def test_a_container_goes_through_its_whole_life(runtime: DockerRuntime, engine: Engine) -> None:
    await runtime.create("web", spec(engine, app="web"))
    web = await runtime.get("web")
    assert (web.name, web.state, web.image, dict(web.labels)) == ("web", "created", engine.image, {"app": "web"})
    assert web.image_digest.startswith("sha256:")
    assert not web.HasField("started_at")
    await runtime.start(web.id)
    running = await runtime.get("web")
    assert running.state == "running"
    assert running.started_at.ToNanoseconds() > web.created_at.ToNanoseconds()
    await runtime.pause(web.id)
    assert (await runtime.get("web")).state == "paused"
    await runtime.unpause(web.id)
    await runtime.restart(web.id, 0)
    assert (await runtime.get("web")).started_at.ToNanoseconds() > running.started_at.ToNanoseconds()
    await runtime.kill(web.id, "SIGKILL")
    await runtime.start(web.id)
    await runtime.stop(web.id, 0)
    ended = await runtime.get("web")
    assert (ended.state, ended.exit_code) == ("exited", 137)
    assert ended.finished_at.ToNanoseconds() > ended.started_at.ToNanoseconds()
    await runtime.remove(web.id, force=False)
    assert await find(runtime, "web") is None


async def test_errors_of_the_engine_become_codes(runtime: DockerRuntime, engine: Engine) -> None:
    await runtime.create("web", spec(engine))
    web = await runtime.get("web")
    assert await code_of(runtime.create("web", spec(engine))) == StatusCode.ALREADY_EXISTS
    assert await code_of(runtime.create("x", ContainerSpec(image="gone:1"))) == StatusCode.NOT_FOUND
    assert await code_of(runtime.get("gone")) == StatusCode.NOT_FOUND
    assert await code_of(runtime.start("0" * 64)) == StatusCode.NOT_FOUND
    for change in (runtime.stop(web.id, 0), runtime.kill(web.id, "SIGKILL"), runtime.pause(web.id)):
        assert await code_of(change) == StatusCode.FAILED_PRECONDITION
    await runtime.start(web.id)
    for change in (runtime.start(web.id), runtime.unpause(web.id), runtime.remove(web.id, force=False)):
        assert await code_of(change) == StatusCode.FAILED_PRECONDITION
    assert await code_of(runtime.kill(web.id, "SIGNONE")) == StatusCode.INVALID_ARGUMENT
    # Docker answers that, Podman only says so afterwards.
    silent = StatusCode.INTERNAL if engine.name == "docker" else StatusCode.UNKNOWN
    assert await code_of(runtime.pull("localhost:1/gone:1")) == silent


async def test_starting_what_runs_says_so(runtime: DockerRuntime, engine: Engine) -> None:
    await runtime.create("web", spec(engine))
    web = await runtime.get("web")
    await runtime.start(web.id)
    with pytest.raises(RuntimeFailure, match="is already running"):
        await runtime.start(web.id)


async def test_the_beginning_of_an_id_is_no_name(runtime: DockerRuntime, engine: Engine) -> None:
    await runtime.create("web", spec(engine))
    web = await runtime.get("web")
    assert await code_of(runtime.get(web.id[:8])) == StatusCode.NOT_FOUND


async def test_an_engine_that_is_not_there_is_unavailable() -> None:
    runtime = DockerRuntime("unix:///nowhere/docker.sock")
    await runtime.open()
    try:
        assert await runtime.title() == "docker"
        assert await code_of(runtime.containers()) == StatusCode.UNAVAILABLE
        assert await code_of(runtime.start("0" * 64)) == StatusCode.UNAVAILABLE
    finally:
        await runtime.close()


async def test_logs_keep_their_sources_and_their_bytes(runtime: DockerRuntime, engine: Engine) -> None:
    await runtime.create("web", spec(engine, "echo yes; echo no >&2; seq 5"))
    web = await runtime.get("web")
    await runtime.start(web.id)
    pieces = [piece async for piece in runtime.logs("web", LogQuery(follow=True))]
    assert b"".join(piece.data for piece in pieces if piece.source == LOG_SOURCE_STDOUT) == b"yes\n1\n2\n3\n4\n5\n"
    assert b"".join(piece.data for piece in pieces if piece.source == LOG_SOURCE_STDERR) == b"no\n"
    tail = [piece.data async for piece in runtime.logs("web", LogQuery(tail=2))]
    assert b"".join(tail).count(b"\n") == 2
    stamped = [piece.data async for piece in runtime.logs("web", LogQuery(timestamps=True))]
    assert all(line.startswith(b"20") for line in b"".join(stamped).splitlines())
    assert [piece async for piece in runtime.logs("web", LogQuery(since_ns=time.time_ns()))] == []


async def test_following_a_log_gives_lines_as_they_are_written(runtime: DockerRuntime, engine: Engine) -> None:
    script = "trap 'echo two; exit' USR1; echo one; while true; do sleep 0.02; done"
    await runtime.create("web", spec(engine, script))
    web = await runtime.get("web")
    await runtime.start(web.id)
    lines = []
    async with aclosing(runtime.logs("web", LogQuery(follow=True))) as pieces:
        async for piece in pieces:
            lines.append(piece.data)
            if piece.data == b"one\n":
                await runtime.kill(web.id, "SIGUSR1")
    assert lines == [b"one\n", b"two\n"]


async def test_events_tell_what_happens_and_since_covers_a_gap(runtime: DockerRuntime, engine: Engine) -> None:
    since_ns = time.time_ns()
    await runtime.create("web", spec(engine))
    web = await runtime.get("web")
    await runtime.start(web.id)
    seen: list[RuntimeEvent] = []
    async with aclosing(runtime.events(since_ns)) as events:
        async for event in events:
            seen.append(event)
            if event.action == "start":
                break
    found = [(event.container, event.action) for event in seen if event.action != "init"]  # Podman's
    assert found == [("web", "create"), ("web", "start")]
    assert all(event.at_ns > since_ns for event in seen)
    await runtime.remove(web.id, force=True)
    assert "destroy" in {event.action for event in await runtime.history("web", since_ns)}


async def test_evidence_on_the_engine(runtime: DockerRuntime, engine: Engine) -> None:
    create = command("create")
    since_ns = time.time_ns()
    await runtime.create("web", spec(engine, **{COMMAND_LABEL: create.command}))
    made = await runtime.get("web")
    assert create.verb == VERB_CREATE
    assert weigh(create, None, made, frozenset()).state == COMMAND_STATE_SUCCEEDED
    start = command("start")
    await runtime.start(made.id)
    running = await runtime.get("web")
    assert start.verb == VERB_START
    assert weigh(start, made, running, frozenset()).state == COMMAND_STATE_SUCCEEDED
    remove = command("remove")
    await runtime.remove(made.id, force=True)
    actions = frozenset(event.action for event in await runtime.history("web", since_ns))
    assert remove.verb == VERB_REMOVE
    assert weigh(remove, running, None, actions).state == COMMAND_STATE_SUCCEEDED


async def test_containers_are_listed_while_others_come_and_go(runtime: DockerRuntime, engine: Engine) -> None:
    names = sorted(f"c-{uuid.uuid4().hex[:6]}" for _ in range(6))
    await asyncio.gather(*(runtime.create(name, spec(engine)) for name in names))
    listed, _ = await asyncio.gather(runtime.containers(), runtime.remove((await runtime.get(names[0])).id, True))
    assert {container.name for container in listed} >= set(names[1:])


async def test_what_somebody_does_with_docker_is_told_as_drift(
    runtime: DockerRuntime, engine: Engine, tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path)
    await journal.open()
    sent: asyncio.Queue[ConnectRequest] = asyncio.Queue()
    reporting = asyncio.create_task(Drifts(runtime, journal, sent.put_nowait).run())
    try:
        async with asyncio.timeout(20):
            while journal.seen_ns is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            ours = command("create")
            await journal.receive(ours)
            await journal.begin(ours.command, Start(None))
            await runtime.create("web", spec(engine))
            await journal.end(Result(command=ours.command, state=COMMAND_STATE_SUCCEEDED))
            web = await runtime.get("web")
            await runtime.start(web.id)  # no command: as somebody with the engine's own client does it
            await runtime.kill(web.id, "SIGKILL")
            found: list[Change] = []
            while not any(change.action == "die" for change in found):
                found += (await sent.get()).drift.changes
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        await journal.close()
    assert [change.action for change in found][:2] == ["start", "kill"]
    (died,) = [change for change in found if change.action == "die"]
    assert (died.container, died.container_id, died.attributes["exitCode"]) == ("web", web.id, "137")
