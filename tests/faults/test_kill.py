"""kill -9 under load: what was answered is in the log (P1, P5), and what was executed has its intent there (P2, P4)."""

import asyncio
import os
import pathlib
import random
from collections import Counter

import pytest

from lading.v1 import access_pb2, commands_pb2
from tests.faults.load import Answers, MixedCallers, RestartingCallers
from tests.faults.reader import COMPLETED, RECEIVED, check_log, rows
from tests.postgres import Cluster
from tests.process import wait_until
from tests.stack import Stack

ALL = os.environ.get("LADING_FAULTS") == "all"
ROUNDS = 3 if ALL else 2
ROLES = (access_pb2.ROLE_OPERATOR, access_pb2.ROLE_RECORDER)

pytestmark = pytest.mark.timeout(300)


def check_answers(url: str, answers: Answers) -> None:
    """Every call that was answered has its one event, with the code that its caller saw."""
    found = check_log(url)
    ended = {event.operation: event.code for event in found if event.stage == COMPLETED}
    assert {operation: ended.get(operation) for operation in answers.codes} == answers.codes
    ids = {event.id for event in found}
    for operation, event in answers.recorded.items():
        assert (event in ids) == (ended.get(operation) == 0), "a change and its record must be there both, or neither"


@pytest.mark.parametrize("seed", [1, 2] if ALL else [1])
async def test_server_killed_under_64_callers_has_an_event_for_every_answer(
    stack: Stack, database_url: str, seed: int
) -> None:
    moments = random.Random(seed)
    server = stack.start_server()
    callers = MixedCallers(stack.address, stack.issue_token("ci-bot", roles=ROLES), seed)
    async with callers.calling():
        for _ in range(ROUNDS):
            await callers.answered(moments.randint(100, 1000))
            server.kill()
            server = await asyncio.to_thread(stack.start_server)
        await callers.answered(100)
    assert server.terminate() == 0
    check_answers(database_url, callers.answers)
    assert set(callers.answers.codes.values()) == {0, 3, 5}  # OK, INVALID_ARGUMENT, NOT_FOUND


@pytest.mark.parametrize("seed", [3])
async def test_postgresql_killed_under_64_callers_has_an_event_for_every_answer(
    own_postgres: Cluster, tmp_path: pathlib.Path, seed: int
) -> None:
    moments = random.Random(seed)
    url = own_postgres.fresh_database()
    with Stack(tmp_path / "stack", url) as stack:
        server = stack.start_server()
        callers = MixedCallers(stack.address, stack.issue_token("ci-bot", roles=ROLES), seed)
        async with callers.calling():
            for _ in range(ROUNDS):
                await callers.answered(moments.randint(100, 1000))
                own_postgres.kill()
                await asyncio.to_thread(own_postgres.start)
            await callers.answered(100)
        assert server.terminate() == 0
        check_answers(url, callers.answers)


@pytest.mark.parametrize("seed", [4])
async def test_server_killed_under_commands_executes_each_one_once_and_settles_it(
    stack: Stack, database_url: str, tmp_path: pathlib.Path, seed: int
) -> None:
    moments = random.Random(seed)
    server = stack.start_server()
    names = [f"web-{number}" for number in range(8)]
    callers = RestartingCallers(stack.address, stack.admin_token, tmp_path, names)
    stack.start_agent("dock-1", processes=callers.processes())
    async with callers.calling():
        for _ in range(2 if ALL else 1):
            await callers.answered(moments.randint(5, 40))
            server.kill()
            server = await asyncio.to_thread(stack.start_server)
        await callers.answered(20)
    unsettled = "SELECT id FROM commands WHERE settled_at IS NULL"
    await asyncio.to_thread(wait_until, lambda: not rows(database_url, unsettled), "every command is settled", 60)
    assert server.terminate() == 0

    found = check_log(database_url)
    ended = {event.operation: event for event in found if event.stage == COMPLETED}
    answered = Counter(ended[operation].target for operation, code in callers.answers.codes.items() if code == 0)
    commands = dict(rows(database_url, "SELECT id, state FROM commands"))
    assert {event.operation for event in found if event.stage == RECEIVED} == set(commands)
    assert {
        ended[command].code == 0 for command in commands if commands[command] == commands_pb2.COMMAND_STATE_SUCCEEDED
    } == {True}
    succeeded = Counter(
        name
        for name, state in rows(database_url, "SELECT container, state FROM commands")
        if state == commands_pb2.COMMAND_STATE_SUCCEEDED
    )
    for name in names:
        assert answered[f"dock-1/{name}"] <= callers.starts(name) <= succeeded[name], name
