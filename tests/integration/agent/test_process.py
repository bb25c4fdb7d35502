"""The process runtime with real processes."""

import asyncio
import os
import pathlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import pytest
from grpc import StatusCode

from lading.v1.commands_pb2 import ContainerSpec
from lading.v1.containers_pb2 import Container
from lading_agent.errors import RuntimeFailure, SettingsError
from lading_agent.runtimes import LogQuery, find
from lading_agent.runtimes.process import ProcessRuntime
from tests.process import wait_until
from tests.unit.agent.log_lines import listening
from tests.unit.agent.small_disk import small_disk

DECLARED = """
[process.sleeper]
command = ["sleep", "1000"]
labels = { app = "sleeper" }
autocreate = true

[process.stubborn]
command = ["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.05; done"]

[process.teller]
command = ["sh", "-c", "seq 5; echo $GREETING >&2; pwd"]
env = { GREETING = "hello" }
cwd = "/"

[process.failing]
command = ["sh", "-c", "exit 3"]

[process.flapping]
command = ["sh", "-c", "exit 3"]
restart = "on-failure"

[process.always]
command = ["sleep", "1000"]
restart = "always"

[process.missing]
command = ["/nowhere/program"]

[process.parent]
command = ["sh", "-c", "sleep 1000 & echo $!; exit 0"]
"""


@pytest.fixture
async def runtime(tmp_path: pathlib.Path) -> AsyncIterator[ProcessRuntime]:
    runtime = await open_runtime(tmp_path)
    yield runtime
    for container in await runtime.containers():
        await runtime.remove(container.id, force=True)
    await runtime.close()


async def open_runtime(folder: pathlib.Path, declared: str = DECLARED) -> ProcessRuntime:
    file = folder / "processes.toml"
    file.write_text(declared)
    runtime = ProcessRuntime(folder / "data", file)
    await runtime.open()
    return runtime


async def made(runtime: ProcessRuntime, process: str, name: str = "web") -> Container:
    await runtime.create(name, ContainerSpec(image=process))
    return await runtime.get(name)


async def until(runtime: ProcessRuntime, action: str, since_ns: int = 0) -> None:
    """Wait for the next event of this kind."""
    async with aclosing(runtime.events(since_ns)) as events:
        async for event in events:
            if event.action == action:
                return


async def log_of(runtime: ProcessRuntime, name: str = "web", **query: int | str) -> bytes:
    return b"".join([piece.data async for piece in runtime.logs(name, LogQuery(**query))])  # type: ignore[arg-type]


async def code_of(action: object) -> StatusCode:
    with pytest.raises(RuntimeFailure) as failure:
        await action  # type: ignore[misc]
    return failure.value.code


def kernel_state(pid: int) -> str:
    """One letter, as proc(5) has it; Z when it is gone."""
    with suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def alive(pid: int) -> bool:
    return kernel_state(pid) != "Z"


def environment_of(pid: int) -> bytes:
    return pathlib.Path(f"/proc/{pid}/environ").read_bytes()


def pid_of(runtime: ProcessRuntime, name: str = "web") -> int:
    return runtime._by_name[name].record.pid


async def test_a_process_declared_with_autocreate_is_there_but_not_started(runtime: ProcessRuntime) -> None:
    (container,) = await runtime.containers()
    assert (container.name, container.state, container.image) == ("sleeper", "created", "sleeper")
    assert dict(container.labels) == {"app": "sleeper"}
    assert container.image_digest.startswith("sha256:")


