"""How fast commands that do nothing go through one server to a fleet, and how a large fleet comes back after a kill."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import statistics
import time
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from bench import burst, machine, report
from bench.null_agents import CONTAINER
from bench.program import Program, started
from lading.v1 import commands_pb2, rollouts_pb2, rollouts_pb2_grpc
from lading_server import bootstrap
from lading_server.settings import Settings
from tests.postgres import Cluster
from tests.process import children
from tests.stack import Stack

TITLE = report.TITLES[6]
AGENTS, AGENTS_QUICK = 1_000, 100
SECONDS, SECONDS_QUICK = 15.0, 3.0
PACE = 100.0
RATE_MIN, ACKNOWLEDGE_MS_MAX, ROLLOUT_SECONDS_MAX = 1_000, 10, 10
FLEET, FLEET_QUICK = 10_000, 400
FLEETS = 4
WORKERS = 2
MEMORY_MB_MAX, BACK_SECONDS_MAX = 2048, 60
SETTLE_SECONDS = 5.0
SAMPLE_SECONDS = 1.0

EXPLANATION = """\
One server on SQLite, on a core of its own; the callers and the agents share the other core. The agents are {agents}
connections of a light client (`bench/null_agents.py`) whose commands succeed at once: no journal on disk, and proofs
are sent to them but not verified. Every command is a call of its own (`RestartContainer`, detached), and leaves four
events: the call's, RECEIVED, STARTED and COMPLETED. The milliseconds are from dispatch to acknowledge, both as the
server commits them; the CPU is the server's, for each command."""


def run(folder: pathlib.Path, databases: Cluster, *, quick: bool) -> None:
    """Measure, and keep the section."""
    load_before = machine.load()
    count = AGENTS_QUICK if quick else AGENTS
    parts = [EXPLANATION.format(agents=f"{count:,}"), *one_server(folder / "one", count, quick=quick)]
    parts += many_agents(folder / "many", databases.fresh_database(), FLEET_QUICK if quick else FLEET)
    report.keep(TITLE, "\n\n".join(parts), load_before, quick=quick)


def one_server(folder: pathlib.Path, count: int, *, quick: bool) -> list[str]:
    """At full speed, at a pace, and a rollout."""
    settings = Settings(folder / "data")
    token = bootstrap.initialize(settings, "acme", "ada", "", 24 * 3600)
    database = settings.data / "lading.db"
    seconds = SECONDS_QUICK if quick else SECONDS
    rows = []
    with started("bench.server", "audited", str(settings.data)) as server:
        address = server.read_line()
        with fleet(address, settings.data, count, 2, core=machine.LOAD_CORE) as programs:
            expect_all(programs)
            time.sleep(SETTLE_SECONDS)
            for rate in (0.0, PACE):
                row, found = push(server, address, token, database, count, seconds, rate)
                rows.append(row)
                if rate:
                    slow = found
                else:
                    fast = found
            took = roll_out(address, token, count)
    lines = [
        report.verdict("commands settled a second", fast["rate"], RATE_MIN, digits=0),
        report.verdict(
            f"dispatch to acknowledge at {PACE:g}/s, p50 ms", slow["p50"], ACKNOWLEDGE_MS_MAX, at_most=True, digits=1
        ),
        report.verdict(
            f"rollout of {count} targets at once, seconds", took, ROLLOUT_SECONDS_MAX, at_most=True, digits=1
        ),
    ]
    head = [
        "asked for",
        "settled /s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "server ms CPU each",
        "server CPU %",
        "failed calls",
    ]
    return [report.table(head, rows), "\n".join(lines)]


def push(
    server: Program, address: str, token: str, database: pathlib.Path, agents: int, seconds: float, rate: float
) -> tuple[list[str], dict[str, float]]:
    """One row: callers for so long; what the database says of the commands that were made meanwhile."""
    (before,) = query(database, "SELECT count(*) FROM commands")[0]
    cpu = server.cpu_seconds
    began = time.monotonic()
    arguments = (address, token, str(agents), str(seconds), str(rate))
    with started("bench.callers", *arguments, core=machine.LOAD_CORE) as callers:
        said = json.loads(callers.read_line())
    while query(database, "SELECT count(*) FROM commands WHERE settled_at IS NULL") != [(0,)]:
        time.sleep(0.1)
    took = time.monotonic() - began
    used = server.cpu_seconds - cpu
    times = query(
        database,
        "SELECT created_at, dispatched_at, acknowledged_at, settled_at FROM commands "
        f"ORDER BY created_at LIMIT -1 OFFSET {before}",
    )
    span = (max(row[3] for row in times) - min(row[0] for row in times)) / 1e6
    waits = [(row[2] - row[1]) / 1000 for row in times if row[1] and row[2]]
    found = {"rate": len(times) / span, "p50": statistics.median(waits)}
    for words, number in list(said["failures"].items())[:3]:
        print(f"{number} calls failed: {words}", flush=True)
    return [
        f"{rate:g}/s" if rate else "all it takes",
        f"{found['rate']:.0f}",
        *(f"{burst.percentile(waits, share):.1f}" for share in (0.5, 0.95, 0.99)),
        f"{1000 * used / len(times):.2f}",
        f"{100 * used / took:.0f}",
        str(sum(said["failures"].values())),
    ], found


