"""Programs beside processes, and the logs of processes, cut and bounded."""

import asyncio
import os
import pathlib
import random
import signal
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from grpc import StatusCode

from lading.v1.commands_pb2 import ContainerSpec, ExecSpec, TerminalSize
from lading.v1.containers_pb2 import LOG_SOURCE_STDERR, LOG_SOURCE_STDOUT
from lading_agent.errors import CannotRun
from lading_agent.runtimes import LogQuery, Program, process_log
from lading_agent.runtimes.process import ProcessRuntime
from tests.integration.agent.test_process import code_of, log_of, made, open_runtime
from tests.process import state, wait_until

DECLARED = """
[process.sleeper]
command = ["sleep", "1000"]
autocreate = true
exec = true

[process.guarded]
command = ["sleep", "1000"]
env = { GREETING = "hello" }
exec = true
cwd = "/"

[process.masked]
command = ["grep", "SigIgn", "/proc/self/status"]

[process.alone]
command = ["sleep", "1000"]

[process.writer]
command = ["sh", "-c", "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; done"]

[process.large]
command = ["sh", "-c", "seq 100000"]
"""


@pytest.fixture
async def runtime(tmp_path: pathlib.Path) -> AsyncIterator[ProcessRuntime]:
    runtime = await open_runtime(tmp_path, DECLARED)
    yield runtime
    for container in await runtime.containers():
        await runtime.remove(container.id, force=True)
    await runtime.close()


async def begun(runtime: ProcessRuntime, *command: str, **spec: object) -> Program:
    """A program beside the process `web`."""
    web = (await runtime.get("web")).id
    asked = ExecSpec(command=command, **spec)  # type: ignore[arg-type]
    handle = await runtime.prepare_program(web, asked, str(uuid.uuid4()))
    return await runtime.start_program(web, handle, asked)


async def output_of(program: Program) -> dict[int, bytes]:
    found: defaultdict[int, bytearray] = defaultdict(bytearray)
    while (piece := await program.read()) is not None:
        found[piece[0]] += piece[1]
    return {source: bytes(text) for source, text in found.items()}


async def running(runtime: ProcessRuntime, process: str = "sleeper") -> None:
    await runtime.start((await made(runtime, process)).id)


