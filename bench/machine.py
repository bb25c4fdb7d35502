"""The machine that the figures are of, and its processes' use of it."""

import contextlib
import os
import pathlib
import platform
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = CORES[0]
LOAD_CORE = CORES[-1]
"""Where the callers and PostgreSQL run, so that they take nothing from the server."""
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def describe() -> str:
    """Cores, processor, memory, kernel and the versions of what matters."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = PAGE_BYTES * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {name: version(name) for name in ("grpcio", "uvloop", "psycopg", "SQLAlchemy")}
    versions |= {"Linux": platform.release(), "Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    return f"{len(CORES)} cores of {model}, {memory:.0f} GB, {', '.join(f'{a} {b}' for a, b in versions.items())}"


def load() -> str:
    """The load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def moment() -> str:
    """The time now."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """What a process, all its threads, has used of a core."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