def roll_out(address: str, token: str, count: int) -> float:
    """Seconds from the call to the end of a rollout with one container of each agent."""
    containers = [f"agents/agent-{number}/containers/{CONTAINER}" for number in range(count)]
    plan = rollouts_pb2.RolloutPlan(
        verb=commands_pb2.VERB_RESTART, containers=containers, max_concurrent=1000, execute_within=Duration(seconds=60)
    )
    with grpc.insecure_channel(address) as channel:
        stub = rollouts_pb2_grpc.RolloutsStub(channel)
        who: Any = (("authorization", f"Bearer {token}"),)
        began = time.monotonic()
        made = stub.CreateRollout(
            rollouts_pb2.CreateRolloutRequest(plan=plan, reason="bench"), metadata=who, timeout=60
        )
        request = rollouts_pb2.WatchRolloutRequest(name=made.name)
        for seen in stub.WatchRollout(request, metadata=who, timeout=240):
            if seen.state not in (rollouts_pb2.ROLLOUT_STATE_RUNNING, rollouts_pb2.ROLLOUT_STATE_PAUSED):
                break
    if seen.targets_succeeded != count:
        raise RuntimeError(f"{seen.targets_succeeded} of {count} targets succeeded")
    return time.monotonic() - began


def many_agents(folder: pathlib.Path, database: str, count: int) -> list[str]:
    """A fleet over several workers, and a kill of one of them: memory, and how the fleet comes back."""
    with Stack(folder, database) as stack:
        parent = stack.start_server("--workers", str(WORKERS))
        began = time.monotonic()
        with fleet(stack.address, stack.folder / "server", count, FLEETS, kind="witnesses") as programs:
            connecting = expect_all(programs) - began
            time.sleep(SETTLE_SECONDS)
            pids = children(parent.pid)
            memory = sum(machine.resident_bytes(pid) for pid in pids) / 2**20
            idle = use(pids, SETTLE_SECONDS)
            os.kill(pids[0], signal.SIGKILL)
            trace = asyncio.run(watch_return(parent.pid, programs))
            back = trace[-1][0]
    lines = [
        report.verdict(f"{count:,} agents on {WORKERS} workers, MB", memory, MEMORY_MB_MAX, at_most=True, digits=0),
        report.verdict(
            "all back after a kill -9 of one worker, seconds", back, BACK_SECONDS_MAX, at_most=True, digits=1
        ),
    ]
    busiest = max(share for _, share in trace)
    words = (
        f"{count:,} agents in {FLEETS} processes, {WORKERS} workers and their PostgreSQL share the cores. "
        f"All were let in {connecting:.0f} s after the first try. Idle, the workers use {idle:.0f} % of a core. "
        f"After the kill they use, second by second, in % of a core: "
        f"{', '.join(f'{share:.0f}' for _, share in trace)}; at most {busiest:.0f} of {100 * len(machine.CORES)}."
    )
    return [words, "\n".join(lines)]


def use(pids: list[int], seconds: float) -> float:
    """Share of a core, in %, that they use together over `seconds`."""
    before = sum(machine.cpu_seconds(pid) for pid in pids)
    time.sleep(seconds)
    return 100 * (sum(machine.cpu_seconds(pid) for pid in pids) - before) / seconds


async def watch_return(parent: int, programs: list[Program]) -> list[tuple[float, float]]:
    """Samples of what the workers use, until each fleet is whole again: seconds since the kill, % of a core."""
    began = time.monotonic()
    whole = [asyncio.ensure_future(asyncio.to_thread(whole_again, program, began)) for program in programs]
    used: dict[int, float] = {}
    trace = []
    last = began
    while not all(each.done() for each in whole):
        await asyncio.sleep(SAMPLE_SECONDS)
        share = 0.0
        for pid in children(parent):
            with contextlib.suppress(OSError):
                now = machine.cpu_seconds(pid)
                share += now - used.get(pid, 0.0 if last != began else now)
                used[pid] = now
        moment = time.monotonic()
        trace.append((moment - began, 100 * share / (moment - last)))
        last = moment
    back = max(each.result() for each in whole) - began
    return [*trace[:-1], (back, trace[-1][1])]


def whole_again(program: Program, since: float) -> float:
    """When it was whole after it had lost some, seconds on the monotonic clock; what it said of earlier times is passed
    over."""
    while True:
        word, at = program.read_line().split()
        if word == "all" and float(at) > since:
            return float(at)


@contextlib.contextmanager
def fleet(
    address: str, data: pathlib.Path, count: int, programs: int, core: int | None = None, kind: str = ""
) -> Iterator[list[Program]]:
    """Agents in so many processes, which have begun to connect."""
    share = count // programs
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    *("bench.null_agents", address, str(data), str(number * share), str(share), kind),
                    core=machine.CORES[number % len(machine.CORES)] if core is None else core,
                )
            )
            for number in range(programs)
        ]


def expect_all(programs: list[Program]) -> float:
    """Wait until each is whole; when the last one was."""
    moments = []
    for program in programs:
        while (line := program.read_line().split())[0] != "all":
            pass
        moments.append(float(line[1]))
    return max(moments)


def query(database: pathlib.Path, statement: str) -> list[tuple[Any, ...]]:
    """Read beside the server."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()
