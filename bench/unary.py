"""What the audit of a call costs: one method through servers that differ in nothing else, in alternating bursts."""

import contextlib
import pathlib
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc
import sqlalchemy as sa

from bench import burst, machine, report
from bench.program import Program, started
from lading.v1 import access_pb2, access_pb2_grpc
from lading_server import bootstrap
from lading_server.settings import Settings
from lading_server.store.database import open_engine
from tests.postgres import Cluster

TITLE = report.TITLES[0]
PATH = "/lading.v1.Access/WhoAmI"
ACTION = "access.whoami"
LIFETIME_SECONDS = 24 * 3600
SEED = 1

BARE, UNAUDITED, UNWRITTEN, SQLITE, POSTGRESQL, POOL, ENGINE = NAMES = (
    "a  bare grpc.aio echo",
    "b  Lading, nothing recorded",
    "b' Lading, events made, none written",
    "c  Lading on SQLite, synchronous=FULL",
    "d  Lading on PostgreSQL, fsync on",
    "e1 commit per call, psycopg pool of 10",
    "e2 commit per call, SQLAlchemy asyncio",
)
KINDS = {UNAUDITED: "unaudited", UNWRITTEN: "unwritten", SQLITE: "audited", POSTGRESQL: "audited"}
NAIVE = {POOL: "pool", ENGINE: "engine"}


@dataclass(frozen=True, slots=True)
class Level:
    """How many calls are in flight, how many make a burst, and for how many seconds new rounds begin."""

    in_flight: int
    calls: int
    seconds: float


LEVELS = (Level(1, 200, 40), Level(16, 600, 40), Level(128, 1200, 100), Level(512, 1800, 100))
QUICK = (Level(1, 100, 5), Level(16, 300, 5), Level(128, 600, 8), Level(512, 1000, 8))
ROUNDS_MIN = 3


@dataclass(slots=True)
class Subject:
    """A server under test. `bursts`: those of the level that is measured; `answered`: all its calls."""

    name: str
    program: Program
    token: str = ""
    database: str = ""
    address: str = ""
    answered: int = 0
    bursts: list[burst.Burst] = field(default_factory=list)
    cpu_us: float = 0.0

    def fire(self, calls: int, in_flight: int) -> burst.Burst:
        done = burst.fire(self.address, PATH, b"", self.token, calls, in_flight)
        self.answered += calls
        return done


def run(folder: pathlib.Path, cluster: Cluster, *, quick: bool) -> None:
    """Measure, and keep the section."""
    burst.require()
    load_before = machine.load()
    parts = []
    with machine.pinned(machine.LOAD_CORE), contextlib.ExitStack() as stack:
        subjects = list(start(stack, folder, cluster))
        for level in QUICK if quick else LEVELS:
            measure(subjects, level)
            parts.append(level_of(subjects, level))
        parts.append(check_recorded(subjects))
    report.keep(TITLE, "\n\n".join([EXPLANATION, *parts]), load_before, quick=quick)


EXPLANATION = """\
`Access.WhoAmI` with a real token, by h2load. All servers are alive at once, pinned to one core; h2load and PostgreSQL
have the other one. Bursts alternate in random order; a ratio is the median (and middle half) of the ratios within the
rounds, so that it holds while the machine's speed drifts. CPU is the server process's own, all threads, roll-ups of
the log included, per call. a, b and b' keep nothing."""


def start(stack: contextlib.ExitStack, folder: pathlib.Path, cluster: Cluster) -> Iterator[Subject]:
    """The servers, warm."""
    reply = b""
    for name, kind in {**KINDS, **NAIVE}.items():
        data = folder / kind / name.partition(" ")[0]
        database = cluster.fresh_database() if name in (POSTGRESQL, *NAIVE) else ""
        settings = Settings(data, database=database)
        token = bootstrap.initialize(settings, "acme", "ada", "ada@acme.example", LIFETIME_SECONDS)
        program = stack.enter_context(started("bench.server", kind, str(data), database))
        subject = Subject(name, program, token, settings.database_url, program.read_line())
        reply = ask(subject)
        yield warm(subject)
    program = stack.enter_context(started("bench.echo", PATH, reply.hex()))
    yield warm(Subject(BARE, program, subject.token, address=program.read_line()))


