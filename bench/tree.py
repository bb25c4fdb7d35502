"""What the tree costs, and what it gives: appending, proving, verifying."""

import asyncio
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import sqlalchemy as sa

from bench import admission, burst, events, machine, report, unary
from bench.program import started
from lading_server import bootstrap, signer
from lading_server.clock import new_id, now
from lading_server.event import Event
from lading_server.ledger import rows
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Sight, Transaction
from lading_server.ledger.trees import Trees
from lading_server.settings import Settings
from lading_server.store import schema
from lading_server.store.database import migrate, open_engine
from lading_server.store.tiles import WIDTH, Cache
from lading_server.tree import Edge, hash_pair, levels_of
from tests.postgres import Cluster

TITLE = report.TITLES[4]
ORGANIZATION = "acme"
BATCH, IN_FLIGHT = 1_000, 4
APPENDED, APPENDED_QUICK = 20_000, 6_000
APPEND_ROUNDS, APPEND_ROUNDS_QUICK = 6, 2
APPEND_PER_SECOND_MIN = 10_000
LEVEL, LEVEL_QUICK = unary.Level(128, 1500, 60), unary.Level(128, 600, 6)
RATIO_MIN = 0.9
LEAVES, LEAVES_QUICK = 10_000_000, 300_000
PROOFS, PROOFS_QUICK = 400, 100
PROOF_MS_MAX = 1.0
LEVELS = 4
"""Of tiles: enough for 2³² leaves."""
VERIFIED, VERIFIED_QUICK = 1_000_000, 30_000
VERIFY_SECONDS_MAX, VERIFY_MB_MAX = 60, 300


def run(folder: pathlib.Path, cluster: Cluster, *, quick: bool) -> None:
    """Measure, and keep the section."""
    burst.require()
    load_before = machine.load()
    parts = [
        append(folder / "append", cluster, quick=quick),
        compare(folder / "compare", cluster, LEVEL_QUICK if quick else LEVEL),
        prove(folder / "prove", cluster, quick=quick),
        verify(folder / "verify", VERIFIED_QUICK if quick else VERIFIED),
    ]
    report.keep(TITLE, "\n\n".join(parts), load_before, quick=quick)


def databases(folder: pathlib.Path, cluster: Cluster) -> Iterator[tuple[str, Settings, sa.Engine]]:
    """A new database of each kind, with the key of its logs."""
    for name, database in (("SQLite", ""), ("PostgreSQL", cluster.fresh_database())):
        settings = Settings(folder / name.lower(), database=database)
        settings.data.mkdir(parents=True)
        engine = open_engine(settings.database_url)
        migrate(engine)
        signer.create(settings.data)
        yield name, settings, engine
        engine.dispose()


# Appending


def append(folder: pathlib.Path, cluster: Cluster, *, quick: bool) -> str:
    """Events per second by the ledger, in batches."""
    count, rounds = (APPENDED_QUICK, APPEND_ROUNDS_QUICK) if quick else (APPENDED, APPEND_ROUNDS)
    lines, found = [], []
    for name, settings, engine in databases(folder, cluster):
        with machine.pinned(machine.SERVER_CORE):
            rates = asyncio.run(append_rounds(settings, engine, count, rounds))
        middle = statistics.median(rates)
        found.append([f"Lading on {name}", f"{middle:,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}"])
        lines.append(report.verdict(f"{name}, events/s", middle, APPEND_PER_SECOND_MIN, digits=0))
    found += [[f"Tessera on {where}, as published", figure, ""] for where, figure in TESSERA]
    table = report.table(["log", "entries/s", "range"], found)
    return "\n\n".join(["### Appending", APPEND_SAYS.format(BATCH, IN_FLIGHT, count), table, "\n".join(lines)])


TESSERA = (
    ("Aurora, entries of 1 KB", "1,500"),
    ("a free machine of two cores", "1,500"),
    ("NVMe", "about 10,000"),
)
APPEND_SAYS = """\
Events of a busy organization by the ledger of one process, in units of {:,}, {} of them in flight, {:,} in a round:
entries, details, rows with all their indexes, the tree, COMMIT to disk. All of it has one core; PostgreSQL has the
other one. Each event has its proof at once. The figures of Tessera are those that its project publishes
(github.com/transparency-dev/tessera), of other machines: there, proofs come after 1 to 10 s."""


async def append_rounds(settings: Settings, engine: sa.Engine, count: int, rounds: int) -> list[float]:
    """Events per second, round by round, after one that does not count."""
    ledger = Ledger(engine, signer.load(settings.data), boot_id=new_id())
    ledger.start()
    scene, rates, size = events.Scene(ORGANIZATION, 1), [], 0
    try:
        for number in range(-1, rounds):
            made: list[Event] = []
            while len(made) < count:
                made += scene.operation(now(), size + len(made))
            size += len(made)
            batches = iter([made[at : at + BATCH] for at in range(0, len(made), BATCH)])
            began = time.perf_counter()
            await asyncio.gather(*(record(ledger, batches) for _ in range(IN_FLIGHT)))
            if number >= 0:
                rates.append(len(made) / (time.perf_counter() - began))
    finally:
        await ledger.close()
    return rates


