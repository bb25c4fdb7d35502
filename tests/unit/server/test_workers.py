"""Who has which place, whatever dies, is replaced or is to stop meanwhile: the parent, with processes by hand."""

import asyncio
import pathlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lading_server import workers
from lading_server.settings import Settings

TERM = signal.SIGTERM
TURNS = 50
"""Of the event loop: more than anything takes here that waits for nothing."""
sleep = asyncio.sleep


class FakeProcess:
    """Says what it is told to say. A signal ends it, unless it `lingers`."""

    def __init__(self, number: int) -> None:
        self.number, self.lingers = number, False
        self.returncode: int | None = None
        self.stdout, self.stderr = asyncio.StreamReader(), asyncio.StreamReader()
        self.signals: list[int] = []
        self.told: asyncio.Queue[int] = asyncio.Queue()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def serve(self) -> None:
        self.stdout.feed_data(b"127.0.0.1:7443\n")

    def end(self, code: int) -> None:
        self.returncode = code
        self._ended.set_result(code)
        self.stdout.feed_eof()
        self.stderr.feed_eof()

    def receive(self, number: int) -> None:
        if self.returncode is not None:
            return
        self.signals.append(number)
        self.told.put_nowait(number)
        if not self.lingers:
            self.end(0)

    async def wait(self) -> int:
        return await self._ended


class Fleet:
    """All processes of one parent, in the order of their starts, and its pauses and words."""

    def __init__(self) -> None:
        self.started: list[FakeProcess] = []
        self.asked: asyncio.Queue[int] = asyncio.Queue()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self._pauses: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self._fresh: asyncio.Queue[FakeProcess] = asyncio.Queue()
        self._said: asyncio.Queue[str] = asyncio.Queue()

    async def start(self, *words: str, **_: Any) -> FakeProcess:
        """In place of `create_subprocess_exec`."""
        number = int(words[words.index("--worker") + 1])
        self.asked.put_nowait(number)
        await self.may_start.wait()
        process = FakeProcess(number)
        self.started.append(process)
        self._fresh.put_nowait(process)
        return process

    async def pause(self, seconds: float) -> None:
        """In place of `sleep`: until the test ends it."""
        over = asyncio.Event()
        self._pauses.put_nowait(over)
        await over.wait()

    def say(self, sentence: str) -> None:
        self._said.put_nowait(sentence)

    async def process(self, *, serves: bool = False) -> FakeProcess:
        """The next one that is started."""
        async with asyncio.timeout(5):
            process = await self._fresh.get()
        if serves:
            process.serve()
        return process

    async def paused(self) -> asyncio.Event:
        """The next pause, which this event ends."""
        async with asyncio.timeout(5):
            return await self._pauses.get()

    async def says(self, words: str) -> None:
        async with asyncio.timeout(5):
            while words not in await self._said.get():
                pass

    def alive(self) -> list[FakeProcess]:
        return [process for process in self.started if process.returncode is None]


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    fleet = Fleet()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", fleet.start)
    monkeypatch.setattr(asyncio, "sleep", fleet.pause)
    monkeypatch.setattr(workers, "say", fleet.say)
    monkeypatch.setattr(workers, "signal_to", lambda worker, number: worker.process.receive(number))
    return fleet


class Parent:
    """The parent of `count` workers; signals come to it as from outside."""

    def __init__(self, folder: pathlib.Path, count: int) -> None:
        settings = Settings(folder, listen="127.0.0.1:0", database="postgresql://db/lading")
        self.task = asyncio.create_task(workers.Workers(settings, count, []).run(None))

    def hang_up(self) -> None:
        signal.raise_signal(signal.SIGHUP)

    def terminate(self) -> None:
        signal.raise_signal(TERM)

    async def code(self) -> int:
        async with asyncio.timeout(5):
            return await self.task


@pytest.fixture
async def parent(fleet: Fleet, tmp_path: pathlib.Path) -> AsyncIterator[Parent]:
    """Of one worker, which is started and does not serve yet."""
    parent = Parent(tmp_path, 1)
    yield parent
    parent.task.cancel()
    await asyncio.gather(parent.task, return_exceptions=True)


async def told(process: FakeProcess) -> None:
    async with asyncio.timeout(5):
        await process.told.get()


async def turns() -> None:
    """Whatever waits for nothing has been done then."""
    for _ in range(TURNS):
        await sleep(0)


