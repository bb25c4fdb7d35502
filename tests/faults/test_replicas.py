"""Replicas that are paused, killed and restarted: no stale one commands, and no call fails for a restart.

`LADING_FAULT_SECONDS` sets how long a replica is paused, and callers call while replicas restart.
"""

import asyncio
import os
import pathlib
import signal
from collections import Counter
from collections.abc import Iterator
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

SECONDS = float(os.environ.get("LADING_FAULT_SECONDS", "5"))
CALLERS = 50
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
        for _ in range(2):
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


async def test_rolling_restart_under_50_callers_fails_no_call_and_loses_and_doubles_no_command(
    stack: Replicas, tmp_path: pathlib.Path
) -> None:
    parent = await asyncio.to_thread(stack.start_server, "--workers", str(WORKERS))
    names = [f"web-{number}" for number in range(10)]
    starts = RestartingCallers(stack.address, stack.admin_token, tmp_path, names)
    await asyncio.to_thread(stack.start_agent, "dock-1", processes=starts.processes())
    first = {name: starts.starts(name) for name in names}
    answers: Counter[str] = Counter()
    restarts: Counter[str] = Counter()
    failures: list[LadingError] = []
    stop = asyncio.Event()

    async def call(number: int) -> None:
        async with AsyncClient(stack.address, token=stack.admin_token) as lading:
            while not stop.is_set():
                try:
                    if number < len(names):
                        await lading.restart(f"dock-1/{names[number]}", timeout=40)
                        restarts[name := names[number]] += 1
                        # What it does first comes a moment later, and the next restart must not cut it off.
                        await until(partial(started, starts, name, first[name] + restarts[name]), f"{name} starts")
                    elif number % 2:
                        await lading.record("task.update", [f"task:{number}"])
                        answers["record"] += 1
                    else:
                        answers["list"] += len([one async for one in lading.list_containers()]) > 0
                except LadingError as failure:
                    failures.append(failure)

    tasks = [asyncio.create_task(call(number)) for number in range(CALLERS)]
    rounds = max(1, int(SECONDS // 30))
    for done in range(1, rounds + 1):
        os.kill(parent.pid, signal.SIGHUP)
        await until(partial(has_replaced, parent, done * WORKERS), "all are replaced", 120)
    stop.set()
    await asyncio.gather(*tasks)
    assert parent.terminate() == 0
    assert failures == []
    assert min(answers["record"], answers["list"], *(restarts[name] for name in names)) > 0

    # As many commands as were asked for, each done once.
    query = "SELECT container, state FROM commands"
    found = Counter(rows(str(stack.database), query))
    assert found == Counter({(name, commands_pb2.COMMAND_STATE_SUCCEEDED): restarts[name] for name in names})
    assert {name: starts.starts(name) - first[name] for name in names} == restarts
    recorded = [event for event in events(str(stack.database)) if event.action == "task.update"]
    assert len(recorded) == answers["record"]
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