async def record(ledger: Ledger, batches: Iterator[Sequence[Event]]) -> None:
    """One batch after the other, as long as there are some."""
    for batch in batches:
        await ledger.record(batch)


# With the tree and without


def compare(folder: pathlib.Path, cluster: Cluster, level: unary.Level) -> str:
    """Audited calls per second with the tree, over those of a server that writes rows alone."""
    lines, table = [], []
    with machine.pinned(machine.LOAD_CORE), ExitStack() as stack:
        subjects = []
        for name in ("SQLite", "PostgreSQL"):
            for kind in ("audited", "treeless"):
                database = cluster.fresh_database() if name == "PostgreSQL" else ""
                settings = Settings(folder / name.lower() / kind, database=database)
                token = bootstrap.initialize(settings, ORGANIZATION, "ada", "", unary.LIFETIME_SECONDS)
                program = stack.enter_context(started("bench.server", kind, str(settings.data), database))
                title = f"{name}, {'with' if kind == 'audited' else 'without'} the tree"
                subject = unary.Subject(title, program, token, settings.database_url, program.read_line())
                unary.ask(subject)
                subjects.append(unary.warm(subject))
        unary.measure(subjects, level)
        for one, other in zip(subjects[::2], subjects[1::2], strict=True):
            found = unary.ratios(one, other)
            for subject, shown in ((one, burst.spread(found)), (other, "1.00")):
                durations = [duration for done in subject.bursts for duration in done.durations]
                rate = statistics.median(done.rate for done in subject.bursts)
                middle = f"{statistics.median(durations):.2f}"
                table.append([subject.name, f"{rate:.0f}", shown, middle, f"{subject.cpu_us:.0f}"])
            lines.append(report.verdict(f"{one.name}, over without", statistics.median(found), RATIO_MIN))
    rounds = f"### Audited calls, {level.in_flight} in flight ({len(subjects[0].bursts)} rounds of {level.calls})"
    shown_table = report.table(["server", "RPC/s", "ratio", "p50 ms", "CPU µs"], table)
    return "\n\n".join([rounds, COMPARE_SAYS, shown_table, "\n".join(lines)])


COMPARE_SAYS = """\
`Access.WhoAmI`, measured as the unary calls above are. Without the tree a server writes the same rows with the same
details, but no entry, no salt, no hash, no edge and no tile."""


# Proving


def prove(folder: pathlib.Path, cluster: Cluster, *, quick: bool) -> str:
    """What the proof of a new command costs the server, and its check the agent."""
    size, rounds = (LEAVES_QUICK, PROOFS_QUICK) if quick else (LEAVES, PROOFS)
    table, lines = [], []
    for name, settings, engine in databases(folder, cluster):
        plant(engine, size)
        with machine.pinned(machine.SERVER_CORE):
            near, far, signed = prove_rounds(settings, engine, rounds)
        for what, times in (
            (f"server on {name}: proofs, for an agent that saw the tree 1,000 events ago", near),
            (f"server on {name}: proofs, for one that was away for long", far),
            (f"server on {name}: checkpoint signed", signed),
        ):
            table.append(timed(what, times))
        both = statistics.median(near) + statistics.median(signed)
        lines.append(report.verdict(f"{name}: proofs and checkpoint, ms", both, PROOF_MS_MAX, at_most=True))
    with machine.pinned(machine.SERVER_CORE):
        times, proofs = admission.measure(size)
    table.append(timed("agent: all checks of a command", times))
    lines.append(report.verdict("agent, ms", statistics.median(times), PROOF_MS_MAX, at_most=True))
    said = PROVE_SAYS.format(proofs)
    shown = report.table(["what", "p50 ms", "p99 ms"], table)
    return "\n\n".join([f"### Proofs at {size:,} entries", said, shown, "\n".join(lines)])


PROVE_SAYS = """\
On the server: the leaf appended, its inclusion proof, the consistency proof, in the transaction of the intent, and then
the signature; not the COMMIT, nor the two files' way to disk by which the signer remembers what it signed (both belong
to the times of lifecycle commands). The agent that was away saw the tree at a random size. The check is of a command
whose proofs have {}."""


def timed(what: str, times: Sequence[float]) -> list[str]:
    return [what, f"{statistics.median(times):.3f}", f"{burst.percentile(times, 0.99):.3f}"]


