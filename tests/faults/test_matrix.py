"""Agent and server are killed at every point of a command's way, with every verb at once, on a real engine.

`make test` does the points of SHORT, `make faults` (LADING_FAULTS=all) every one, on PostgreSQL too, where the outcomes
are the same. LADING_FAULT_MATRIX=write writes MATRIX.md; else what happens must be what it says.
"""

import asyncio
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from lading.v1 import commands_pb2, commands_pb2_grpc
from tests.engine import Engine
from tests.faults import checker, journal, matrix
from tests.faults.checker import UNKNOWN, Stood
from tests.faults.links import Link
from tests.faults.reader import rows
from tests.faults.registry import registry
from tests.faults.verbs import VERBS, Asked, Scene
from tests.process import Process, wait_until
from tests.stack import Stack

AGENT = "dock-1"
COUNT = len(VERBS)
REPOSITORY = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(240)


class Stage(Stack):
    """A stack in which one process comes to a stand at a point."""

    crashing = ""
    point = ""

    @property
    def url(self) -> str:
        return self.database or f"sqlite:///{self.folder / 'server' / 'lading.db'}"

    @property
    def data(self) -> pathlib.Path:
        return self.folder / f"{AGENT}-data"

    @property
    def marks(self) -> list[str]:
        """Who arrived at the point."""
        path = self.folder / "marks"
        return path.read_text().splitlines() if path.exists() else []

    def in_state(self, state: int) -> int:
        """How many commands are in that state."""
        return int(rows(self.url, f"SELECT count(*) FROM commands WHERE state = {state}")[0][0])

    def journalled(self, stage: str) -> int:
        """How many commands the journal has in that stage."""
        return len(journal.rows(self.data, f"SELECT id FROM commands WHERE stage = '{stage}'"))

    def _start(self, name: str, *arguments: str) -> Process:
        if name != self.crashing or not self.point:
            return super()._start(name, *arguments)
        command = [sys.executable, "-m", "tests.faults.crashing", self.point, str(self.folder / "marks"), *arguments]
        environment = self._environment({"PYTHONPATH": str(REPOSITORY)})
        process = Process(name, command, self.folder / f"{name}.log", environment)
        self.processes.append(process)
        return process


@dataclass(frozen=True)
class Point:
    """Where who stands, `there` once all commands have come as far as they come, and whether the engine's answers are
    kept back meanwhile."""

    title: str
    who: str
    name: str
    there: Callable[[Stage, Link], bool]
    held: bool = False


DISPATCHED = commands_pb2.COMMAND_STATE_DISPATCHED
ACKNOWLEDGED = commands_pb2.COMMAND_STATE_ACKNOWLEDGED


def all_here(stage: Stage, _link: Link) -> bool:
    return len(stage.marks) >= COUNT


def all_asked_of_engine(_stage: Stage, link: Link) -> bool:
    return len(link.held) >= COUNT


POINTS = (
    Point(
        "agent: it has the command, nothing is journalled",
        AGENT,
        "not_journalled",
        lambda stage, _: len(stage.marks) > 0 and stage.in_state(DISPATCHED) == COUNT,
    ),
    Point("agent: journalled, not begun", AGENT, "journalled", all_here),
    Point("agent: journalled as begun, the engine not asked", AGENT, "begun", all_here),
    Point("agent: the engine is at it", AGENT, "", all_asked_of_engine, held=True),
    Point("agent: the engine is done, the end not journalled", AGENT, "done", all_here),
    Point("agent: the end journalled, not sent", AGENT, "end_journalled", all_here),
    Point("agent: the end sent, no receipt", AGENT, "end_sent", all_here),
    Point(
        "server: the intent not committed",
        "server",
        "not_committed",
        # "here", and all who asked but exec: a stream waits for its own STARTED first.
        lambda stage, _: "here" in stage.marks and len(set(stage.marks)) >= COUNT,
    ),
    Point(
        "server: the intent committed, no byte sent",
        "server",
        "not_sent",
        lambda stage, _: len(stage.marks) > 0 and stage.in_state(DISPATCHED) == COUNT,
    ),
    Point(
        "server: journalled by the agent, that not recorded",
        "server",
        "acknowledged",
        lambda stage, _: len(stage.marks) > 0 and stage.journalled("ended") == COUNT,
    ),
    Point(
        "server: acknowledged, the engine is at it",
        "server",
        "",
        lambda stage, link: all_asked_of_engine(stage, link) and stage.in_state(ACKNOWLEDGED) == COUNT,
        held=True,
    ),
    Point(
        "server: the result has come, it is not recorded",
        "server",
        "result_come",
        lambda stage, _: len(stage.marks) > 0 and stage.journalled("ended") == COUNT,
    ),
    Point("server: the result recorded, no receipt sent", "server", "not_receipted", all_here),
)
SHORT = {"end_sent", "not_sent"}
ALL = os.environ.get("LADING_FAULTS") == "all"
ORDER = [point.title for point in POINTS]