async def test_who_was_replaced_while_it_was_to_be_started_anew_is_not_started_again(
    parent: Parent, fleet: Fleet
) -> None:
    first = await fleet.process(serves=True)
    await fleet.says("workers serve")
    first.end(1)
    pause = await fleet.paused()
    parent.hang_up()
    second = await fleet.process(serves=True)
    await fleet.says("worker 1 is replaced")
    pause.set()
    second.end(2)
    await fleet.says("worker 1 ended with 2; starting it anew")
    (await fleet.paused()).set()
    await fleet.process(serves=True)
    parent.terminate()
    assert await parent.code() == 0
    assert len(fleet.started) == 3
    assert not fleet.alive()


async def test_who_was_started_anew_while_its_replacement_began_is_stopped(parent: Parent, fleet: Fleet) -> None:
    first = await fleet.process(serves=True)
    await fleet.says("workers serve")
    first.end(1)
    pause = await fleet.paused()
    parent.hang_up()
    second = await fleet.process()
    pause.set()
    third = await fleet.process(serves=True)
    second.serve()
    await fleet.says("worker 1 is replaced")
    assert third.signals == [TERM]
    assert fleet.alive() == [second]
    parent.terminate()
    assert await parent.code() == 0
    assert not fleet.alive()


async def test_who_is_being_started_anew_when_its_replacement_serves_is_stopped(parent: Parent, fleet: Fleet) -> None:
    first = await fleet.process(serves=True)
    await fleet.says("workers serve")
    first.end(1)
    pause = await fleet.paused()
    parent.hang_up()
    second = await fleet.process()
    fleet.may_start.clear()
    fleet.asked = asyncio.Queue()
    pause.set()
    await fleet.asked.get()
    second.serve()
    await turns()
    fleet.may_start.set()
    third = await fleet.process()
    await told(third)
    assert fleet.alive() == [second]
    parent.terminate()
    assert await parent.code() == 0
    assert not fleet.alive()


async def test_stop_waits_for_a_replacement_that_does_not_serve_yet(parent: Parent, fleet: Fleet) -> None:
    await fleet.process(serves=True)
    await fleet.says("workers serve")
    parent.hang_up()
    second = await fleet.process()
    second.lingers = True
    parent.terminate()
    await told(second)
    assert fleet.alive() == [second]
    await turns()
    assert not parent.task.done()
    second.end(-TERM)
    assert await parent.code() == 0


async def test_stop_waits_for_who_was_replaced_and_tells_it_once(parent: Parent, fleet: Fleet) -> None:
    first = await fleet.process(serves=True)
    first.lingers = True
    await fleet.says("workers serve")
    parent.hang_up()
    second = await fleet.process(serves=True)
    await told(first)
    parent.terminate()
    await told(second)
    assert fleet.alive() == [first]
    await turns()
    assert not parent.task.done()
    first.end(0)
    assert await parent.code() == 0
    assert (first.signals, second.signals) == ([TERM], [TERM])


async def test_second_stop_reaches_who_was_replaced(parent: Parent, fleet: Fleet) -> None:
    first = await fleet.process(serves=True)
    first.lingers = True
    await fleet.says("workers serve")
    parent.hang_up()
    second = await fleet.process(serves=True)
    await told(first)
    parent.terminate()
    await told(second)
    first.lingers = False
    parent.terminate()
    assert await parent.code() == 0
    assert first.signals == [TERM, TERM]


async def test_stop_waits_for_who_was_replaced_and_is_being_killed(
    parent: Parent, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "STOP_SECONDS_MAX", 0.0)
    first = await fleet.process(serves=True)
    first.lingers = True
    await fleet.says("workers serve")
    parent.hang_up()
    await fleet.process(serves=True)
    await told(first)
    await told(first)
    assert first.signals == [TERM, signal.SIGKILL]
    parent.terminate()
    await told(first)
    first.end(-signal.SIGKILL)
    assert await parent.code() == 128 + signal.SIGKILL


async def test_nothing_is_replaced_before_all_have_begun(fleet: Fleet, tmp_path: pathlib.Path) -> None:
    parent = Parent(tmp_path, 2)
    first = await fleet.process()
    parent.hang_up()
    first.serve()
    await fleet.process(serves=True)
    await fleet.says("2 workers serve")
    parent.terminate()
    assert await parent.code() == 0
    assert [process.number for process in fleet.started] == [1, 2]


async def test_nothing_is_replaced_once_they_are_to_stop(parent: Parent, fleet: Fleet) -> None:
    first = await fleet.process(serves=True)
    first.lingers = True
    await fleet.says("workers serve")
    parent.terminate()
    await told(first)
    parent.hang_up()
    parent.terminate()
    await told(first)
    first.end(0)
    assert await parent.code() == 0
    assert fleet.started == [first]
