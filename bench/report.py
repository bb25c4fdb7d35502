"""What a run found out, in Markdown: one section for each part, in `bench/RESULTS.md`."""

import pathlib
import re
from collections.abc import Sequence

from bench import machine

RESULTS = pathlib.Path(__file__).with_name("RESULTS.md")
TITLES = ("Unary calls", "Lifecycle commands", "Agents", "Queries", "The tree", "Replicas", "Dispatch")
"""Its sections, in their order."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def verdict(what: str, found: float, wanted: float, *, at_most: bool = False, digits: int = 2) -> str:
    """A line that holds a figure against what it should be."""
    met = found <= wanted if at_most else found >= wanted
    bound = "at most" if at_most else "at least"
    return f"- {what}: **{found:.{digits}f}**, {bound} {wanted:g} wanted: {'met' if met else 'NOT MET'}"


def keep(title: str, body: str, load_before: str, *, quick: bool) -> None:
    """Print a section, and put it into RESULTS.md in the place of its last one, unless it was done quickly."""
    state = f"Measured {machine.moment()}; load average {load_before} before, {machine.load()} after."
    section = f"## {title}\n\n{state}\n\n{body.strip()}\n"
    print(section, flush=True)
    if quick:
        return
    found = re.split(r"(?m)^(?=## )", RESULTS.read_text())[1:] if RESULTS.exists() else []
    sections = {part.partition("\n")[0].removeprefix("## "): part.strip() + "\n" for part in found}
    sections[title] = section
    order = [title for title in TITLES if title in sections]
    text = f"# What Lading costs\n\n`make bench` wrote this, on {machine.describe()}.\n\n"
    RESULTS.write_text(text + "\n".join(sections[title] for title in order))