@pytest.fixture(scope="module")
def images() -> Iterator[str]:
    with registry() as address:
        yield address


@pytest.fixture
def scene(engine: Engine, images: str) -> Iterator[Scene]:
    scene = Scene(engine, images)
    scene.prepare()
    yield scene
    scene.clear()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)] if ALL else ["sqlite"])
def stage(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Stage]:
    database = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    stage = Stage(tmp_path / "stack", database)
    with stage:
        yield stage


async def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    await asyncio.to_thread(wait_until, condition, what, seconds)


EPOCH = "SELECT epoch FROM agent_sessions"
CRASHES = "SELECT count(*) FROM events WHERE action = 'server.crash'"


@pytest.mark.parametrize("point", [point for point in POINTS if ALL or point.name in SHORT], ids=lambda one: one.title)
async def test_every_verb_ends_truly_and_takes_effect_once_whoever_is_killed(
    stage: Stage, scene: Scene, tmp_path: pathlib.Path, point: Point
) -> None:
    socket = f"unix://{tmp_path / 'e'}"
    async with Link(scene.engine.url, socket).open() as link:
        stage.crashing, stage.point = point.who, point.name
        server = await asyncio.to_thread(stage.start_server)
        agent = await asyncio.to_thread(stage.start_agent, AGENT, docker_host=socket)
        if point.held:
            link.hold_answers()
        async with grpc.aio.insecure_channel(
            stage.address, options=(("grpc.max_reconnect_backoff_ms", 200), ("grpc.enable_retries", 0))
        ) as channel:
            asked = [Asked(verb) for verb in VERBS]
            ask = [asyncio.create_task(scene.ask(channel, stage.credentials(), AGENT, one)) for one in asked]
            await until(lambda: point.there(stage, link), f"all are there: {point.title}")
            stage.point = ""
            if point.who == "server":
                server.kill()
                server = await asyncio.to_thread(stage.start_server)
            else:
                agent.kill()
                ((epoch,),) = rows(stage.url, EPOCH)
                agent = await asyncio.to_thread(stage.start_agent, AGENT, docker_host=socket)
                # It counts as online by the lease of its life before.
                await until(lambda: rows(stage.url, EPOCH) > [(epoch,)], "the agent is back")
            link.release_answers()
            await asyncio.gather(*ask)
            open_ = f"SELECT id FROM commands WHERE settled_at IS NULL AND state != {UNKNOWN}"
            await until(lambda: not rows(stage.url, open_), "every command has ended, or is UNKNOWN")
            # UNKNOWN may only be that of a lost server; then the agent's word is to come.
            await until(lambda: unreceipted(stage) == [], "the journal has a receipt for every end", 20)
            effects = await asyncio.to_thread(scene.effects)
            stood = checker.check_effects(stage.url, asked, effects)
            await resolve(channel, stage.credentials(), stood, effects)
        if point.who == "server":
            # On PostgreSQL it may be alive elsewhere, for as long as DEAD_SECONDS say.
            await until(lambda: rows(stage.url, CRASHES) == [(1,)], "what it left open is given up", 90)
        assert agent.terminate() == 0
        assert server.terminate() == 0
    checker.check_settled(stage.url, stood)
    checker.check_journal(stage.url, stage.data, AGENT)
    checker.check_whole(stage.url)
    row = {verb: matrix.cell(one.title, len(effects[verb]), one.evidence, one.error) for verb, one in stood.items()}
    if stage.database:
        # The same outcomes, not always in the same words: other replicas are looked for first.
        expected = {verb: one.short for verb, one in matrix.read()[point.title].items()}
        assert {verb: one.short for verb, one in row.items()} == expected, "MATRIX.md says otherwise"
        return
    if os.environ.get("LADING_FAULT_MATRIX") == "write":
        matrix.write(point.title, row, ORDER)
    assert row == matrix.read().get(point.title), "MATRIX.md says otherwise"


def unreceipted(stage: Stage) -> list[Any]:
    """Commands that the journal has, which had no receipt; one that waits for the next write counts as one."""
    commands = checker.commands(stage.url)
    return [id for id in journal.taken(stage.data) if id not in commands or stage.journalled("executing")]


async def resolve(
    channel: grpc.aio.Channel, metadata: Any, stood: dict[str, Stood], effects: dict[str, list[int]]
) -> None:
    """As an operator, who looks at the engine: settle what stayed UNKNOWN."""
    stub: Any = commands_pb2_grpc.CommandsStub(channel)
    for verb, one in stood.items():
        if one.state == UNKNOWN:
            state = commands_pb2.COMMAND_STATE_SUCCEEDED if effects[verb] else commands_pb2.COMMAND_STATE_FAILED
            request = commands_pb2.ResolveCommandRequest(
                name=f"commands/{one.id}", state=state, reason="the engine's events say so"
            )
            await stub.ResolveCommand(request, metadata=metadata, timeout=20)
