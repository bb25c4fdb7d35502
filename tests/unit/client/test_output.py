import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lading_client.cli import output
from lading_client.cli.output import Cell, Column, Listing, Table

ROWS: Listing[tuple[str, str]] = Listing(
    lambda row: row[0],
    (
        Column("NAME", lambda row: row[0], least=4),
        Column("REASON", lambda row: Cell(row[1], "red"), least=6),
        Column("WIDE", lambda row: "w", wide=True),
    ),
)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@given(st.lists(st.tuples(st.text(), st.text())), st.integers(24, 80))
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str]], limit: int) -> None:
    for line in Table(ROWS, limit=limit).lines(rows):
        plain = ESCAPES.sub("", line)
        assert output.columns(plain) <= limit
        assert plain.isprintable()


def test_columns_stand_below_each_other() -> None:
    first, *lines = (ESCAPES.sub("", line) for line in Table(ROWS).lines([("a", "long reason"), ("dock-1", "x")]))
    assert first == "NAME    REASON"
    assert lines == ["a       long reason", "dock-1  x"]


def test_the_first_column_is_cut_last() -> None:
    listing: Listing[str] = Listing(str, (Column("ID", lambda row: row), Column("STATE", lambda row: "x" * 20)))
    line = list(Table(listing, limit=50).lines(["i" * 36]))[1]
    assert ESCAPES.sub("", line) == f"{'i' * 36}  {'x' * 11}…"


def test_wide_shows_more() -> None:
    assert "WIDE" in next(iter(Table(ROWS, wide=True).lines([])))


def test_wide_characters_count_twice() -> None:
    assert output.columns("日本") == 4
    assert output.fit("日本語", 5) == "日本…"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_yaml_is_read_back(value: Any) -> None:
    lines = list(output.yaml(value))
    assert all("\n" not in line for line in lines)
    assert read(lines) == value


def read(lines: list[str]) -> Any:
    """A reader of the block style that `output.yaml` writes, and of nothing else of YAML."""
    if len(lines) == 1 and not re.match(r'(- |-$)|("(\\.|[^"\\])*"|[\w./@+ -]*):( |$)', lines[0].strip()):
        return scalar(lines[0].strip())
    depth = len(lines[0]) - len(lines[0].lstrip(" "))
    blocks: list[list[str]] = []
    for line in lines:
        if len(line) - len(line.lstrip(" ")) == depth:
            blocks.append([])
        blocks[-1].append(line[depth:])
    if lines[0].lstrip(" ").startswith("-"):
        return [read([block[0].replace("- ", "  ", 1), *block[1:]]) for block in blocks]
    found = {}
    for block in blocks:
        match = re.match(r'("(?:\\.|[^"\\])*"|[\w./@+ -]+):(.*)', block[0])
        assert match
        found[scalar(match[1])] = read(block[1:]) if not match[2] else scalar(match[2].strip())
    return found


def scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        assert text.lower() not in output.RESERVED
        return text


def test_what_is_not_known_is_never_green() -> None:
    assert output.status("UNKNOWN").color == "yellow"
    assert output.status("A_WORD_OF_A_NEWER_SERVER").color != "green"
    assert output.state("restarting").color != "green"