async def test_a_program_runs_with_what_the_process_beside_it_has(
    runtime: ProcessRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADING_TOKEN", "secret")
    await running(runtime, "guarded")
    program = await begun(runtime, "sh", "-c", "pwd; echo $GREETING $MODE $LADING_TOKEN >&2; exit 3", env={"MODE": "m"})
    assert await output_of(program) == {LOG_SOURCE_STDOUT: b"/\n", LOG_SOURCE_STDERR: b"hello m\n"}
    assert await program.end() == 3
    await program.close()


async def test_a_program_reads_what_is_written_however_much(runtime: ProcessRuntime) -> None:
    await running(runtime)
    program = await begun(runtime, "cat", input=True)
    data = bytes(range(256)) * 8192
    reading = asyncio.create_task(output_of(program))
    await program.write(data)
    await program.end_input()
    assert await reading == {LOG_SOURCE_STDOUT: data}
    assert await program.end() == 0
    await program.close()


async def test_a_terminal_has_its_size_its_signals_and_one_output(runtime: ProcessRuntime) -> None:
    await running(runtime)
    size = TerminalSize(rows=33, columns=99)
    script = "trap 'stty size; exit 4' INT; trap 'echo changed' WINCH; stty size; while true; do sleep 0.05; done"
    program = await begun(runtime, "sh", "-c", script, tty=True, input=True, size=size)
    got = b""
    for wanted, then in ((b"33 99", None), (b"changed", b"\x03")):
        if then is not None:
            await program.resize(44, 111)
        while wanted not in got:
            piece = await program.read()
            assert piece is not None, got
            got += piece[1]
    await program.write(b"\x03")
    assert b"44 111" in (await output_of(program))[LOG_SOURCE_STDOUT]
    assert await program.end() == 4
    await program.close()


@pytest.mark.parametrize("tty", [False, True])
async def test_a_program_that_is_hung_up_ends_with_all_that_it_started(runtime: ProcessRuntime, tty: bool) -> None:
    await running(runtime)
    program = await begun(runtime, "sh", "-c", "sleep 1000 & echo $!; wait", tty=tty)
    piece = await program.read()
    assert piece is not None
    child = int(piece[1])
    await program.hang_up()
    assert await output_of(program) == {}
    assert await program.end() == 128 + signal.SIGHUP
    await program.close()
    wait_until(lambda: state(child) in "ZX", "its child is gone")


async def test_programs_ignore_no_signal_that_their_agent_does(runtime: ProcessRuntime, tmp_path: pathlib.Path) -> None:
    """As after `nohup lading agent run &` in a script."""
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        (tmp_path / "later").mkdir()
        later = await open_runtime(tmp_path / "later", DECLARED)
        for number in ignored:
            os.kill(os.getpid(), number)
        await later.create("web", ContainerSpec(image="masked"))
        await later.start((await later.get("web")).id)
        masks = [await log_of(later, follow=True)]
        await later.close()
        await running(runtime)
        program = await begun(runtime, "grep", "SigIgn", "/proc/self/status")
        masks += (await output_of(program)).values()
        await program.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for mask in masks:  # others may be ignored by whoever runs the tests, and cannot be caught
        assert not [number for number in ignored if int(mask.split()[1], 16) >> number - 1 & 1]


async def test_what_cannot_be_run_has_the_exit_code_of_shells(runtime: ProcessRuntime) -> None:
    await running(runtime)
    for command, code in (("/nowhere/program", 127), ("/etc/passwd", 126)):
        with pytest.raises(CannotRun) as failure:
            await begun(runtime, command)
        assert failure.value.exit_code == code


async def test_no_program_runs_beside_a_process_that_is_not_to_have_any(runtime: ProcessRuntime) -> None:
    sleeper = await runtime.get("sleeper")
    assert await code_of(runtime.prepare_program(sleeper.id, ExecSpec(command=["id"]), "c")) == (
        StatusCode.FAILED_PRECONDITION
    )
    await running(runtime, "alone")
    web = await runtime.get("web")
    assert await code_of(runtime.prepare_program(web.id, ExecSpec(command=["id"]), "c")) == StatusCode.PERMISSION_DENIED
    await runtime.start(sleeper.id)
    as_other = ExecSpec(command=["id"], user="nobody")
    assert await code_of(runtime.prepare_program(sleeper.id, as_other, "c")) == StatusCode.UNIMPLEMENTED


async def test_a_program_that_an_earlier_life_left_is_found_and_ended(runtime: ProcessRuntime) -> None:
    await running(runtime)
    web = (await runtime.get("web")).id
    handle, asked = str(uuid.uuid4()), ExecSpec(command=["sleep", "1000"])
    program = await runtime.start_program(web, handle, asked)
    trace = await runtime.trace_program(handle)
    assert (trace.began, trace.running, trace.code) == (True, False, None)
    assert await program.end() == 128 + signal.SIGKILL
    await program.close()
    assert (await runtime.trace_program(handle)).began is None


async def test_a_log_cut_at_random_places_is_the_log(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "writer")
    await runtime.start(web.id)
    chance, got, position, ended = random.Random(1), b"", "", False
    while not ended:
        left, ended = chance.randint(1, 3), True
        async with aclosing(runtime.logs("web", LogQuery(follow=True, after=position))) as pieces:
            async for piece in pieces:
                got, position, left = got + piece.data, piece.position, left - 1
                if left == 0:
                    ended = False
                    break
    assert got == await log_of(runtime)
    assert got.endswith(b"300\n")
    await runtime.remove(web.id, force=True)
    await made(runtime, "writer")
    assert await code_of(log_of(runtime, after=position)) == StatusCode.FAILED_PRECONDITION


async def test_a_log_is_bounded_on_disk_and_its_positions_stay(
    runtime: ProcessRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_log, "LOG_BYTES_MAX", 200_000)
    monkeypatch.setattr(process_log, "KEPT_BYTES", 100_000)
    web = await made(runtime, "large")
    await runtime.start(web.id)
    whole = await log_of(runtime, follow=True)
    async with aclosing(runtime.logs("web", LogQuery())) as pieces:
        old = (await anext(pieces)).position
    async with aclosing(runtime.logs("web", LogQuery(tail=5))) as pieces:
        new = (await anext(pieces)).position
    path = runtime._folder / "web/log"
    process_log.trim(path)
    assert path.stat().st_blocks * 512 < 200_000 < len(whole)
    kept = await log_of(runtime)
    assert 90_000 < len(kept) < 110_000
    assert whole.endswith(kept)
    assert kept.splitlines()[0] in whole.splitlines(), "it begins with a whole line"
    assert await log_of(runtime, tail=2) == b"".join(whole.splitlines(keepends=True)[-2:])
    assert await code_of(log_of(runtime, after=old)) == StatusCode.OUT_OF_RANGE
    assert await log_of(runtime, after=new) == b""
