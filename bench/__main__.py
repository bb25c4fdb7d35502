"""`python -m bench [--only PART,…] [--quick]`: measures, prints, and writes bench/RESULTS.md, a section for each part.

A quick run only prints."""

import argparse
import contextlib
import logging
import pathlib
import sys
import tempfile

from bench import commands, dispatch, machine, memory, queries, replicas, tree, unary
from tests.postgres import Cluster, cluster, programs

PARTS = ("unary", "commands", "memory", "queries", "tree", "replicas", "dispatch")


def measure(parts: list[str], folder: pathlib.Path, databases: Cluster, *, quick: bool) -> None:
    """The parts in their order."""
    if "unary" in parts:
        unary.run(folder / "unary", databases, quick=quick)
    if "commands" in parts:
        commands.run(folder / "commands", quick=quick)
    if "memory" in parts:
        memory.run(folder / "memory", quick=quick)
    if "queries" in parts:
        queries.run(folder / "queries", databases, quick=quick)
    if "tree" in parts:
        tree.run(folder / "tree", databases, quick=quick)
    if "replicas" in parts:
        replicas.run(folder / "replicas", databases, quick=quick)
    if "dispatch" in parts:
        dispatch.run(folder / "dispatch", databases, quick=quick)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="less of everything: within two minutes")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if programs() is None:
        parser.error("PostgreSQL not found: apt-get install postgresql")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="lading-bench-") as folder, contextlib.ExitStack() as stack:
        with machine.pinned(machine.LOAD_CORE):
            databases = stack.enter_context(cluster())
        measure(parts, pathlib.Path(folder), databases, quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
