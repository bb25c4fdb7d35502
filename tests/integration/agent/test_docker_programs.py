"""Programs and logs on a real engine: what the docker runtime makes of its connections."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from grpc import StatusCode

from lading.v1.commands_pb2 import ContainerSpec, ExecSpec, TerminalSize
from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT, Container
from lading_agent.errors import CannotRun, RuntimeFailure
from lading_agent.runtimes import LogQuery, Program
from lading_agent.runtimes.docker import DockerRuntime
from tests.engine import Engine


@pytest.fixture
async def runtime(engine: Engine) -> AsyncIterator[DockerRuntime]:
    runtime = DockerRuntime(engine.url)
    await runtime.open()
    yield runtime
    for container in await runtime.containers():
        await runtime.remove(container.id, force=True)
    await runtime.close()


async def made(runtime: DockerRuntime, engine: Engine, script: str = "exec sleep 1000") -> Container:
    """A container that runs."""
    await runtime.create("web", ContainerSpec(image=engine.image, command=["sh", "-c", script], network="none"))
    web = await runtime.get("web")
    await runtime.start(web.id)
    return web


async def begun(runtime: DockerRuntime, web: Container, *command: str, **spec: object) -> tuple[Program, str]:
    asked = ExecSpec(command=command, **spec)  # type: ignore[arg-type]
    handle = await runtime.prepare_program(web.id, asked, "c")
    assert (await runtime.trace_program(handle)).began is False
    return await runtime.start_program(web.id, handle, asked), handle


async def output_of(program: Program) -> dict[int, bytes]:
    found: defaultdict[int, bytearray] = defaultdict(bytearray)
    while (piece := await program.read()) is not None:
        found[piece[0]] += piece[1]
    return {source: bytes(text) for source, text in found.items()}


async def until(program: Program, text: bytes) -> bytes:
    """What it writes until it has written this."""
    got = b""
    while text not in got:
        piece = await program.read()
        assert piece is not None, got
        got += piece[1]
    return got


async def test_a_program_has_its_environment_its_folder_its_two_outputs_and_its_exit_code(
    runtime: DockerRuntime, engine: Engine
) -> None:
    web = await made(runtime, engine)
    script = "pwd; echo $MODE >&2; exit 3"
    program, handle = await begun(runtime, web, "sh", "-c", script, env={"MODE": "fast"}, working_dir="/bin")
    assert await output_of(program) == {LOG_SOURCE_STDOUT: b"/bin\n", LOG_SOURCE_STDERR: b"fast\n"}
    assert await program.end() == 3
    await program.close()
    trace = await runtime.trace_program(handle)
    assert (trace.began, trace.running, trace.code) == (True, False, 3)


async def test_a_program_reads_what_is_written_and_sees_its_end(runtime: DockerRuntime, engine: Engine) -> None:
    web = await made(runtime, engine)
    program, _ = await begun(runtime, web, "cat", input=True)
    data = bytes(range(256)) * 4096
    reading = asyncio.create_task(output_of(program))
    await program.write(data)
    await program.end_input()
    assert await reading == {LOG_SOURCE_STDOUT: data}
    assert await program.end() == 0
    await program.close()


async def test_a_terminal_has_the_size_that_it_is_given_and_takes_ctrl_c(
    runtime: DockerRuntime, engine: Engine
) -> None:
    web = await made(runtime, engine)
    asked = {"tty": True, "input": True, "size": TerminalSize(rows=33, columns=99)}
    script = "trap 'echo interrupted; exit 4' INT; echo ready; while true; do sleep 0.1; done"
    program, _ = await begun(runtime, web, "sh", "-c", script, **asked)
    await until(program, b"ready")
    await program.resize(44, 111)
    await program.write(b"\x03")
    await until(program, b"interrupted")
    assert await program.end() == 4
    await program.close()


async def test_hanging_up_ends_a_shell_on_a_terminal(runtime: DockerRuntime, engine: Engine) -> None:
    web = await made(runtime, engine)
    program, handle = await begun(runtime, web, "sh", tty=True, input=True)
    await until(program, b"#")
    await program.write(b"sleep 1000\n")
    await until(program, b"sleep 1000")
    await program.hang_up()
    await output_of(program)
    assert await program.end() == 130
    await program.close()
    assert not (await runtime.trace_program(handle)).running


async def test_what_cannot_be_run_says_so_in_the_engines_words(runtime: DockerRuntime, engine: Engine) -> None:
    web = await made(runtime, engine)
    program, _ = await begun(runtime, web, "nowhere")
    said = await output_of(program)
    assert b"nowhere" in (said[LOG_SOURCE_STDOUT] if engine.name == "docker" else b"".join(said.values()))
    with pytest.raises(CannotRun, match="nowhere") as failure:
        await program.end()
    assert failure.value.exit_code in (126, 127)
    await program.close()
    await runtime.stop(web.id, 0)
    with pytest.raises(RuntimeFailure) as refused:
        await runtime.prepare_program(web.id, ExecSpec(command=["true"]), "c")
    assert refused.value.code == StatusCode.FAILED_PRECONDITION
    assert (await runtime.trace_program("f" * 64)).began is None


async def test_the_engine_waits_for_a_program_whose_output_nobody_reads(runtime: DockerRuntime, engine: Engine) -> None:
    web = await made(runtime, engine)
    size = 50_000_000
    program, _ = await begun(runtime, web, "sh", "-c", f"yes | head -c {size}; echo; echo done >&2")
    piece = await program.read()
    assert piece is not None
    reader = program._reader  # type: ignore[attr-defined]
    for _ in range(50):
        await asyncio.sleep(0.01)
    assert len(reader._buffer) <= 4 * 65536, "no more than a few buffers, whatever the program has"
    found = await output_of(program)
    assert len(piece[1]) + len(found[LOG_SOURCE_STDOUT]) == size + 1
    assert found[LOG_SOURCE_STDERR] == b"done\n"
    await program.close()


WRITER = """
i=0
while [ $i -lt 400 ]; do
  i=$((i+1)); echo out $i
  if [ $((i % 7)) = 0 ]; then echo err $i >&2; fi
  if [ $((i % 97)) = 0 ]; then printf '%20000s\\n' $i; fi