def ask(subject: Subject) -> bytes:
    """One call by an independent client: it is answered truly. Returns the reply."""
    with grpc.insecure_channel(subject.address) as channel:
        reply = access_pb2_grpc.AccessStub(channel).WhoAmI(
            access_pb2.WhoAmIRequest(), metadata=(("authorization", f"Bearer {subject.token}"),), timeout=20
        )
    if reply.actor.id != "ada":
        raise RuntimeError(f"{subject.name} answered {reply}")
    subject.answered += 1
    return bytes(reply.SerializeToString())


def warm(subject: Subject) -> Subject:
    for in_flight in (1, 64):
        subject.fire(200, in_flight)
    return subject


def measure(subjects: Sequence[Subject], level: Level) -> None:
    """The rounds of one level, in an order that the seed decides."""
    order = random.Random(SEED + level.in_flight)
    before = {subject.name: (subject.program.cpu_seconds, subject.answered) for subject in subjects}
    for subject in subjects:
        subject.bursts = []
    until = time.monotonic() + level.seconds
    while len(subjects[0].bursts) < ROUNDS_MIN or time.monotonic() < until:
        for subject in order.sample(subjects, len(subjects)):
            slow = 2 if subject.name in NAIVE else 1
            subject.bursts.append(subject.fire(level.calls // slow, level.in_flight))
    time.sleep(3)  # the roll-ups of the last bursts belong to them
    for subject in subjects:
        seconds, answered = before[subject.name]
        subject.cpu_us = (subject.program.cpu_seconds - seconds) / (subject.answered - answered) * 1e6


def ratios(over: Subject, under: Subject) -> list[float]:
    """RPC/s of one server over that of another, round by round."""
    return [one.rate / other.rate for one, other in zip(over.bursts, under.bursts, strict=True)]


def level_of(subjects: Sequence[Subject], level: Level) -> str:
    """The table of one level, and its verdicts."""
    by_name = {subject.name: subject for subject in subjects}
    base = by_name[UNAUDITED]
    rows = []
    middle = {}
    for name in NAMES:
        subject = by_name[name]
        durations = [duration for one in subject.bursts for duration in one.durations]
        middle[name] = statistics.median(durations)
        rate = statistics.median(one.rate for one in subject.bursts)
        cells = [f"{rate:.0f}", burst.spread(ratios(subject, base)), f"{middle[name]:.2f}"]
        rows.append([name, *cells, f"{burst.percentile(durations, 0.99):.2f}", f"{subject.cpu_us:.0f}"])
    head = ["server", "RPC/s", "ratio to b", "p50 ms", "p99 ms", "CPU µs"]
    plural = "calls" if level.in_flight > 1 else "call"
    title = f"### {level.in_flight} {plural} in flight ({len(base.bursts)} rounds of {level.calls})"
    lines = []
    for name in (SQLITE, POSTGRESQL):
        letter = name[0]
        if level.in_flight == 1:
            added = middle[name] - middle[UNAUDITED]
            lines.append(report.verdict(f"{letter}: p50 above b, ms", added, 3, at_most=True))
            continue
        if level.in_flight < 128:
            continue
        wanted = 0.95 if level.in_flight >= 512 else 0.85
        lines.append(report.verdict(f"{letter} over b", statistics.median(ratios(by_name[name], base)), wanted))
        for naive, factor in ((POOL, 1.6), (ENGINE, 3.0)):
            found = statistics.median(ratios(by_name[name], by_name[naive]))
            lines.append(report.verdict(f"{letter} over {naive[:2]}", found, factor))
    return "\n\n".join([title, report.table(head, rows), *(["\n".join(lines)] if lines else [])])


def check_recorded(subjects: Sequence[Subject]) -> str:
    """Every call that was answered by a server that records has its event. Raises RuntimeError otherwise."""
    counts = []
    for subject in subjects:
        if subject.name not in (SQLITE, POSTGRESQL, *NAIVE):
            continue
        engine = open_engine(subject.database)
        with engine.connect() as connection:
            found = connection.execute(
                sa.text("SELECT count(*) FROM events WHERE action = :action AND outcome = 1 AND stage = 3"),
                {"action": ACTION},
            ).scalar_one()
        engine.dispose()
        if found != subject.answered:
            raise RuntimeError(f"{subject.name} answered {subject.answered} calls, and has {found} events")
        counts.append(f"{subject.name.split()[0]} {found}")
    return f"Calls answered, each with its event of success in the database, counted there: {', '.join(counts)}."
