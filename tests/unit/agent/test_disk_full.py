"""A journal on a disk that is full: nothing new is begun, and what was begun ends and is told."""

import pathlib
from collections.abc import AsyncIterator

import pytest

from lading_agent import reports
from lading_agent.disk import RESERVE_FILE
from tests.unit.agent.honest_log import command
from tests.unit.agent.log_lines import listening
from tests.unit.agent.small_disk import SmallDisk, small_disk
from tests.unit.agent.test_worker import Bench, outcome


@pytest.fixture
async def disk_and_bench(tmp_path: pathlib.Path) -> AsyncIterator[tuple[SmallDisk, Bench]]:
    with small_disk(tmp_path / "disk") as disk:
        bench = Bench(disk.folder / "data")
        await bench.open()
        yield disk, bench
        await bench.close()


def spend(disk: SmallDisk) -> None:
    """As when what was in hand has needed it all."""
    (disk.folder / "data" / RESERVE_FILE).unlink(missing_ok=True)
    disk.fill()


async def test_a_new_command_is_rejected_with_what_to_do(disk_and_bench: tuple[SmallDisk, Bench]) -> None:
    disk, bench = disk_and_bench
    spend(disk)
    await bench.dispatch(command("start"))
    result = await bench.result()
    assert outcome(result) == ("REJECTED", "RESOURCE_EXHAUSTED")
    assert "the journal's disk is full" in result.error
    assert "free some space" in result.error
    assert "nothing was done" in result.error
    assert bench.runtime.calls == []
    disk.free()
    await bench.dispatch(command("start"))
    assert outcome(await bench.result()) == ("SUCCEEDED", "OK")


async def test_what_was_begun_before_ends_by_the_reserve(disk_and_bench: tuple[SmallDisk, Bench]) -> None:
    disk, bench = disk_and_bench
    running, queued = command("start"), command("stop")
    gate = bench.runtime.gate("start web")
    await bench.dispatch(running)
    await bench.dispatch(queued)
    await bench.runtime.reached["start web"].wait()
    disk.fill()
    gate.set()
    assert outcome(await bench.result(running.command)) == ("SUCCEEDED", "OK")
    assert outcome(await bench.result(queued.command)) == ("SUCCEEDED", "OK")
    held = {each.command: each.HasField("result") for each in await bench.journal.held()}
    assert held == {running.command: True, queued.command: True}


async def test_a_duplicate_is_answered_though_the_disk_is_full(disk_and_bench: tuple[SmallDisk, Bench]) -> None:
    disk, bench = disk_and_bench
    done, running = command("start"), command("stop")
    await bench.dispatch(done)
    first = await bench.result()
    gate = bench.runtime.gate("stop web")
    await bench.dispatch(running)
    await bench.runtime.reached["stop web"].wait()
    disk.fill()
    await bench.dispatch(done)
    assert (await bench.result()).signature == first.signature
    await bench.dispatch(running)
    gate.set()
    assert outcome(await bench.result()) == ("SUCCEEDED", "OK"), "what runs is never called REJECTED"


async def test_an_end_that_cannot_be_journalled_is_told_when_it_can(
    disk_and_bench: tuple[SmallDisk, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bench = disk_and_bench
    monkeypatch.setattr(reports, "KEEP_AGAIN_AFTER", 0.01)
    gate = bench.runtime.gate("start web")
    running = command("start")
    await bench.dispatch(running)
    await bench.runtime.reached["start web"].wait()
    connection = bench.journal._disk.connection
    assert connection is not None
    connection.execute("PRAGMA query_only = ON")
    with listening("not said before it is journalled") as heard:
        gate.set()
        await heard.wait()
    assert [frame.WhichOneof("frame") for frame in bench.sent._queue] == ["acknowledge"]  # type: ignore[attr-defined]
    connection.execute("PRAGMA query_only = OFF")
    assert outcome(await bench.result()) == ("SUCCEEDED", "OK")


async def test_an_end_that_was_lost_with_the_agent_is_settled_by_evidence(
    disk_and_bench: tuple[SmallDisk, Bench],
) -> None:
    _, bench = disk_and_bench
    gate = bench.runtime.gate("start web")
    running = command("start")
    await bench.dispatch(running)
    await bench.runtime.reached["start web"].wait()
    connection = bench.journal._disk.connection
    assert connection is not None
    connection.execute("PRAGMA query_only = ON")
    with listening("not said before it is journalled") as heard:
        gate.set()
        await heard.wait()
    await bench.crash()
    await bench.worker.recover()
    result = await bench.result(running.command)
    assert outcome(result) == ("SUCCEEDED", "OK")
    assert result.evidence.startswith("StartedAt is now")
    assert bench.runtime.calls == ["start web"]


async def test_an_agent_comes_back_on_a_full_disk(disk_and_bench: tuple[SmallDisk, Bench]) -> None:
    disk, bench = disk_and_bench
    gate = bench.runtime.gate("start web")
    running = command("start")
    await bench.dispatch(running)
    await bench.runtime.reached["start web"].wait()
    disk.fill()
    await bench.crash()
    gate.set()
    await bench.worker.recover()
    assert outcome(await bench.result(running.command))[0] == "FAILED"
    await bench.journal.raise_epoch(7)
    disk.fill()
    await bench.dispatch(command("start"))
    assert outcome(await bench.result()) == ("REJECTED", "RESOURCE_EXHAUSTED")
