"""MATRIX.md: what becomes of a command of each verb whose agent or server is killed at each point of its way."""

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.faults.verbs import VERBS

FILE = pathlib.Path(__file__).with_name("MATRIX.md")
VARIES = re.compile(
    r"\b[0-9a-f]{12,}\b|\b\d{4}-\d\d-\d\dT[\d:.]+Z|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|127\.0\.0\.1:\d+\S*"
)
HEAD = """\
# Verb × crash point → outcome

`LADING_FAULT_MATRIX=write make faults` wrote this; `make faults` compares. Each process is killed (SIGKILL) while a
command of each verb stands at the same point of its way, on a real Docker engine; then it is started again, and nobody
helps. A cell is how the command stands at its end, and how often the engine had it take effect. What is UNKNOWN is
shown as that, and was settled by an operator afterwards.

"""


@dataclass(frozen=True)
class Cell:
    """One verb at one point."""

    state: str
    effects: int
    words: str

    @property
    def short(self) -> str:
        return f"{self.state} {self.effects}×"


Row = Mapping[str, Cell]


def cell(state: str, effects: int, evidence: str, error: str) -> Cell:
    """Without what differs from run to run."""
    words = error if error.endswith(evidence) else ": ".join(part for part in (evidence, error) if part)
    return Cell(state, effects, VARIES.sub("…", words).replace("|", "/"))


def read() -> dict[str, dict[str, Cell]]:
    """What is committed, by point and verb."""
    found: dict[str, dict[str, Cell]] = {}
    if FILE.exists():
        for line in FILE.read_text().partition("## By what")[2].splitlines():
            parts = [part.strip() for part in line.strip("|").split("|")]
            if len(parts) == 5 and parts[1] in VERBS:
                found.setdefault(parts[0], {})[parts[1]] = Cell(parts[2], int(parts[3]), parts[4])
    return found


def write(point: str, row: Row, order: list[str]) -> None:
    """Put a row in its place."""
    rows = {**read(), point: dict(row)}
    rows = {one: rows[one] for one in order if one in rows}
    lines = ["| killed | " + " | ".join(VERBS) + " |", "|---" * (len(VERBS) + 1) + "|"]
    lines += [f"| {one} | " + " | ".join(cells[verb].short for verb in VERBS) + " |" for one, cells in rows.items()]
    lines += ["", "## By what", "", "| killed | verb | outcome | effects | evidence, and what its caller is told |"]
    lines.append("|---|---|---|---|---|")
    for one, cells in rows.items():
        for verb in VERBS:
            found = cells[verb]
            lines.append(f"| {one} | {verb} | {found.state} | {found.effects} | {found.words} |")
    FILE.write_text(HEAD + "\n".join(lines) + "\n")
