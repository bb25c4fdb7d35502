"""Replicas that are paused, killed and restarted: no stale one commands, and no call fails for a restart.

`LADING_FAULT_SECONDS` sets how long a replica is paused, and callers call while replicas restart: 50 of them with
LADING_FAULTS=all, else 20.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from lading.v1 import agent_link_pb2, commands_pb2
from lading_client import AsyncClient
from lading_client.errors import LadingError
from tests.faults import journal
from tests.faults.load import RestartingCallers
from tests.faults.reader import COMPLETED, RECEIVED, check_log, events, rows
from tests.faults.replicas import Crossing, Replicas
from tests.process import Process, children, wait_until
from tests.trees import check_trees

SECONDS = float(os.environ.get("LADING_FAULT_SECONDS", "2"))
ROUNDS = max(1, int(SECONDS // 30))
ALL = os.environ.get("LADING_FAULTS") == "all"
CALLERS = 50 if ALL else 20
WORKERS = 3

pytestmark = pytest.mark.timeout(180 + 10 * SECONDS)


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: pathlib.Path, postgres_url: str) -> Iterator[Replicas]:
    processes = Replicas(tmp_path / "stack", postgres_url)
    with processes:
        yield processes


def commands_of(frames: list[bytes]) -> list[str]:
    """Ids of the commands that these frames dispatch."""
    found = [agent_link_pb2.ConnectResponse.FromString(frame) for frame in frames]
    sent = [one.dispatch.envelope for one in found if one.WhichOneof("frame") == "dispatch"]
    return [agent_link_pb2.Envelope.FromString(envelope).command for envelope in sent]


def started(callers: RestartingCallers, name: str, times: int) -> bool:
    """Whether the container has started so often; it must not have more often."""
    found = callers.starts(name)
    assert found <= times, f"{name} started {found} times, {times} were asked for"
    return found == times


def has_replaced(parent: Process, workers: int) -> bool:
    return parent.log.read_text().count(" is replaced") >= workers


async def until(condition: Any, what: str, seconds: float = 30) -> None:
    await asyncio.to_thread(wait_until, condition, what, seconds)


async def test_replica_that_was_paused_with_commands_in_hand_cannot_command(
    stack: Replicas, tmp_path: pathlib.Path
) -> None:
    paused = await asyncio.to_thread(stack.start_replica, "paused")
    other = await asyncio.to_thread(stack.start_replica, "other")
    names = [f"web-{number}" for number in range(8)]
    callers = RestartingCallers(stack.addresses["paused"], stack.admin_token, tmp_path, names)
    url = str(stack.database)
    async with Crossing(stack.addresses["paused"]).open() as crossing:
        await asyncio.to_thread(stack.start_agent_by_way_of, crossing.address, "dock-1", callers.processes())
        before = {name: callers.starts(name) for name in names}
        crossing.hold()
        async with AsyncClient(stack.addresses["paused"], token=stack.admin_token) as lading:
            asked = {(await lading.restart(f"dock-1/{name}", detach=True)).name for name in names}
        await until(lambda: len(commands_of(crossing.held)) == len(names), "the commands are on their way")
        stale = commands_of(crossing.held)
        assert {f"commands/{command}" for command in stale} == asked

        paused.pause()
        crossing.move(stack.addresses["other"])
        settled = f"SELECT count(*) FROM commands WHERE state = {commands_pb2.COMMAND_STATE_SUCCEEDED}"
        await until(lambda: rows(url, settled) == [(len(names),)], "they are done, by way of the other replica")
        await asyncio.sleep(SECONDS)
        paused.resume()
        await crossing.release()
        refused = "SELECT target, error FROM events WHERE action = 'frame.refuse' AND target_type = 'command'"
        await until(lambda: len(rows(url, refused)) >= len(names), "what is stale is refused, and recorded")
        found = rows(url, refused)
        assert Counter(target for target, _ in found) == Counter(stale)
        assert all("of epoch 1 came in epoch 2: refused" in error for _, error in found)

        for name in names:
            await until(partial(started, callers, name, before[name] + 1), f"{name} started once")
        # It serves on, and its callers' commands go to whom has the agent now.
        async with AsyncClient(stack.addresses["paused"], token=stack.admin_token) as lading:
            assert (await lading.restart("dock-1/web-0")).state == commands_pb2.COMMAND_STATE_SUCCEEDED
    await until(partial(started, callers, "web-0", before["web-0"] + 2), "web-0 started once more")
    assert paused.terminate() == 0
    assert other.terminate() == 0
    check_end(stack, journal_of(stack))


async def test_replica_that_is_killed_loses_no_command(stack: Replicas, tmp_path: pathlib.Path) -> None:
    """Its agents go elsewhere, its callers too; what it had begun is settled by what its agents say."""
    parent = await asyncio.to_thread(stack.start_server, "--workers", str(WORKERS))
    names = [f"web-{number}" for number in range(8)]
    callers = RestartingCallers(stack.address, stack.admin_token, tmp_path, names)
    await asyncio.to_thread(stack.start_agent, "dock-1", processes=callers.processes())
    async with callers.calling():
        for _ in range(2 if ALL else 1):
            await callers.answered(20)
            for pid in children(parent.pid)[: WORKERS - 1]:
                os.kill(pid, signal.SIGKILL)
        await callers.answered(20)
    unsettled = "SELECT id FROM commands WHERE settled_at IS NULL"
    await until(lambda: not rows(str(stack.database), unsettled), "every command is settled", 90)
    assert parent.terminate() == 0
    check_end(stack, journal_of(stack))
    done = Counter(
        name
        for (name,) in rows(
            str(stack.database),
            f"SELECT container FROM commands WHERE state = {commands_pb2.COMMAND_STATE_SUCCEEDED}",
        )
    )
    for name in names:
        assert callers.starts(name) <= done[name] + 1, name


async def test_rolling_restart_under_load_fails_no_call_and_loses_and_doubles_no_command(
    stack: Replicas, tmp_path: pathlib.Path
) -> None:
    """Of one server with three processes, by SIGHUP."""
    parent = await asyncio.to_thread(stack.start_server, "--workers", str(WORKERS))
    callers = MixedLoad(stack.address, stack.admin_token, tmp_path)
    await asyncio.to_thread(stack.start_agent, "dock-1", processes=callers.processes())
    async with callers.calling():
        for done in range(1, ROUNDS + 1):
            os.kill(parent.pid, signal.SIGHUP)
            await until(partial(has_replaced, parent, done * WORKERS), "all are replaced", 120)
    assert parent.terminate() == 0
    check_load(stack, callers)


async def test_three_servers_that_restart_one_after_another_fail_no_call_and_lose_and_double_no_command(
    stack: Replicas, tmp_path: pathlib.Path
) -> None:
    """Each on a port of its own; agent and callers know all three."""
    names = ("one", "two", "three")
    first = await asyncio.to_thread(stack.start_replica, names[0])
    others = await asyncio.gather(*(asyncio.to_thread(stack.start_replica, name) for name in names[1:]))
    servers = dict(zip(names, (first, *others), strict=True))
    everywhere = ",".join(stack.addresses.values())
    callers = MixedLoad(everywhere, stack.admin_token, tmp_path)
    await asyncio.to_thread(stack.start_agent_by_way_of, everywhere, "dock-1", callers.processes())
    async with callers.calling():
        for _ in range(ROUNDS):
            for name in names:
                assert await asyncio.to_thread(servers[name].terminate) == 0
                servers[name] = await asyncio.to_thread(stack.start_replica, name)
    ends = (asyncio.to_thread(server.terminate) for server in servers.values())
    assert await asyncio.gather(*ends) == [0, 0, 0]
    check_load(stack, callers)


class MixedLoad(RestartingCallers):
    """Callers of the client library that note every failure: some restart a container each, others record and list."""

    def __init__(self, address: str, token: str, folder: pathlib.Path) -> None:
        super().__init__(address, token, folder, [f"web-{number}" for number in range(10)])
        self.where = address
        self.token = token
        self.recorded = 0
        self.listed = 0
        self.restarts: Counter[str] = Counter()
        self.failures: list[LadingError] = []

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call until this is left; then what was asked is answered too."""
        self.first = {name: self.starts(name) for name in self.names}
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._repeat_until(stop, number)) for number in range(CALLERS)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _repeat_until(self, stop: asyncio.Event, number: int) -> None:
        async with AsyncClient(self.where, token=self.token) as lading:
            while not stop.is_set():
                try:
                    await self._call(lading, number)
                except LadingError as failure:
                    self.failures.append(failure)

    async def _call(self, lading: AsyncClient, number: int) -> None:
        if number < len(self.names):
            name = self.names[number]
            await lading.restart(f"dock-1/{name}", timeout=40)
            self.restarts[name] += 1
            # What it does first comes a moment later, and the next restart must not cut it off.
            await until(partial(started, self, name, self.first[name] + self.restarts[name]), f"{name} starts")
        elif number % 2:
            await lading.record("task.update", [f"task:{number}"])
            self.recorded += 1
        else:
            self.listed += len([one async for one in lading.list_containers()]) > 0


