"""Whoever is stopped (SIGSTOP), killed (SIGKILL), put forward or back in time, or out of disk: what is said of each
command is true, and it took effect at most once (I1 to I5, I7). PostgreSQL: see test_kill.py and test_database.py;
replicas: test_replicas.py.

`LADING_FAULT_ROUNDS` sets how many faults each test has; `LADING_FAULTS=all` adds jumps of the clock, and a kill of the
engine.
"""

import asyncio
import os
import pathlib
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from lading.v1 import commands_pb2
from lading_client import AsyncClient
from lading_client.errors import LadingError
from tests.engine import engine_daemon
from tests.faults import checker
from tests.faults.checker import UNKNOWN
from tests.faults.load import RestartingCallers
from tests.faults.reader import rows
from tests.faults.registry import registry
from tests.faults.test_links import Far, check_load, settled
from tests.faults.test_matrix import ALL, REPOSITORY, resolve
from tests.faults.verbs import VERBS, Asked, Scene
from tests.process import Process, wait_until
from tests.unit.agent.small_disk import small_disk

ROUNDS = int(os.environ.get("LADING_FAULT_ROUNDS", "2"))
HOUR = 3600
NAMES = [f"web-{number}" for number in range(4)]
JUMPS = [("server", HOUR), ("dock-1", -HOUR), ("server", -HOUR), ("dock-1", HOUR)]

pytestmark = pytest.mark.timeout(180 + 30 * ROUNDS)


class Timed(Far):
    """Its server's and its agent's clocks are set by files."""

    def set_clock(self, name: str, seconds: float) -> None:
        path = self.folder / f"{name}.offset"
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.write(f"{seconds:<+30.3f}".encode())

    def _start(self, name: str, *arguments: str) -> Process:
        self.set_clock(name, 0)
        offset = str(self.folder / f"{name}.offset")
        command = [sys.executable, "-m", "tests.faults.shifting", offset, *arguments]
        environment = self._environment({"PYTHONPATH": str(REPOSITORY)})
        process = Process(name, command, self.folder / f"{name}.log", environment)
        self.processes.append(process)
        return process


@pytest.fixture
def stack(tmp_path: pathlib.Path) -> Iterator[Timed]:
    timed = Timed(tmp_path / "stack")
    with timed:
        yield timed


@pytest.mark.parametrize("who", ["server", "dock-1"])
async def test_commands_are_done_once_though_one_is_stopped_for_a_while(
    stack: Timed, tmp_path: pathlib.Path, who: str
) -> None:
    moments = random.Random(6)
    processes = {"server": await asyncio.to_thread(stack.start_server)}
    callers = RestartingCallers(stack.address, stack.admin_token, tmp_path, NAMES, stack.url)
    processes["dock-1"] = await asyncio.to_thread(stack.start_agent, "dock-1", processes=callers.processes())
    first = {name: callers.starts(name) for name in NAMES}
    async with callers.calling():
        for _ in range(ROUNDS):
            await callers.answered(moments.randint(2, 10))
            processes[who].pause()
            await asyncio.sleep(moments.uniform(0.2, 2))
            processes[who].resume()
        await callers.answered(4)
    await settled(stack)
    assert processes["dock-1"].terminate() == 0
    assert processes["server"].terminate() == 0
    check_load(stack, callers, first)


@pytest.mark.parametrize(("who", "seconds"), JUMPS if ALL else JUMPS[:2])
async def test_commands_are_done_once_though_a_clock_jumps(
    stack: Timed, tmp_path: pathlib.Path, who: str, seconds: int
) -> None:
    server = await asyncio.to_thread(stack.start_server)
    callers = RestartingCallers(stack.address, stack.admin_token, tmp_path, NAMES, stack.url)
    agent = await asyncio.to_thread(stack.start_agent, "dock-1", processes=callers.processes())
    first = {name: callers.starts(name) for name in NAMES}
    async with callers.calling():
        await callers.answered(4)
        stack.set_clock(who, seconds)
        await callers.answered(8)
        stack.set_clock(who, 0)
        await callers.answered(8)
    await settled(stack)
    assert agent.terminate() == 0
    assert server.terminate() == 0
    check_load(stack, callers, first, one_clock=False)