async def test_a_process_goes_through_its_whole_life(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "sleeper")
    await runtime.start(web.id)
    running = await runtime.get("web")
    assert running.state == "running"
    pid = pid_of(runtime)
    assert os.getpgid(pid) == pid, "a group of its own"
    await runtime.pause(web.id)
    assert (await runtime.get("web")).state == "paused"
    wait_until(lambda: kernel_state(pid) == "T", "it is stopped")  # a busy kernel says so a little later
    await runtime.unpause(web.id)
    await runtime.restart(web.id, 5)
    assert (await runtime.get("web")).started_at.ToNanoseconds() > running.started_at.ToNanoseconds()
    await runtime.stop(web.id, 5)
    ended = await runtime.get("web")
    assert (ended.state, ended.exit_code) == ("exited", 128 + signal.SIGTERM)
    await runtime.remove(web.id, force=False)
    assert await find(runtime, "web") is None
    assert [event.action for event in await runtime.history("web", 0)][-1] == "destroy"


async def test_what_ignores_sigterm_is_killed_after_its_grace(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "stubborn")
    await runtime.start(web.id)
    async with aclosing(runtime.logs("web", LogQuery(follow=True))) as pieces:
        assert (await anext(pieces)).data == b"ready\n"
    await runtime.stop(web.id, 0.1)
    assert (await runtime.get("web")).exit_code == 128 + signal.SIGKILL


async def test_an_exit_code_is_told_with_the_end(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "sleeper")
    await runtime.start(web.id)
    await runtime.kill(web.id, "KILL")
    async with aclosing(runtime.events(0)) as events:
        died = await anext(event async for event in events if event.action == "die")
    assert died.attributes == (("exitCode", str(128 + signal.SIGKILL)),)


async def test_an_exit_code_is_kept(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "failing")
    await runtime.start(web.id)
    await until(runtime, "die")
    ended = await runtime.get("web")
    assert (ended.state, ended.exit_code) == ("exited", 3)


async def test_output_goes_to_a_log_in_its_order(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "teller")
    await runtime.start(web.id)
    assert await log_of(runtime, follow=True) == b"1\n2\n3\n4\n5\nhello\n/\n"
    assert await log_of(runtime, tail=3) == b"5\nhello\n/\n"
    assert await log_of(runtime, tail=100) == b"1\n2\n3\n4\n5\nhello\n/\n"
    assert await code_of(log_of(runtime, since_ns=1)) == StatusCode.UNIMPLEMENTED


