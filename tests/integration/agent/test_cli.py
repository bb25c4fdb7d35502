"""The agent as a process of its own, with real processes to drive."""

import asyncio
import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lading.v1.commands_pb2 import COMMAND_STATE_SUCCEEDED
from tests.integration.agent.control_plane import ControlPlane, control_plane, make_token
from tests.process import wait_until
from tests.unit.agent.honest_log import AGENT, command

PROCESSES = """
[process.web]
command = ["sleep", "1000"]
autocreate = true

[process.stubborn]
command = ["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.05; done"]
autocreate = true
"""


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with control_plane() as plane:
        yield plane


async def start_agent(
    *arguments: str, token: str = "", verb: str = "run", stdout: int | None = None
) -> asyncio.subprocess.Process:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LADING_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lading_agent", verb, *arguments),
        env={**environment, "LADING_TOKEN": token} if token else environment,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def agent(plane: ControlPlane, folder: pathlib.Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Killed when the block ends, and so are the processes that it started."""
    (folder / "processes.toml").write_text(PROCESSES)
    (folder / "token").write_text(make_token())
    process = await start_agent(
        *("--server", plane.address, "--token-file", str(folder / "token"), "--data", str(folder / "data")),
        *("--runtime", "process", "--processes", str(folder / "processes.toml"), "--label", "env=test"),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_signal_ends_the_agent_with_0_and_leaves_its_processes(
    plane: ControlPlane, tmp_path: pathlib.Path
) -> None:
    async with agent(plane, tmp_path) as process:
        link = await plane.link()
        assert link.hello.runtime == "process"
        assert dict(link.hello.labels) == {"env": "test"}
        await link.welcome(epoch=3)
        await link.dispatch(command("start"))
        assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED
        process.send_signal(signal.SIGTERM)
        await link.next("goodbye")
        await link.end()
        assert await process.wait() == 0
        assert process.stderr is not None
        lines = (await process.stderr.read()).decode().splitlines()
    assert any(f"connected to {plane.address}, epoch 3" in line for line in lines)
    assert any("start web: done in" in line for line in lines)
    assert all(line[:2] == "20" for line in lines), "one line an event, nothing else"
    async with agent(plane, tmp_path) as process:
        link = await plane.link()
        await link.welcome(epoch=4)
        states = {each.name: each.state for each in (await link.next("inventory")).inventory.containers}
        assert states["web"] == "running"
        await link.dispatch(command("stop"))
        assert (await link.next("result")).result.state == COMMAND_STATE_SUCCEEDED


async def test_a_command_that_kill_9_interrupted_is_settled_by_evidence(
    plane: ControlPlane, tmp_path: pathlib.Path
) -> None:
    stop = command("stop", "stubborn")
    stop.arguments.grace.FromSeconds(600)
    instance = tmp_path / "data/processes/instances/stubborn"
    async with agent(plane, tmp_path) as process:
        link = await plane.link()
        await link.welcome(epoch=1)
        await link.dispatch(command("start", "stubborn"))
        await link.next("result")
        await asyncio.to_thread(wait_until, lambda: "ready" in (instance / "log").read_text(), "it ignores SIGTERM")
        await link.dispatch(stop)
        await link.next("acknowledge")
        kill = command("kill", "web")
        # Its container waits for nobody: its answer tells that the stop is under way, too.
        await link.dispatch(kill)
        await link.next("result")
        process.kill()
        await process.wait()
    record = (instance / "record.json").read_text()
    assert '"state": "running"' in record
    pid = int(record.partition('"pid": ')[2].partition(",")[0])
    os.killpg(pid, signal.SIGKILL)
    async with agent(plane, tmp_path):
        again = await plane.link()
        assert stop.command in {held.command for held in again.hello.held}
        await again.welcome(epoch=2)
        held = next(held for held in again.hello.held if held.command == stop.command)
        result = held.result if held.HasField("result") else None
        while result is None or result.command != stop.command:
            result = (await again.next("result")).result
        assert result.state == COMMAND_STATE_SUCCEEDED
        assert "FinishedAt" in result.evidence


@pytest.mark.parametrize(
    ("arguments", "token", "words"),
    [
        (("--server", "10.0.0.1:7443"), make_token(), "give --ca FILE"),
        (("--server", "nowhere"), make_token(), "HOST:PORT"),
        ((), "", "lading token create"),
        (("--name", "another"), make_token(), f"for the agent '{AGENT}'"),
        (("--docker-host", "docker.sock"), make_token(), "unix:///path/to/socket"),
        (("--runtime", "process", "--processes", "gone.toml"), make_token(), "gone.toml"),
    ],
)
async def test_a_wrong_setting_is_said_in_one_line_with_what_to_do(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], token: str, words: str
) -> None:
    process = await start_agent("--data", str(tmp_path / "data"), *arguments, token=token)
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert words in errors.decode()
    assert len(errors.splitlines()) == 1


async def test_two_agents_on_one_folder_are_refused(plane: ControlPlane, tmp_path: pathlib.Path) -> None:
    async with agent(plane, tmp_path):
        await plane.link()
        async with agent(plane, tmp_path) as second:
            assert await second.wait() == 2
            assert second.stderr is not None
            assert b"another agent runs on" in await second.stderr.read()


async def test_forget_log_says_what_the_agent_knew_and_only_while_it_is_stopped(
    plane: ControlPlane, tmp_path: pathlib.Path
) -> None:
    async def forget() -> tuple[int | None, str, str]:
        process = await start_agent("--data", str(tmp_path / "data"), verb="forget-log", stdout=asyncio.subprocess.PIPE)
        out, errors = await process.communicate()
        return process.returncode, out.decode(), errors.decode()

    async with agent(plane, tmp_path):
        link = await plane.link()
        await link.welcome(epoch=1)
        # Refused by the runtime, so that nothing is left running; the log was seen all the same.
        await link.dispatch(command("stop"))
        await link.next("result")
        code, _, errors = await forget()
        assert code == 2
        assert "another agent runs on" in errors
    assert await forget() == (0, f"{plane.log.key}\n\n{plane.log.checkpoint(1)}\n", "")
    assert await forget() == (0, "the agent has seen no log yet\n", "")
