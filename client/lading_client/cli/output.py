"""What commands print: tables for people, documents for programs. Data goes to stdout, messages to stderr.

Text from the log or from containers is data: its control characters never reach the terminal.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from lading_client.cli.invocation import Invocation

Item = TypeVar("Item")
GAP = "  "
LEAST = 8  # columns that are left of what is cut on a very narrow terminal

# Icon and colour of each word. What is not known is never green.
STATUSES = {
    "SUCCESS": ("✓", "green"),
    "SUCCEEDED": ("✓", "green"),
    "FAILURE": ("✗", "red"),
    "FAILED": ("✗", "red"),
    "REJECTED": ("✗", "red"),
    "EXPIRED": ("✗", "red"),
    "DEADLINE": ("✗", "red"),
    "DENIED": ("⊘", "magenta"),
    "UNKNOWN": ("?", "yellow"),
    "CANCELLED": ("○", "bright_black"),
    "SKIPPED": ("○", "bright_black"),
}
PENDING = ("…", "bright_black")
ACTIONS = {
    "START": ("▶", "green"),
    "STOP": ("■", "red"),
    "KILL": ("✕", "red"),
    "REMOVE": ("−", "red"),
    "RESTART": ("↻", "blue"),
    "CREATE": ("+", "blue"),
    "PAUSE": ("‖", "magenta"),
    "UNPAUSE": ("▷", "magenta"),
    "PULL": ("↓", "blue"),
    "EXEC": ("›", "blue"),
    "DRIFT": ("≠", "magenta"),
}
STATES = {
    "running": "green",
    "healthy": "green",
    "online": "green",
    "offline": "red",
    "unhealthy": "red",
    "dead": "red",
    "banned": "red",
    "stale": "yellow",
    "drained": "yellow",
    "paused": "magenta",
    "exited": "bright_black",
}


@dataclass(frozen=True)
class Cell:
    """Text, and its colour on a terminal."""

    text: str
    color: str | None = None

    def drawn(self, width: int) -> str:
        text = fit(printable(self.text), width)
        return click.style(text, fg=self.color) + " " * (width - columns(text))


@dataclass(frozen=True)
class Column(Generic[Item]):
    """`wide`: only in that format. `least`: a column of free text, cut down to this on a narrow terminal."""

    heading: str
    cell: Callable[[Item], str | Cell]
    wide: bool = False
    least: int = 0

    def of(self, item: Item) -> Cell:
        cell = self.cell(item)
        return cell if isinstance(cell, Cell) else Cell(cell)


@dataclass(frozen=True)
class Listing(Generic[Item]):
    """How things of one kind are listed; `name` is what `-o name` and `-q` print."""

    name: Callable[[Item], str]
    columns: Sequence[Column[Item]]


@dataclass
class Table(Generic[Item]):
    """Lines of a listing; rows that come later widen the columns when they need it. `limit`: the terminal's width."""

    listing: Listing[Item]
    wide: bool = False
    limit: int | None = None
    widths: list[int] = field(default_factory=list)

    def lines(self, items: Iterable[Item]) -> Iterator[str]:
        shown = [column for column in self.listing.columns if self.wide or not column.wide]
        rows = [[column.of(item) for column in shown] for item in items]
        began = bool(self.widths)
        widest = self.widths or [columns(column.heading) for column in shown]
        self.widths = [
            max([least, *(columns(printable(row[at].text)) for row in rows)]) for at, least in enumerate(widest)
        ]
        fitting = self._narrowed(shown)
        for cells in [*([] if began else [[Cell(column.heading) for column in shown]]), *rows]:
            yield GAP.join(cell.drawn(width) for cell, width in zip(cells, fitting, strict=True)).rstrip()

    def _narrowed(self, shown: Sequence[Column[Item]]) -> list[int]:
        """The widths, cut until all fits: free text first, then whatever is left, the widest first; last the first
        column, which has the id or the time of what the line is about."""
        widths = list(self.widths)
        over = sum(widths) + len(GAP) * (len(shown) - 1) - (self.limit or sys.maxsize)
        for at in sorted(range(len(shown)), key=lambda at: (not shown[at].least, at == 0, -widths[at])):
            cut = max(0, min(over, widths[at] - (shown[at].least or LEAST)))
            widths[at] -= cut
            over -= cut
        return widths