done
printf unfinished
"""


@pytest.mark.parametrize("tail", [0, 50])
async def test_a_log_cut_at_random_places_is_the_log(runtime: DockerRuntime, engine: Engine, tail: int) -> None:
    """Each time the reader goes on at the last position that it got, while the container still writes."""
    await made(runtime, engine, WRITER)
    if engine.name == "podman":
        # Whoever follows reads its file while it is written, at times half a line of it.
        while (await runtime.get("web")).state == "running":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    chance = random.Random(tail)
    got, position = b"", ""
    for _ in range(200):
        left, ended = chance.randint(1, 3), True
        query = LogQuery(follow=True, tail=tail, after=position)
        async with aclosing(runtime.logs("web", query)) as pieces:
            async for piece in pieces:
                got += piece.data
                position = piece.position
                left -= 1
                if left == 0:
                    ended = False
                    break
        if ended:
            break
    assert ended
    all_pieces = [piece async for piece in runtime.logs("web", LogQuery())]
    whole = b"".join(piece.data for piece in all_pieces)
    # Of its own source it is the last: the engine may write a line of the other one after it.
    assert b"".join(piece.data for piece in all_pieces if piece.source == LOG_SOURCE_STDOUT).endswith(b"unfinished")
    if tail:
        # The engine counts what it logged at once: a long line is several.
        assert len(got.splitlines()) >= tail - 4
        assert whole.endswith(got)
    else:
        assert got == whole


async def test_the_log_of_a_terminal_is_cut_and_put_together_too(runtime: DockerRuntime, engine: Engine) -> None:
    """It has one output, without the engine's frames; the container ends inside a line, and is started again."""
    import json

    from tests.engine import EngineConnection

    body = {"Image": engine.image, "Tty": True, "Cmd": ["sh", "-c", "seq 50; printf '%40000s' x; printf unfinished"]}
    connection = EngineConnection(engine.url.removeprefix("unix://"))
    connection.request(
        "POST",
        "/containers/create?name=web",
        json.dumps({**body, "HostConfig": {"NetworkMode": "none"}}),
        {"Content-Type": "application/json"},
    )
    assert connection.getresponse().read()
    connection.close()
    web = await runtime.get("web")
    for _ in range(2):
        await runtime.start(web.id)
        while (await runtime.get("web")).state == "running":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    plain = engine.request("GET", "/containers/web/logs?stdout=1&stderr=1")
    assert plain.count(b"unfinished") == 2
    got, position = b"", ""
    for _ in range(500):
        async with aclosing(runtime.logs("web", LogQuery(after=position))) as pieces:
            piece = await anext(pieces, None)
        if piece is None:
            break
        got += piece.data
        position = piece.position
    assert got == plain
    stamped = b"".join([piece.data async for piece in runtime.logs("web", LogQuery(timestamps=True))])
    assert stamped == engine.request("GET", "/containers/web/logs?stdout=1&stderr=1&timestamps=1")


async def test_positions_of_another_container_are_refused(runtime: DockerRuntime, engine: Engine) -> None:
    web = await made(runtime, engine, "echo one; exec sleep 1000")
    async with aclosing(runtime.logs("web", LogQuery(follow=True))) as pieces:
        position = (await anext(pieces)).position
    await runtime.remove(web.id, force=True)
    await made(runtime, engine, "echo two; exec sleep 1000")
    with pytest.raises(RuntimeFailure) as failure:
        async with aclosing(runtime.logs("web", LogQuery(follow=True, after=position))) as pieces:
            await anext(pieces)
    assert failure.value.code == StatusCode.FAILED_PRECONDITION


async def test_a_program_outlives_the_agent_that_ran_it_and_the_engine_knows_its_end(
    runtime: DockerRuntime, engine: Engine
) -> None:
    """An agent that crashed finds it by what it had journalled before, and never runs it again."""
    web = await made(runtime, engine)
    script = "echo begun; while [ ! -e /over ]; do sleep 0.1; done; exit 6"
    program, handle = await begun(runtime, web, "sh", "-c", script)
    await until(program, b"begun")
    await program.close()
    later = DockerRuntime(engine.url)
    await later.open()
    assert (await later.trace_program(handle)).running
    ending, _ = await begun(later, web, "sh", "-c", ": > /over")
    assert await ending.end() == 0
    await ending.close()
    while (trace := await later.trace_program(handle)).running:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert (trace.began, trace.code) == (True, 6)
    await later.close()
