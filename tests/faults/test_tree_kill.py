"""kill -9 again and again: each time the logs are whole trees, and nothing was executed without its entry (P2, P7).

`LADING_FAULT_ROUNDS` sets how many kills there are on each kind of database.
"""

import asyncio
import base64
import hashlib
import os
import pathlib
import random
from collections import Counter

import pytest

from lading.transparency.entry import check_details, parse_entry
from lading.transparency.jcs import parse
from lading.v1 import access_pb2
from tests.faults import journal
from tests.faults.load import CommandingCallers, MixedCallers
from tests.faults.reader import RECEIVED, check_log, rows
from tests.process import wait_until
from tests.stack import Stack
from tests.trees import check_trees

ROUNDS = int(os.environ.get("LADING_FAULT_ROUNDS", "2"))
ALL = os.environ.get("LADING_FAULTS") == "all"
ROLES = (access_pb2.ROLE_OPERATOR, access_pb2.ROLE_RECORDER)
CLEAN = 0

pytestmark = pytest.mark.timeout(120 + 60 * ROUNDS)


def check_executed(url: str, data: pathlib.Path, callers: CommandingCallers) -> int:
    """Assert that all that the agent took, and all that really started, is in the log as exactly that command.

    The server must not run; the agent may. Returns how many commands the agent began.
    """
    # First what the processes themselves say, then the journal, then the log: each may only be behind the next.
    starts = {name: callers.starts(name) for name in callers.names}
    taken = journal.taken(data)
    query = f"SELECT operation, entry, details, salt FROM events WHERE organization = 'acme' AND stage = {RECEIVED}"
    intents = {operation: rest for operation, *rest in rows(url, query)}
    for command in taken.values():
        assert command.id in intents, f"the agent took {command.id}, which is not in the log"
        raw, text, salt = intents[command.id]
        entry, details = parse_entry(bytes(raw)), parse(text.encode())
        check_details(entry, bytes(salt), details)
        assert details["envelope"] == base64.b64encode(hashlib.sha256(command.envelope).digest()).decode()
        assert command.executing_at is None or command.executing_at >= entry["recorded_at"]
    begun = Counter(command.starts for command in taken.values())
    for name in callers.names:
        assert starts[name] <= begun[name], f"{name} was started more often than by commands"
    assert journal.refusals(data) == [], "an honest server was refused"
    return sum(command.executing_at is not None for command in taken.values())


@pytest.mark.parametrize("seed", [5])
async def test_server_killed_at_any_moment_leaves_whole_trees_and_nothing_executed_without_its_entry(
    stack: Stack, database_url: str, tmp_path: pathlib.Path, seed: int
) -> None:
    moments = random.Random(seed)
    rounds = ROUNDS if ALL or database_url.startswith("sqlite") else 1
    server = stack.start_server()
    mixed = MixedCallers(stack.address, stack.issue_token("ci-bot", roles=ROLES), seed, count=8)
    traces = tmp_path / "traces"
    traces.mkdir()
    names = [f"web-{number}" for number in range(8)]
    commanding = CommandingCallers(stack.address, stack.admin_token, traces, names, seed)
    agent = stack.start_agent("dock-1", processes=commanding.processes())
    data = stack.folder / "dock-1-data"
    sizes, begun = [], []

    async def verify(*options: str) -> None:
        done = await asyncio.to_thread(stack.lading, "audit", "verify", *options, timeout=120)
        assert done.returncode == CLEAN, f"{done.stdout}{done.stderr}"

    async with mixed.calling(), commanding.calling():
        for _ in range(rounds):
            await commanding.answered(moments.randint(5, 40))
            await mixed.answered(moments.randint(1, 200))
            # The moment is any one, not always that after an answer.
            await asyncio.sleep(moments.uniform(0, 0.1))
            server.kill()
            begun.append(await asyncio.to_thread(check_executed, database_url, data, commanding))
            sizes.append((await asyncio.to_thread(check_trees, database_url))["acme"].size)
            server = await asyncio.to_thread(stack.start_server)
            if moments.random() < 0.5:
                agent.kill()
                agent = await asyncio.to_thread(stack.start_agent, "dock-1", processes=commanding.processes())
            await verify()
        await commanding.answered(20)
        await verify("--witnesses", "1")
    unsettled = "SELECT id FROM commands WHERE settled_at IS NULL"
    await asyncio.to_thread(wait_until, lambda: not rows(database_url, unsettled), "every command is settled", 60)
    assert server.terminate() == 0
    check_log(database_url)
    sizes.append(check_trees(database_url)["acme"].size)
    begun.append(check_executed(database_url, data, commanding))
    assert sorted(set(sizes)) == sizes, "the log only grows"
    print(f"{rounds} kills; the log's sizes {sizes}; commands begun {begun}")