def plant(engine: sa.Engine, size: int) -> None:
    """Begin a log that has `size` entries already, cut to full tiles: all the same; their tiles are there, and a last
    event."""
    size = size // WIDTH * WIDTH
    roots = [bytes(32)]
    while len(roots) <= 8 * LEVELS:
        roots.append(hash_pair(roots[-1], roots[-1]))
    edge = Edge(size, tuple(roots[level] for level in levels_of(size)))
    last = events.Scene(ORGANIZATION, 2).event(now(), events.USERS[0], "container.start")
    with engine.begin() as connection:
        rows.create_heads(connection, [ORGANIZATION])
        rows.Writer(engine.dialect.name).insert(connection, [rows.encode(last, size - 1, now(), "bench", 1)])
        connection.execute(sa.update(schema.logs).values(size=size, edge=edge.pack()))
        for level in range(LEVELS):
            full, rest = divmod(size >> 8 * level, WIDTH)
            tile = {"organization": ORGANIZATION, "level": level, "hashes": roots[8 * level] * WIDTH}
            for first in range(0, full, 1_000):
                indexes = range(first, min(first + 1_000, full))
                connection.execute(sa.insert(schema.tiles), [{**tile, "index": index} for index in indexes])
            if rest:
                connection.execute(sa.insert(schema.tiles), {**tile, "index": full, "hashes": roots[8 * level] * rest})


def prove_rounds(settings: Settings, engine: sa.Engine, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of the proofs for an agent that is here and for one that comes back, and of the signatures."""
    log_signer = signer.load(settings.data)
    writer, trees = rows.Writer(engine.dialect.name), Trees(log_signer, Cache())
    scene, order = events.Scene(ORGANIZATION, 1), random.Random(1)
    near: list[float] = []
    far: list[float] = []
    signed: list[float] = []
    with engine.connect().execution_options(lading_writes=True) as connection:
        for number in range(-3, 2 * rounds):
            with connection.begin():
                heads = writer.lock_heads(connection, [ORGANIZATION])
                trees.check(connection, heads)
                size = heads[ORGANIZATION].size
                transaction = Transaction(connection, heads, "bench", now())
                away = bool(number % 2)
                event = scene.event(now(), events.USERS[0], "container.start", targets=(("container", "dock-1/web"),))
                transaction.prove(event, Sight(order.randrange(1, size) if away else size - 1_000))
                began = time.perf_counter()
                growths = trees.grow(connection, transaction, heads)
                proven = time.perf_counter() - began
                writer.insert(connection, transaction.rows)
                writer.move_heads(connection, heads, transaction.recorded_at)
            trees.committed(transaction, heads, growths)
            growth = growths[ORGANIZATION]
            began = time.perf_counter()
            log_signer.sign(ORGANIZATION, growth.after.size, growth.after.root())  # its state is on disk by now
            if number >= 0:
                signed.append((time.perf_counter() - began) * 1000)
                (far if away else near).append(proven * 1000)
            if not transaction.proofs[0].checkpoint:
                raise RuntimeError("the log was not signed")
    return near, far, signed


# Verifying


# By a small program in between: what a process is begun from counts in its own peak, and the bench is large.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(code)
"""


def verify(folder: pathlib.Path, count: int) -> str:
    """`lading audit verify` of a whole log, by a process of its own."""
    settings = Settings(folder)
    folder.mkdir(parents=True)
    engine = open_engine(settings.database_url)
    migrate(engine)
    events.fill(engine, ORGANIZATION, count)
    engine.dispose()
    token = bootstrap.initialize(settings, ORGANIZATION, "ada", "", unary.LIFETIME_SECONDS)
    with started("bench.server", "audited", str(folder)) as server:
        address = server.read_line()
        command = [sys.executable, "-m", "lading_client.cli", "--server", address, "audit", "verify"]
        environment = {**os.environ, "LADING_TOKEN": token, "XDG_CONFIG_HOME": str(folder)}
        cpu, began = server.cpu_seconds, time.perf_counter()
        with machine.pinned(machine.LOAD_CORE), open(folder / "said", "w+") as said:
            measured = [sys.executable, "-c", MEASURE, *command]
            process = subprocess.run(measured, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
        seconds, cpu = time.perf_counter() - began, server.cpu_seconds - cpu
    if process.returncode:
        raise RuntimeError(f"the log was not verified:\n{(folder / 'said').read_text()}")
    used, resident = (float(word) for word in process.stdout.split())
    table = report.table(
        ["seconds", "CPU s of it", "of the server", "RSS MB at most"],
        [[f"{seconds:.1f}", f"{used:.1f}", f"{cpu:.1f}", f"{resident:.0f}"]],
    )
    lines = [
        report.verdict("seconds", seconds, VERIFY_SECONDS_MAX, at_most=True, digits=1),
        report.verdict("MB", resident, VERIFY_MB_MAX, at_most=True, digits=0),
    ]
    return "\n\n".join([f"### Verifying {count:,} events", VERIFY_SAYS, table, "\n".join(lines)])


VERIFY_SAYS = """\
`lading audit verify`: all events over gRPC from a server on SQLite, each entry, its details and what is shown of it,
the tree, the operations and the numbers of the processes. The command has one core, the server the other one."""
