"""Who has the database and the log's own key, but not the agents' keys, rewrites history; and is found out (P7).

A real server, real agents that have cosigned its log, and the command line of who verifies it.
"""

import json
import pathlib
import re
import shutil
import subprocess
import uuid
from typing import Any

import pytest

from lading.transparency import note
from lading.v1 import audit_log_pb2, audit_log_pb2_grpc
from lading.v1.access_pb2 import ROLE_RECORDER
from lading_agent.witness import load_key
from tests.e2e.forger import Forger
from tests.faults import journal
from tests.process import Process, wait_until
from tests.stack import Stack, answered
from tests.trees import check_trees, root_of

BROKEN = 10
AGENTS = ("dock-1", "dock-2")

pytestmark = pytest.mark.timeout(240)


class Fleet:
    """A server, and agents whose containers leave a trace whenever they start."""

    def __init__(self, stack: Stack, recorder: str = "") -> None:
        self.stack = stack
        self.server = stack.start_server()
        self.recorder = recorder or stack.issue_token("tasks", roles=(ROLE_RECORDER,))
        self.agents: dict[str, Process] = {}

    @property
    def forger(self) -> Forger:
        return Forger(self.stack.folder / "server")

    def start(self, name: str, *, wait: bool = True) -> Process:
        """An agent; it is online unless nobody is to `wait` for that."""
        trace = f"printf x >> '{self.trace(name)}'; exec sleep 1000"
        self.agents[name] = self.stack.start_agent(name, processes={"web": ["sh", "-c", trace]}, wait=wait)
        return self.agents[name]

    def data(self, name: str) -> pathlib.Path:
        return self.stack.folder / f"{name}-data"

    def trace(self, name: str) -> pathlib.Path:
        return self.stack.folder / f"{name}.trace"

    def starts(self) -> dict[str, int]:
        """How often each agent's container really started."""
        return {name: self.trace(name).stat().st_size if self.trace(name).exists() else 0 for name in AGENTS}

    def record(self, count: int) -> None:
        """Let a service record so many events."""
        log = audit_log_pb2_grpc.AuditLogStub(self.stack.channel())
        new = [audit_log_pb2.NewEvent(id=str(uuid.uuid4()), action="task.update") for _ in range(count)]
        request = audit_log_pb2.RecordEventsRequest(events=new, request_id=str(uuid.uuid4()))
        who = self.stack.credentials(self.recorder)
        answered(lambda: log.RecordEvents(request, metadata=who, timeout=20, wait_for_ready=True))

    def cosigned(self, size: int, *names: str) -> None:
        """Wait until these agents, or all, have cosigned a tree of so many events, as the server shows it."""
        log = audit_log_pb2_grpc.AuditLogStub(self.stack.channel())

        def seen() -> bool:
            request, who = audit_log_pb2.GetCheckpointRequest(), self.stack.credentials()
            answer = answered(lambda: log.GetCheckpoint(request, metadata=who, timeout=20, wait_for_ready=True))
            sizes = {one.agent.removeprefix("agents/"): one.size for one in answer.cosignatures}
            return all(sizes.get(name, -1) >= size for name in names or AGENTS)

        wait_until(seen, "the agents cosign", 40)

    def verify(self, *options: str, fresh: bool = False) -> subprocess.CompletedProcess[str]:
        """`lading audit verify`, by who has seen the log before, or by who has `fresh` eyes."""
        if fresh:
            shutil.rmtree(self.stack.folder / "lading", ignore_errors=True)
        return self.stack.lading("audit", "verify", *options)

    def refusals(self, name: str) -> list[dict[str, Any]]:
        """What `lading agent refusals` tells of an agent, which may run."""
        done = self.stack.lading("agent", "refusals", "--data", str(self.data(name)), "-o", "json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def witness_key(self, name: str) -> str:
        """As who operates the agent's host knows it."""
        public = load_key(self.data(name)).public_key().public_bytes_raw()
        return str(note.Key(f"acme/{name}", note.COSIGNATURE, public))


@pytest.fixture
def fleet(stack: Stack) -> Fleet:
    """A log that is verified, of some 300 events; both agents stand for it, and each has done one command."""
    fleet = Fleet(stack)
    fleet.record(300)
    for name in AGENTS:
        fleet.start(name)
        done = stack.lading("restart", f"{name}/web", "--reason", "the deploy")
        assert done.returncode == 0, done.stderr
    wait_until(lambda: set(fleet.starts().values()) == {1}, "the containers have started")
    fleet.cosigned(1)
    done = fleet.verify("--witnesses", "2")
    assert done.returncode == 0, done.stderr
    return fleet


def check_refused(fleet: Fleet, name: str) -> None:
    """Assert that the agent says in its log that it refuses this server's, and keeps evidence that convicts it."""
    data, log = fleet.data(name), fleet.stack.folder / f"{name}.log"
    wait_until(lambda: "log" in {kind for kind, _, _ in journal.refusals(data)}, f"{name} refuses", 60)
    wait_until(lambda: "this agent executes nothing for it" in log.read_text(), f"{name} says what that means")
    assert re.search(r"ERROR .* refused: proof: ", log.read_text())
    evidence = next(each for each in fleet.refusals(name) if each["kind"] == "log")
    key = note.parse_key(evidence["log_key"])
    known, shown = (note.open_checkpoint(evidence[which], key) for which in ("known", "shown"))
    # Both are signed by the one key; but the log that was shown does not begin with the tree that was known.
    assert known.origin == shown.origin
    leaves = fleet.forger.leaves()
    assert known.root != root_of(leaves[: known.size])
    assert shown.root == root_of(leaves[: shown.size])


def test_rewritten_event_is_refused_by_agents_and_found_by_their_cosignatures_and_by_who_saw_the_log(
    fleet: Fleet,
) -> None:
    stack, forger = fleet.stack, fleet.forger
    # One agent goes away, and a command waits for it: it will come from the log as that is then.
    assert fleet.agents["dock-1"].terminate() == 0
    assert stack.lading("restart", "dock-1/web", "--reason", "later", "--detach").returncode == 0
    assert fleet.server.terminate() == 0

    forger.rewrite("container.restart", actor="mallory")
    check_trees(forger.url)  # nothing in the database contradicts it
    fleet.server = stack.start_server()
    fleet.start("dock-1", wait=False)
    for name in AGENTS:
        check_refused(fleet, name)
    assert set(fleet.starts().values()) == {1}, "something was executed"
    assert [len(journal.taken(fleet.data(name))) for name in AGENTS] == [1, 1], "something was taken"

    check_broken(fleet.verify(), "are not those that this client saw")
    check_broken(fleet.verify("--witnesses", "2", fresh=True), "acme/dock-1 cosigned another tree")
    # Without the cosignatures nothing contradicts it; but nobody stands for it either.
    forger.drop_cosignatures()
    alone = fleet.verify(fresh=True)
    assert alone.returncode == 0, "the forger overlooked something, and this test shows less than it says"
    check_broken(fleet.verify("--witnesses", "2", fresh=True), "0 of 0 known agents")
    # Cosignatures by keys of the forger's own stand for nothing with who knows those of the agents.
    for name in AGENTS:
        forger.invent_cosignature(name)
    trust = [part for name in AGENTS for part in ("--witness-key", fleet.witness_key(name))]
    check_broken(fleet.verify("--witnesses", "1", *trust, "--timeout", "5s", fresh=True), "0 of 2 known agents")


def test_server_that_shows_two_trees_is_found_by_who_asks_for_witnesses(fleet: Fleet, tmp_path: pathlib.Path) -> None:
    stack, mine = fleet.stack, fleet.forger
    for agent in fleet.agents.values():
        assert agent.terminate() == 0
    assert fleet.server.terminate() == 0
    with Stack(tmp_path / "fork") as other:
        shutil.copytree(stack.folder / "server", other.folder / "server")
        shutil.move(fleet.data("dock-2"), other.folder / "dock-2-data")
        shutil.copy(stack.folder / "dock-2.token", other.folder)
        other.admin_token = stack.admin_token
        fork = Fleet(other, fleet.recorder)
        fleet.server = stack.start_server()
        # To one agent the log goes on in one way, to the other in another; each finds that it extends what it saw.
        fleet.record(5)
        fork.record(50)
        fleet.start("dock-1")
        fork.start("dock-2")
        size = len(mine.leaves())
        fleet.cosigned(size, "dock-1")
        fork.cosigned(size + 45, "dock-2")
        assert journal.refusals(fleet.data("dock-1")) == journal.refusals(fork.data("dock-2")) == []

        # Each side shows only what fits: then not both agents stand for what it shows.
        assert fleet.verify("--witnesses", "1", fresh=True).returncode == 0
        check_broken(fleet.verify("--witnesses", "2", "--timeout", "5s", fresh=True), "acme/dock-2")
        # One side shows all that was signed: then one of them stands for another tree.
        (theirs,) = (row for row in fork.forger.cosignatures() if "dock-2" in row)
        mine.put_cosignature(theirs)
        check_broken(fleet.verify(fresh=True), "acme/dock-2 cosigned another tree")


def test_restored_database_that_the_signer_cannot_notice_is_noticed_by_agents(
    fleet: Fleet, tmp_path: pathlib.Path
) -> None:
    stack, forger = fleet.stack, fleet.forger
    assert fleet.server.terminate() == 0
    forger.backup(tmp_path)
    fleet.server = stack.start_server()
    fleet.record(100)
    size = len(forger.leaves())
    fleet.cosigned(size)
    assert fleet.verify("--witnesses", "2").returncode == 0
    for agent in fleet.agents.values():
        assert agent.terminate() == 0
    assert fleet.server.terminate() == 0

    longest = len(forger.leaves())
    forger.restore(tmp_path)
    forger.forget_signed()
    fleet.server = stack.start_server()
    assert len(forger.leaves()) < size
    # The server does not hide it from an agent whose tree it cannot extend.
    fleet.start("dock-1", wait=False)
    log = stack.folder / "dock-1.log"
    wait_until(lambda: "this log is shorter: the database went back" in log.read_text(), "the agent says why")
    check_broken(fleet.verify(), "this client saw")
    # Old cosignatures are of trees that it extends; but for what it shows now nobody stands.
    check_broken(fleet.verify("--witnesses", "1", "--timeout", "5s", fresh=True), "must")

    # The log grows until it is as long as it was, with commands in it.
    assert stack.lading("restart", "dock-2/web", "--reason", "later", "--detach").returncode == 0
    fleet.record(longest - len(forger.leaves()) + 50)
    fleet.start("dock-2", wait=False)
    check_refused(fleet, "dock-2")
    assert set(fleet.starts().values()) == {1}, "something was executed"
    assert len(journal.taken(fleet.data("dock-2"))) == 1, "something was taken"


def check_broken(done: subprocess.CompletedProcess[str], words: str) -> None:
    """Assert that the log was found broken, and that it is said why."""
    assert done.returncode == BROKEN, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert words in done.stdout, done.stdout