def show(invocation: Invocation, listing: Listing[Any], items: Iterable[Message], no_trunc: bool = False) -> None:
    """Print things of one kind in the format that was asked for."""
    match invocation.format:
        case "name":
            emit(listing.name(item) for item in items)
        case "json":
            click.echo(json.dumps([_document(item) for item in items], ensure_ascii=False, indent=2))
        case "jsonl":
            emit(json.dumps(_document(item), ensure_ascii=False) for item in items)
        case "yaml":
            emit(yaml([_document(item) for item in items]))
        case "csv":
            raise click.UsageError("csv is a format of the audit log only.")
        case "table" if invocation.quiet:
            emit(listing.name(item) for item in items)
        case chosen:
            emit(table(listing, chosen, no_trunc).lines(items))


def table(listing: Listing[Item], chosen: str, no_trunc: bool = False) -> Table[Item]:
    """An empty table, as wide as the terminal, if it is one."""
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() and not no_trunc else None
    return Table(listing, chosen == "wide", limit)


def show_one(invocation: Invocation, message: Message, name: str, person: Callable[[], Iterable[str]]) -> None:
    """Print one thing; `person` gives the lines of the table format."""
    match invocation.format:
        case "name":
            click.echo(name)
        case "json" | "jsonl" | "yaml":
            show_document(invocation, _document(message))
        case "csv":
            raise click.UsageError("csv is a format of the audit log only.")
        case "table" if invocation.quiet:
            click.echo(name)
        case _:
            emit(person())


def show_document(invocation: Invocation, document: Any) -> None:
    """Print one document as JSON, a line of JSON, or YAML."""
    if invocation.format == "yaml":
        emit(yaml(document))
    else:
        click.echo(json.dumps(document, ensure_ascii=False, indent=None if invocation.format == "jsonl" else 2))


def emit(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _document(message: Message) -> dict[str, Any]:
    from lading_client.documents import document

    return document(message)


def status(word: str, more: str = "") -> Cell:
    """`✗ FAILURE NOT_FOUND`."""
    icon, color = STATUSES.get(word, PENDING)
    return Cell(" ".join(part for part in (icon, word, more if more != word else "") if part), color)


def action(word: str) -> Cell:
    """`■ STOP`; reads and foreign actions as they are."""
    icon, color = ACTIONS.get(word, ("", "bright_black" if word.isupper() else None))
    return Cell(f"{icon} {word}".strip(), color)


def state(word: str) -> Cell:
    return Cell(word or "-", STATES.get(word))


def clock(value: Timestamp) -> str:
    """Local time with milliseconds and zone; `-` when it is not set."""
    from lading_client.labels import moment

    found = moment(value)
    return found.astimezone().isoformat(timespec="milliseconds") if found else "-"


def age(value: Timestamp) -> str:
    """How long ago: `12s`, `12m`, `3h`, `3d`; `-` when it is not set."""
    from lading_client.labels import moment

    found = moment(value)
    if not found:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - found).total_seconds()))
    for width, unit, above in ((86400, "d", 2 * 86400), (3600, "h", 3 * 3600), (60, "m", 120)):
        if seconds >= above:
            return f"{seconds // width}{unit}"
    return f"{seconds}s"


def fields(pairs: Iterable[tuple[str, str | Cell]]) -> Iterator[str]:
    """`name  value` lines, without those that have no value."""
    given = [(name, cell if isinstance(cell, Cell) else Cell(cell)) for name, cell in pairs]
    width = max((columns(name) for name, cell in given if cell.text), default=0)
    for name, cell in given:
        if cell.text:
            yield click.style(name.ljust(width), fg="bright_black") + GAP + cell.drawn(columns(cell.text))


def printable(text: str) -> str:
    """On one line, without control characters: an escape sequence in a reason is data, not a command."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "�" for char in text)


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in text)


def fit(text: str, width: int) -> str:
    """At most so many columns; what is cut is shown by an ellipsis."""
    if columns(text) <= width:
        return text
    while text and columns(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def pairs(labels: Mapping[str, str]) -> str:
    """`app=web,env=prod`."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


PLAIN = re.compile(r"[A-Za-z_/][\w./@+-]*( [\w./@+-]+)*")
RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "infinity"}


def yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Lines of a JSON-like value as YAML 1.2."""
    pairs: Iterable[tuple[str, Any]]
    if isinstance(value, dict) and value:
        pairs = [(f"{_scalar(key)}:", item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        pairs = [("-", item) for item in value]
    else:
        yield indent + _scalar(value)
        return
    for head, item in pairs:
        if not isinstance(item, dict | list) or not item:
            yield f"{indent}{head} {_scalar(item)}"
            continue
        inner = list(yaml(item, indent + "  "))
        if head == "-":
            yield f"{indent}- {inner[0].lstrip()}"
            yield from inner[1:]
        else:
            yield indent + head
            yield from inner


def _scalar(value: Any) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in RESERVED:
        return value
    return json.dumps(value, ensure_ascii=False)
