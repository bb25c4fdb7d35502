"""Links between callers, server and agent that are slow, stopped and cut: each command is done once, and logs of
containers come whole (I2, I3, I6, I7).

`LADING_FAULT_SEEDS` sets how many seeds there are, `LADING_FAULT_ROUNDS` how many faults each has.
"""

import asyncio
import os
import pathlib
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from lading.v1 import commands_pb2
from lading_client import AsyncClient
from tests.faults import checker
from tests.faults.links import Link
from tests.faults.load import RestartingCallers
from tests.faults.reader import COMPLETED, rows
from tests.process import Process, wait_until
from tests.stack import Stack

SEEDS = range(1, 1 + int(os.environ.get("LADING_FAULT_SEEDS", "1")))
ROUNDS = int(os.environ.get("LADING_FAULT_ROUNDS", "2"))
LINES = 3000

pytestmark = pytest.mark.timeout(180 + 30 * ROUNDS)


class Far(Stack):
    """Its agent reaches the server by way of a link."""

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'server' / 'lading.db'}"

    @property
    def data(self) -> pathlib.Path:
        return self.folder / "dock-1-data"

    def start_far_agent(self, link: str, processes: dict[str, list[str]]) -> Process:
        return self.start_agent("dock-1", "--server", link, processes=processes)


@pytest.fixture
def stack(tmp_path: pathlib.Path) -> Iterator[Far]:
    far = Far(tmp_path / "stack")
    with far:
        yield far


async def fault(link: Link, moments: random.Random) -> str:
    """Something happens to it for a moment, and passes."""
    kind = moments.choice(("slow", "stopped", "cut"))
    if kind == "slow":
        link.delay = moments.uniform(0.02, 0.2)
    elif kind == "stopped":
        link.stop()
    else:
        link.cut()
    await asyncio.sleep(moments.uniform(0.1, 1.5))
    link.delay = 0.0
    link.go()
    return kind


def check_load(stack: Far, callers: RestartingCallers, first: dict[str, int], *, one_clock: bool = True) -> None:
    """Each command that is said to be done was done, once; and what was not said may only be in doubt."""
    found = checker.commands(stack.url).values()
    done = Counter(one.container for one in found if one.state == checker.SUCCEEDED)
    ended = dict(ends(stack.url))
    told = Counter(ended[operation] for operation, code in callers.answers.codes.items() if code == 0)
    for name in callers.names:
        # What the last one does first may come a moment after its end.
        wait_until(lambda name=name: callers.starts(name) - first[name] >= done[name], f"{name} starts")  # type: ignore[misc]
        assert told[f"dock-1/{name}"] <= done[name] == callers.starts(name) - first[name], name
    checker.check_settled(stack.url, {})
    checker.check_journal(stack.url, stack.data, "dock-1", one_clock=one_clock)
    checker.check_whole(stack.url)


def ends(url: str) -> list[tuple[str, str]]:
    return [(one[0], one[1]) for one in rows(url, f"SELECT operation, target FROM events WHERE stage = {COMPLETED}")]


async def settled(stack: Far, seconds: float = 90) -> None:
    unsettled = "SELECT id FROM commands WHERE settled_at IS NULL"
    await asyncio.to_thread(wait_until, lambda: not rows(stack.url, unsettled), "every command is settled", seconds)


@pytest.mark.parametrize("seed", SEEDS)
async def test_commands_are_done_once_across_links_that_are_slow_stopped_and_cut(
    stack: Far, tmp_path: pathlib.Path, seed: int
) -> None:
    moments = random.Random(seed)
    server = await asyncio.to_thread(stack.start_server)
    async with Link(stack.address).open() as above, Link(stack.address).open() as below:
        names = [f"web-{number}" for number in range(4)]
        callers = RestartingCallers(above.address, stack.admin_token, tmp_path, names, stack.url)
        agent = await asyncio.to_thread(stack.start_far_agent, below.address, callers.processes())
        first = {name: callers.starts(name) for name in names}
        async with callers.calling():
            for _ in range(ROUNDS):
                await callers.answered(moments.randint(2, 10))
                await fault(moments.choice((above, below)), moments)
            await callers.answered(4)
        await settled(stack)
        assert agent.terminate() == 0
    assert server.terminate() == 0
    check_load(stack, callers, first)


@pytest.mark.parametrize("seed", SEEDS)
async def test_log_comes_whole_across_links_that_are_cut(stack: Far, seed: int) -> None:
    moments = random.Random(seed)
    await asyncio.to_thread(stack.start_server)
    script = f"for i in $(seq 1 {LINES}); do echo line $i; done; exec sleep 1000"
    async with Link(stack.address).open() as above, Link(stack.address).open() as below:
        await asyncio.to_thread(stack.start_far_agent, below.address, {"web": ["sh", "-c", script]})
        got = bytearray()
        wanted = b"".join(b"line %d\n" % number for number in range(1, LINES + 1))
        async with AsyncClient(above.address, token=stack.admin_token) as lading:
            done = await lading.start("dock-1/web")
            assert done.state == commands_pb2.COMMAND_STATE_SUCCEEDED

            more = asyncio.Event()

            async def follow() -> None:
                above.delay = 0.02  # so that there is something to cut
                async for piece in lading.logs("dock-1/web", follow=True):
                    got.extend(piece.data)
                    more.set()
                    if len(got) >= len(wanted):
                        return

            following = asyncio.create_task(follow())
            for _ in range(ROUNDS):
                more.clear()
                grown = asyncio.create_task(more.wait())
                await asyncio.wait({following, grown}, return_when=asyncio.FIRST_COMPLETED)
                grown.cancel()
                if following.done():
                    break
                link = moments.choice((above, below))
                link.cut()
                await asyncio.sleep(moments.uniform(0, 0.5))
                link.go()
            async with asyncio.timeout(60):
                await following
    assert bytes(got) == wanted
