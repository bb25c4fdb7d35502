"""Two ledgers on one database: their logs stay dense and in order."""

import asyncio
import subprocess
import sys

import pytest

from lading_server.settings import Settings
from tests.integration.server.ledgers import book, event
from tests.integration.server.running import read_events

CALLERS, EACH = 20, 10


async def record_from_many_callers(url: str) -> None:
    """In both logs at once, and in the second one before the first."""
    from pathlib import Path

    async with book(Settings(Path("unused"), database=url)) as made:

        async def call(number: int) -> None:
            for _ in range(EACH):
                first, second = ("acme", "globex") if number % 2 else ("globex", "acme")
                await made.record(event(first), event(second))

        await asyncio.gather(*(call(number) for number in range(CALLERS)))


@pytest.mark.parametrize("replicas", [2])
async def test_indexes_are_dense_and_ordered_over_two_processes(settings_on_postgresql: Settings, replicas: int) -> None:
    program = (
        "import asyncio, sys; from tests.integration.server.test_ledger_replicas import record_from_many_callers; "
        "asyncio.run(record_from_many_callers(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, settings_on_postgresql.database_url]
    processes = [subprocess.Popen(command) for _ in range(replicas)]
    codes = await asyncio.gather(*(asyncio.to_thread(process.wait, 60) for process in processes))
    assert codes == [0] * replicas
    for organization in ("acme", "globex"):
        found = read_events(settings_on_postgresql, organization, action="task.update")
        born = len(read_events(settings_on_postgresql, organization)) - len(found)
        assert [one.index for one in found] == list(range(born, born + replicas * CALLERS * EACH))
        assert [one.recorded_at for one in found] == sorted(one.recorded_at for one in found)
    both = [
        one
        for organization in ("acme", "globex")
        for one in read_events(settings_on_postgresql, organization, action="task.update")
    ]
    boots = {one.boot_id for one in both}
    assert len(boots) == replicas
    for boot in boots:
        sequences = sorted(one.sequence for one in both if one.boot_id == boot)
        assert sequences == list(range(1, 2 * CALLERS * EACH + 1))