async def test_full_disk_of_the_journal_is_said_and_nothing_is_done(stack: Timed, tmp_path: pathlib.Path) -> None:
    await asyncio.to_thread(stack.start_server)
    callers = RestartingCallers(stack.address, stack.admin_token, tmp_path, NAMES[:1])
    with small_disk(tmp_path / "disk") as disk:
        data = ("--data", str(disk.folder / "data"))
        agent = await asyncio.to_thread(stack.start_agent, "dock-1", *data, processes=callers.processes())
        first = callers.starts("web-0")
        async with AsyncClient(stack.address, token=stack.admin_token) as lading:
            (disk.folder / "data" / "journal.reserve").unlink()
            disk.fill()
            with pytest.raises(LadingError, match="the journal's disk is full"):
                await lading.restart("dock-1/web-0")
            assert callers.starts("web-0") == first
            disk.free()
            assert (await lading.restart("dock-1/web-0")).state == commands_pb2.COMMAND_STATE_SUCCEEDED
        await asyncio.to_thread(wait_until, lambda: callers.starts("web-0") == first + 1, "it starts")
        assert agent.terminate() == 0


@pytest.mark.engine
@pytest.mark.parametrize("how", ["stopped", "killed"] if ALL else ["stopped"])
async def test_what_is_said_of_each_verb_is_true_though_the_engine_is(stack: Timed, how: str) -> None:
    """All verbs are asked for at once, and the engine is gone, or deaf, at any moment of it."""
    moments = random.Random(7)
    with registry() as images, engine_daemon() as engine:
        scene = Scene(engine, images)
        await asyncio.to_thread(scene.prepare)
        server = await asyncio.to_thread(stack.start_server)
        agent = await asyncio.to_thread(stack.start_agent, "dock-1", docker_host=engine.url)
        async with grpc.aio.insecure_channel(stack.address) as channel:
            asked = [Asked(verb) for verb in VERBS]
            ask = [asyncio.create_task(scene.ask(channel, stack.credentials(), "dock-1", one)) for one in asked]
            await asyncio.sleep(moments.uniform(0.05, 0.3))
            seen = await asyncio.to_thread(scene.effects) if how == "killed" else {}
            os.kill(engine.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            if how == "killed":
                await asyncio.to_thread(engine.wait)
                await asyncio.to_thread(engine.start)
                up = time.time_ns() // 1000
            else:
                await asyncio.sleep(moments.uniform(0.5, 2))
                os.kill(engine.pid, signal.SIGCONT)
            await asyncio.gather(*ask)
            open_ = f"SELECT id FROM commands WHERE settled_at IS NULL AND state != {UNKNOWN}"
            await asyncio.to_thread(wait_until, lambda: not rows(stack.url, open_), "all have ended or are UNKNOWN", 90)
            effects = await asyncio.to_thread(scene.effects)
            if how == "killed":
                # The engine's memory of events died with it: what it says counts for at most once.
                of_commands = {verb: [at for at in effects[verb] if at >= up] for verb in OWN}
                check_twice(asked, seen, {**effects, **of_commands})
                stood = {one.verb: checker.commands(stack.url)[one.command.removeprefix("commands/")] for one in asked}
            else:
                stood = checker.check_effects(stack.url, asked, effects)
            await resolve(channel, stack.credentials(), stood, effects)
        assert agent.terminate() == 0
        assert server.terminate() == 0
        await asyncio.to_thread(scene.clear)
    checker.check_settled(stack.url, stood)
    checker.check_journal(stack.url, stack.data, "dock-1")
    checker.check_whole(stack.url)


# What dockerd itself does, before it serves, to containers that survived it.
OWN = ("stop", "kill")


def check_twice(asked: list[Asked], before: dict[str, Any], after: dict[str, Any]) -> None:
    for one in asked:
        assert len(before[one.verb]) + len(after[one.verb]) <= 1, f"I2: {one.verb} took effect twice"
