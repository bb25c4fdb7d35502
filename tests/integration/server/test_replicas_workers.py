"""`lading server run --workers N`: one address, several processes, and a parent that looks after them."""

import asyncio
import os
import pathlib
import re
import signal
import socket
import sys

import grpc
import pytest

from lading.v1 import access_pb2, access_pb2_grpc
from lading_server import workers
from tests.faults.reader import rows
from tests.process import Process, children, kill_those_with, state, wait_until
from tests.stack import Stack

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def shared(tmp_path: pathlib.Path, postgres_url: str) -> object:
    """The real processes on PostgreSQL, nothing started yet."""
    with Stack(tmp_path / "stack", postgres_url) as processes:
        yield processes


def lives(stack: Stack) -> list[str]:
    """Actions of the log `system` about the lives of processes."""
    assert stack.database is not None
    statement = "SELECT action FROM events WHERE organization = 'system' AND action LIKE 'server.%' ORDER BY \"index\""
    return [action for (action,) in rows(stack.database, statement)]


def boots_of(stack: Stack, calls: int) -> set[str]:
    """Which processes served so many calls, each over a connection of its own."""
    before = newest(stack)
    for _ in range(calls):
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(stack.address, options=options) as channel:
            stub = access_pb2_grpc.AccessStub(channel)
            stub.WhoAmI(access_pb2.WhoAmIRequest(), metadata=stack.credentials(), timeout=30, wait_for_ready=True)
    assert stack.database is not None
    statement = f"SELECT boot_id FROM events WHERE action = 'access.whoami' AND \"index\" > {before}"
    found = [boot for (boot,) in rows(stack.database, statement)]
    assert len(found) == calls
    return set(found)


def newest(stack: Stack) -> int:
    assert stack.database is not None
    ((index,),) = rows(stack.database, "SELECT coalesce(max(\"index\"), -1) FROM events WHERE organization = 'acme'")
    return int(index)


def says(parent: Process, sentence: str, times: int = 1) -> None:
    parent.wait_until(lambda: len(re.findall(sentence, parent.log.read_text())) >= times, sentence, 40)


def test_workers_share_an_address_and_end_with_their_parent(shared: Stack) -> None:
    parent = shared.start_server("--workers", "2")
    assert len(boots_of(shared, 24)) == 2, "the kernel deals connections out"
    workers = children(parent.pid)
    assert len(workers) == 2
    for number in (1, 2):
        says(parent, f"worker {number}: ")
    assert parent.terminate() == 0
    assert [state(pid) for pid in workers] == ["X", "X"]
    assert lives(shared) == ["server.start", "server.start", "server.stop", "server.stop"]


def test_worker_that_dies_is_started_anew(shared: Stack) -> None:
    parent = shared.start_server("--workers", "2")
    victim = children(parent.pid)[0]
    os.kill(victim, signal.SIGKILL)
    says(parent, r"was killed by SIGKILL; starting it anew")
    says(parent, r"worker \d: .*serving on", 3)
    assert len(boots_of(shared, 24)) == 2
    assert parent.terminate() == 0
    assert lives(shared).count("server.start") == 3


def test_hangup_replaces_every_worker_by_one_that_serves(shared: Stack) -> None:
    parent = shared.start_server("--workers", "2")
    before = set(children(parent.pid))
    os.kill(parent.pid, signal.SIGHUP)
    says(parent, r"workers: worker \d is replaced", 2)
    assert before.isdisjoint(children(parent.pid))
    assert parent.terminate() == 0
    found = lives(shared)
    assert found.index("server.stop") > 2, "a new one serves before an old one stops"
    assert found.count("server.start") == found.count("server.stop") == 4


def test_workers_of_a_killed_parent_stop_in_order(shared: Stack) -> None:
    parent = shared.start_server("--workers", "2")
    workers = children(parent.pid)
    parent.kill()
    wait_until(lambda: all(state(pid) in "XZ" for pid in workers), "the workers stop")
    assert lives(shared).count("server.stop") == 2


def test_address_that_is_taken_is_refused(shared: Stack) -> None:
    parent = shared.start_server("--workers", "2")
    done = shared.lading(
        *("server", "run", "--data", str(shared.folder / "server"), "--database", str(shared.database)),
        *("--listen", shared.address, "--workers", "2"),
    )
    assert (done.returncode, "cannot listen on" in done.stderr) == (1, True), done.stderr
    assert parent.terminate() == 0


def test_first_worker_that_cannot_begin_ends_the_parent_with_its_code(shared: Stack) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"postgresql://lading@127.0.0.1:{nobody.getsockname()[1]}/none"
    shared.start_server().terminate()
    done = shared.lading(
        *("server", "run", "--data", str(shared.folder / "server"), "--database", gone, "--workers", "3"),
        *("--listen", "127.0.0.1:0"),
    )
    assert done.returncode == 7, done.stderr
    assert done.stderr.count("does not answer") == 1
    assert "worker 1: lading server: " in done.stderr


def test_embedded_database_is_for_one_process(tmp_path: pathlib.Path) -> None:
    with Stack(tmp_path / "stack") as stack:
        done = stack.lading("server", "run", "--data", str(tmp_path), "--workers", "2")
    assert done.returncode == 2
    assert "--workers needs PostgreSQL" in done.stderr
    kill_those_with("HOME", str(stack.folder))


async def test_worker_that_is_stopped_before_it_serves_stopped_in_order() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()")
    serves: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    worker = workers.Worker(process, serves, asyncio.create_task(process.wait()))
    assert await workers.terminate(worker) == 0