async def test_a_process_never_sees_the_agents_token(runtime: ProcessRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_TOKEN", "secret")
    web = await made(runtime, "sleeper")
    await runtime.start(web.id)
    environment = environment_of(pid_of(runtime))
    assert b"secret" not in environment
    assert b"PATH=" in environment


async def test_what_a_process_leaves_behind_ends_with_it(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "parent")
    await runtime.start(web.id)
    child = int(await log_of(runtime, follow=True))
    # It was killed; that it is dead takes the kernel a moment more.
    await asyncio.to_thread(wait_until, lambda: not alive(child), "it is gone")


async def test_a_failing_process_is_restarted_by_its_policy(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "flapping")
    await runtime.start(web.id)
    starts = 0
    async with aclosing(runtime.events(0)) as events:
        async for event in events:
            starts += event.action == "start"
            if starts == 3:
                break
    await until(runtime, "die")
    assert (await runtime.get("web")).restart_count >= 2
    await runtime.stop(web.id, 1)
    assert (await runtime.get("web")).state == "exited"


async def test_processes_outlive_the_agent_and_are_taken_up_again(tmp_path: pathlib.Path) -> None:
    first = await open_runtime(tmp_path)
    web = await made(first, "sleeper")
    await first.start(web.id)
    before, pid = await first.get("web"), pid_of(first)
    await first.close()
    assert alive(pid)
    second = await open_runtime(tmp_path)
    after = await second.get("web")
    assert (after.id, after.state, after.started_at) == (before.id, "running", before.started_at)
    await second.stop(web.id, 5)
    assert not alive(pid)
    await second.close()


async def test_a_process_that_ended_while_the_agent_was_away_is_found_ended(tmp_path: pathlib.Path) -> None:
    # Another process is the agent of that time: this one must not be the parent.
    script = f"""
import asyncio, pathlib
from lading.v1.commands_pb2 import ContainerSpec
from lading_agent.runtimes.process import ProcessRuntime
async def main():
    runtime = ProcessRuntime(pathlib.Path({str(tmp_path / "data")!r}), pathlib.Path({str(tmp_path / "p.toml")!r}))
    await runtime.open()
    await runtime.start((await runtime.get("sleeper")).id)
asyncio.run(main())
"""
    (tmp_path / "p.toml").write_text(DECLARED)
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await agent.wait() == 0
    runtime = await open_runtime(tmp_path)
    sleeper = await runtime.get("sleeper")
    assert sleeper.state == "running"
    os.kill(pid_of(runtime, "sleeper"), signal.SIGKILL)
    await until(runtime, "die")
    ended = await runtime.get("sleeper")
    assert (ended.state, ended.exit_code) == ("exited", 255)
    await runtime.close()


async def test_a_crash_between_spawning_and_writing_it_down_loses_no_process(tmp_path: pathlib.Path) -> None:
    first = await open_runtime(tmp_path)
    web = await made(first, "sleeper")
    await first.start(web.id)
    pid = pid_of(first)
    # The record as a crash right after the spawn leaves it.
    first._by_name["web"].save(spawning=True, state="created", pid=0, pid_born=0, started_ns=0)
    await first.close()
    second = await open_runtime(tmp_path)
    assert (await second.get("web")).state == "running"
    assert pid_of(second) == pid
    await second.remove(web.id, force=True)
    await second.close()


async def test_a_number_that_another_process_has_now_is_not_taken_for_it(tmp_path: pathlib.Path) -> None:
    first = await open_runtime(tmp_path)
    await made(first, "sleeper")
    # As if the process had ended and its number were this test's by now.
    first._by_name["web"].save(state="running", pid=os.getpid(), pid_born=1, started_ns=1, boot="another")
    await first.close()
    second = await open_runtime(tmp_path)
    assert (await second.get("web")).state == "exited"
    await second.close()


async def test_refusals_have_codes_and_say_why(runtime: ProcessRuntime) -> None:
    web = await made(runtime, "sleeper")
    assert await code_of(runtime.create("web", ContainerSpec(image="sleeper"))) == StatusCode.ALREADY_EXISTS
    assert await code_of(runtime.create("x", ContainerSpec(image="nobody"))) == StatusCode.NOT_FOUND
    other = ContainerSpec(image="sleeper", command=["rm", "-rf", "/"])
    assert await code_of(runtime.create("x", other)) == StatusCode.UNIMPLEMENTED
    assert (
        await code_of(runtime.create("x", ContainerSpec(image="sleeper", network="none"))) == StatusCode.UNIMPLEMENTED
    )
    assert await code_of(runtime.pull("web:1")) == StatusCode.UNIMPLEMENTED
    assert await code_of(runtime.get("gone")) == StatusCode.NOT_FOUND
    assert await code_of(runtime.start("gone")) == StatusCode.NOT_FOUND
    for change in (
        runtime.stop(web.id, 0),
        runtime.kill(web.id, "KILL"),
        runtime.pause(web.id),
        runtime.unpause(web.id),
    ):
        assert await code_of(change) == StatusCode.FAILED_PRECONDITION
    await runtime.start(web.id)
    assert await code_of(runtime.start(web.id)) == StatusCode.FAILED_PRECONDITION
    assert await code_of(runtime.remove(web.id, force=False)) == StatusCode.FAILED_PRECONDITION
    assert await code_of(runtime.kill(web.id, "SIGNONE")) == StatusCode.INVALID_ARGUMENT
    missing = await made(runtime, "missing", "missing")
    assert await code_of(runtime.start(missing.id)) == StatusCode.FAILED_PRECONDITION
    assert (await runtime.get("missing")).state == "created"


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("[process.a]", "needs command"),
        ('[process.a]\ncommand = "sleep 1"', "needs command"),
        ('[process.a]\ncommand = ["x"]\nshell = true', "unknown key 'shell'"),
        ('[process.a]\ncommand = ["x"]\nenv = { A = 1 }', "env must be a table of strings"),
        ('[process.a]\ncommand = ["x"]\nrestart = "often"', "restart must be one of"),
        ('[process."a b"]\ncommand = ["x"]', "letters, digits"),
        ("[service.a]", "unknown table 'service'"),
        ("process = [", "not TOML"),
    ],
)
async def test_a_wrong_file_of_processes_is_refused_by_key(tmp_path: pathlib.Path, declared: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        await open_runtime(tmp_path, declared)


async def test_a_full_disk_makes_no_process_that_is_only_half_there(tmp_path: pathlib.Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        runtime = await open_runtime(disk.folder)
        web = await made(runtime, "sleeper")
        await runtime.start(web.id)
        flapping = await made(runtime, "flapping", "flapping")
        disk.fill()
        assert await code_of(runtime.create("new", ContainerSpec(image="sleeper"))) == StatusCode.RESOURCE_EXHAUSTED
        assert "new" not in {container.name for container in await runtime.containers()}
        assert await code_of(runtime.start(flapping.id)) == StatusCode.RESOURCE_EXHAUSTED
        assert (await runtime.get("flapping")).state == "created"
        assert await code_of(runtime.stop(web.id, 1)) == StatusCode.RESOURCE_EXHAUSTED
        assert alive(pid_of(runtime))
        # Nothing stands in the way of these: they are done, so they are not called failed.
        await runtime.pause(web.id)
        assert (await runtime.get("web")).state == "paused"
        wait_until(lambda: kernel_state(pid_of(runtime)) == "T", "it is stopped")
        await runtime.unpause(web.id)
        assert (await runtime.get("web")).state == "running"
        disk.free()
        await runtime.create("new", ContainerSpec(image="sleeper"))
        for container in await runtime.containers():
            await runtime.remove(container.id, force=True)
        await runtime.close()


async def test_a_process_is_restarted_once_a_full_disk_has_room_again(tmp_path: pathlib.Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        runtime = await open_runtime(disk.folder)
        web = await made(runtime, "always")
        await runtime.start(web.id)
        pid = pid_of(runtime)
        disk.fill()
        since_ns = time.time_ns()
        with listening("web is not restarted") as heard:
            os.kill(pid, signal.SIGKILL)
            await heard.wait()
        assert (await runtime.get("web")).state == "restarting"
        disk.free()
        await until(runtime, "start", since_ns)
        assert pid_of(runtime) not in (0, pid)
        await runtime.remove(web.id, force=True)
        await runtime.close()


async def test_a_process_that_is_not_declared_any_more_is_not_restarted(tmp_path: pathlib.Path) -> None:
    runtime = await open_runtime(tmp_path)
    web = await made(runtime, "always")
    await runtime.start(web.id)
    since_ns, pid = time.time_ns(), pid_of(runtime)
    await runtime.close()
    again = await open_runtime(tmp_path, "")
    os.kill(pid, signal.SIGKILL)
    with listening("add it to the file of processes") as heard:
        await heard.wait()
    await until(again, "die", since_ns)
    assert (await again.get("web")).state == "exited"
    await again.remove(web.id, force=False)
    await again.close()


async def test_a_record_that_a_crash_of_the_host_has_spoilt_does_not_keep_the_agent_from_starting(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = await open_runtime(tmp_path)
    await made(runtime, "failing")
    await runtime.close()
    (tmp_path / "data" / "instances" / "web" / "record.json").write_bytes(b"")
    again = await open_runtime(tmp_path)
    assert "web" not in {container.name for container in await again.containers()}
    assert "is no record" in caplog.text
    await made(again, "failing")
    await again.close()