def check_load(stack: Replicas, callers: MixedLoad) -> None:
    """No call failed; as many commands as were asked for, each done once. The servers must have ended."""
    assert callers.failures == []
    assert min(callers.recorded, callers.listed, *(callers.restarts[name] for name in callers.names)) > 0
    found = Counter(rows(str(stack.database), "SELECT container, state FROM commands"))
    succeeded = commands_pb2.COMMAND_STATE_SUCCEEDED
    assert found == Counter({(name, succeeded): callers.restarts[name] for name in callers.names})
    assert {name: callers.starts(name) - callers.first[name] for name in callers.names} == callers.restarts
    recorded = [event for event in events(str(stack.database)) if event.action == "task.update"]
    assert len(recorded) == callers.recorded
    check_end(stack, journal_of(stack))


def journal_of(stack: Replicas) -> pathlib.Path:
    return stack.folder / "dock-1-data"


def check_end(stack: Replicas, data: pathlib.Path) -> None:
    """What holds whatever happened: whole logs, one end for each command, nothing refused of an honest log."""
    url = str(stack.database)
    found = check_log(url)
    check_trees(url)
    commands = {command for (command,) in rows(url, "SELECT id FROM commands WHERE settled_at IS NOT NULL")}
    assert {event.operation for event in found if event.stage == RECEIVED} == commands
    ends = Counter(event.operation for event in found if event.stage == COMPLETED and event.operation in commands)
    assert ends == Counter(dict.fromkeys(commands, 1))
    assert journal.refusals(data) == []
