"""What a second worker gives: the same load on one of two processes of one database, and on both."""

import contextlib
import os
import pathlib
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench import burst, machine, report
from bench.program import Program
from lading.v1 import audit_log_pb2
from lading_server import bootstrap, tokens
from lading_server.clock import new_id, now
from lading_server.event import ActorType
from lading_server.roles import Role
from lading_server.settings import ISSUER, Settings
from lading_server.store import access
from lading_server.store.database import open_engine
from tests.postgres import Cluster

TITLE = "Replicas"
WANTED = 1.6
PERIOD_US, QUOTA_US = 5_000, 2_000
CGROUPS = pathlib.Path("/sys/fs/cgroup/cpu")
WHOAMI = ("/lading.v1.Access/WhoAmI", b"")
LISTING = ("/lading.v1.AuditLog/ListEvents", audit_log_pb2.ListEventsRequest(page_size=50).SerializeToString())
IN_FLIGHT = 32
"""On each of two connections' worth of load; both go to one worker, or one to each."""
SEED = 3
ALL_CORES = ",".join(map(str, machine.CORES))

EXPLANATION = f"""\
Two processes on one PostgreSQL database, each with {QUOTA_US / PERIOD_US:.0%} of one core ({QUOTA_US // 1000} ms in
every {PERIOD_US // 1000}, by a cgroup), so that two of them, PostgreSQL and the load (h2load) fit on this machine
together, and what is measured is how they get on with each other, not who gets the core. The same load, twice
{IN_FLIGHT} calls in flight, goes to one of them or half to each, by turns; a ratio is the median of the ratios of
neighbouring rounds. "Two organizations": each half of the load writes to a log of its own. Without shares all of it
competes for {len(machine.CORES)} cores, PostgreSQL and h2load too: that is in the last column, and is no measure of
the workers."""


@dataclass(slots=True)
class Load:
    """One kind of call. `tokens`: of the one half and the other."""

    name: str
    call: tuple[str, bytes]
    tokens: tuple[str, str]
    calls: int
    wanted: bool
    rates: dict[tuple[int, bool], list[float]] = field(default_factory=dict)
    cpu_us: dict[int, list[float]] = field(default_factory=dict)


class Share:
    """A cgroup that holds a process to its share of a core; does nothing where there are none."""

    def __init__(self, name: str, program: Program) -> None:
        self._folder = CGROUPS / f"lading-bench-{os.getpid()}-{name}"
        self._program = program

    def __enter__(self) -> "Share":
        self._folder.mkdir()
        (self._folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (self._folder / "cgroup.procs").write_text(str(self._program.pid))
        return self

    def limit(self, on: bool) -> None:
        (self._folder / "cpu.cfs_quota_us").write_text(str(QUOTA_US if on else -1))

    def __exit__(self, *_: object) -> None:
        self._program.stop()
        until = time.monotonic() + 20
        while (self._folder / "cgroup.procs").read_text() and time.monotonic() < until:
            time.sleep(0.05)
        self._folder.rmdir()


def run(folder: pathlib.Path, cluster: Cluster, *, quick: bool) -> None:
    """Measure, and keep the section."""
    burst.require()
    if not os.access(CGROUPS / "cgroup.procs", os.W_OK):
        print(
            "replicas: not measured, for it takes root and cgroups to give each process a share of a core", flush=True
        )
        return
    load_before = machine.load()
    data = folder / "data"
    settings = Settings(data, database=cluster.fresh_database())
    first = bootstrap.initialize(settings, "acme", "ada", "ada@acme.example", 24 * 3600)
    second = second_organization(settings)
    loads = [
        Load("WhoAmI, one organization", WHOAMI, (first, first), 1200, wanted=True),
        Load("WhoAmI, two organizations", WHOAMI, (first, second), 1200, wanted=True),
        Load("ListEvents of 50, one organization", LISTING, (first, first), 400, wanted=True),
    ]
    with workers(data, settings.database_url) as (programs, shares, addresses):
        order = random.Random(SEED)
        for load in loads:
            for limited in (True, False):
                for share in shares:
                    share.limit(limited)
                fire(load, addresses, 200)
                for _ in range(3 if quick else 9):
                    for count in order.sample((1, 2), 2):
                        before = sum(program.cpu_seconds for program in programs)
                        rate = fire(load, addresses[:count], load.calls)
                        load.rates.setdefault((count, limited), []).append(rate)
                        spent = sum(program.cpu_seconds for program in programs) - before
                        if limited:
                            load.cpu_us.setdefault(count, []).append(spent / (2 * load.calls) * 1e6)
    report.keep(TITLE, "\n\n".join([EXPLANATION, section(loads)]), load_before, quick=quick)


def fire(load: Load, addresses: Sequence[str], calls: int) -> float:
    """Both halves of the load at once, each `calls` calls; answered calls in a second."""
    path, request = load.call
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        halves = [
            pool.submit(burst.fire, addresses[half % len(addresses)], path, request, token, calls, IN_FLIGHT)
            for half, token in enumerate(load.tokens)
        ]
        for half in halves:
            half.result()
    return 2 * calls / (time.monotonic() - began)


def ratio(load: Load, *, limited: bool) -> float:
    """Of two workers to one."""
    pairs = zip(load.rates[2, limited], load.rates[1, limited], strict=True)
    return statistics.median(two / one for two, one in pairs)


def section(loads: Sequence[Load]) -> str:
    """Tables and verdicts."""
    rows = []
    for load in loads:
        one, two = (statistics.median(load.rates[count, True]) for count in (1, 2))
        cpu = " / ".join(f"{statistics.median(load.cpu_us[count]):.0f}" for count in (1, 2))
        shared, free = (f"{ratio(load, limited=limited):.2f}" for limited in (True, False))
        rows.append([load.name, f"{one:.0f}", f"{two:.0f}", shared, cpu, free])
    head = ["calls", "one worker, calls/s", "two workers", "ratio", "CPU a call, µs, one / two", "ratio without shares"]
    verdicts = [
        report.verdict(f"two workers to one, {load.name}", ratio(load, limited=True), WANTED)
        for load in loads
        if load.wanted
    ]
    return "\n\n".join([report.table(head, rows), "\n".join(verdicts)])


@contextlib.contextmanager
def workers(data: pathlib.Path, database: str) -> Iterator[tuple[list[Program], list[Share], list[str]]]:
    """Two processes that serve, each with its share."""
    with contextlib.ExitStack() as stack:
        programs, shares, addresses = [], [], []
        for name in ("one", "two"):
            program = Program("bench.server", ("audited", str(data), database), ALL_CORES)
            shares.append(stack.enter_context(Share(name, program)))
            programs.append(program)
            addresses.append(program.read_line())
        yield programs, shares, addresses


def second_organization(settings: Settings) -> str:
    """Make globex; a token of its admin."""
    engine = open_engine(settings.database_url)
    with engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
        access.create_organization(connection, "globex", 0)
        access.assign_role(connection, "globex", "ada", Role.ADMIN, 0, "ada")
    engine.dispose()
    at = now() // tokens.MICROSECONDS * tokens.MICROSECONDS
    claims = tokens.Claims(ISSUER, "globex", ActorType.USER, "ada", new_id(), at, at + 86_400 * tokens.MICROSECONDS)
    return tokens.sign(tokens.load_key(settings.data), claims, settings.audience)
