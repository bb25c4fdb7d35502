"""Two ledgers on one database: their logs stay dense and in order."""

import asyncio
import subprocess
import sys
from pathlib import Path

from lading_server.settings import Settings
from tests.integration.server.ledgers import book, event
from tests.integration.server.running import read_events

REPLICAS, CALLERS, EACH = 2, 20, 10


async def record_from_many_callers(data: str, url: str) -> None:
    """In both logs at once, and in the second one before the first."""
    async with book(Settings(Path(data), database=url)) as made:

        async def call(number: int) -> None:
            for _ in range(EACH):
                first, second = ("acme", "globex") if number % 2 else ("globex", "acme")
                await made.record(event(first), event(second))

        await asyncio.gather(*(call(number) for number in range(CALLERS)))


def test_indexes_are_dense_and_ordered_over_two_processes(settings_on_postgresql: Settings) -> None:
    program = (
        "import asyncio, sys; from tests.integration.server.test_ledger_replicas import record_from_many_callers; "
        "asyncio.run(record_from_many_callers(*sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, str(settings_on_postgresql.data), settings_on_postgresql.database_url]
    processes = [subprocess.Popen(command) for _ in range(REPLICAS)]
    assert [process.wait(60) for process in processes] == [0] * REPLICAS
    for organization in ("acme", "globex"):
        found = read_events(settings_on_postgresql, organization, action="task.update")
        born = len(read_events(settings_on_postgresql, organization)) - len(found)
        assert [one.index for one in found] == list(range(born, born + REPLICAS * CALLERS * EACH))
        assert [one.recorded_at for one in found] == sorted(one.recorded_at for one in found)
        boots = {one.boot_id for one in found}
        assert len(boots) == REPLICAS
        for boot in boots:
            assert [one.sequence for one in found if one.boot_id == boot] == list(range(1, CALLERS * EACH + 1))
