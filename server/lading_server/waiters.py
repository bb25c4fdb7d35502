"""Callers of this process that wait for the end of a command."""

import asyncio

from lading_server.commands import State
from lading_server.store import commands
from lading_server.store.commands import Row
from lading_server.store.reader import Reader

POLL_SECONDS = 2.0
"""A settled command that another replica recorded is seen after this long at the latest."""
LOOK_MAX = 500


class Waiters:
    """By command."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._waiting: dict[str, set[asyncio.Future[Row]]] = {}

    async def wait(self, organization: str, command: str, seconds: float | None) -> Row:
        """The command once it is settled, or UNKNOWN. Raises TimeoutError after `seconds`."""
        answer: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(command, set()).add(answer)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    row = await self._reader.read(commands.get, organization, command)
                    if row is not None and (row.settled_at is not None or row.state == State.UNKNOWN):
                        return row
                    done, _ = await asyncio.wait((answer,), timeout=POLL_SECONDS)
                    if done:
                        return answer.result()
        finally:
            waiting = self._waiting.get(command, set())
            waiting.discard(answer)
            if not waiting:
                self._waiting.pop(command, None)

    def answer(self, row: Row) -> bool:
        """A command has ended, or is UNKNOWN: whether somebody here waited for that."""
        waiting = self._waiting.pop(row.id, ())
        for answer in waiting:
            if not answer.done():
                answer.set_result(row)
        return bool(waiting)

    async def look(self) -> None:
        """Answer those who wait for commands that another process settled. Raises StoreUnavailable."""
        ids = list(self._waiting)
        for start in range(0, len(ids), LOOK_MAX):
            for row in await self._reader.read(commands.list_settled, ids[start : start + LOOK_MAX]):
                self.answer(row)
