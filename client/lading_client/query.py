"""The query language of the audit log, for the command line and the viewer. Pure; no text is an error.

    action:stop,kill -status:SUCCESS user:*@acme.example since:2h "disk full"

`field:value`, alternatives after commas, `-field:value` for none of them, `*` for any text, quotes around what holds
spaces, commas or colons (`\\"` and `\\\\` inside them). Bare words must occur in target, user, reason, error or action,
or be the id of an event, command or correlation. `since:2h` is a span or a time; `from:` and `to:` are times, `at:` is
the day, hour, minute or second that it names; a `to:` includes its own. All terms must hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from lading.v1 import audit_log_pb2
from lading_client import names
from lading_client.requests import timestamp

FIELDS: Mapping[str, audit_log_pb2.Field.ValueType] = {
    "user": audit_log_pb2.FIELD_ACTOR,
    "action": audit_log_pb2.FIELD_ACTION,
    "target": audit_log_pb2.FIELD_TARGET,
    "agent": audit_log_pb2.FIELD_AGENT,
    "status": audit_log_pb2.FIELD_OUTCOME,
    "code": audit_log_pb2.FIELD_CODE,
    "reason": audit_log_pb2.FIELD_REASON,
    "cmd": audit_log_pb2.FIELD_OPERATION,
    "corr": audit_log_pb2.FIELD_CORRELATION,
    "id": audit_log_pb2.FIELD_EVENT,
    "ip": audit_log_pb2.FIELD_PEER,
    "source": audit_log_pb2.FIELD_SOURCE,
}
TIMES = ("since", "from", "to", "at")
ALIASES = {
    "actor": "user",
    "outcome": "status",
    "operation": "cmd",
    "command": "cmd",
    "correlation": "corr",
    "event": "id",
    "peer": "ip",
}
STATUSES = (*(name.removeprefix("OUTCOME_") for name in audit_log_pb2.Outcome.keys()[1:]), "PENDING")

# As in the field rules of EventFilter; what is over them is left out, with a warning.
MATCHES_MAX, VALUES_MAX, VALUE_LENGTH_MAX, WORDS_MAX, WORD_LENGTH_MAX = 30, 50, 512, 10, 256

SPAN = re.compile(r"(\d+)(s|m|h|d|w)")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
PRECISIONS = (
    (re.compile(r"\d{4}-\d\d-\d\d"), timedelta(days=1)),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d"), timedelta(hours=1)),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d"), timedelta(minutes=1)),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"), timedelta(seconds=1)),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}"), timedelta(0)),
)
ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)$")


@dataclass(frozen=True)
class Term:
    """One condition. `field` is a key of FIELDS or one of TIMES; empty for a bare word."""

    field: str
    values: tuple[str, ...]
    negate: bool = False

    def __str__(self) -> str:
        sign = "-" if self.negate else ""
        field = f"{self.field}:" if self.field else ""
        return sign + field + ",".join(quote(value) for value in self.values)


@dataclass(frozen=True)
class Query:
    """What a text asks for. `terms` are those that apply; `warnings` say, in sentences, what does not."""

    filter: audit_log_pb2.EventFilter
    terms: tuple[Term, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return write(self.terms)


def write(terms: Iterable[Term]) -> str:
    """The text whose terms these are."""
    return " ".join(str(term) for term in terms)


def quote(value: str) -> str:
    """The value as it is written in a query."""
    if value and not value.startswith("-") and not re.search(r'[\s",:\\]', value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse(text: str, now: datetime, zone: tzinfo | None = UTC) -> Query:
    """The query of `text`. `now` is aware; `zone` is that of times which do not name one, None for this machine's."""
    reading = Reading(now, zone)
    # What cannot be encoded or is invisible is not what anybody searches for.
    clean = text.encode("utf-8", "replace").decode()
    for word in split("".join(char if char.isprintable() else " " for char in clean)):
        reading.take(word)
    return Query(reading.filter, tuple(reading.terms), tuple(dict.fromkeys(reading.warnings)))


Word = list[tuple[str, bool]]  # characters, each with whether it was in quotes


def split(text: str) -> Iterator[Word]:
    """Words of a text; a quote that is not closed reaches to the end."""
    word: Word = []
    quoted = escaped = began = False
    for char in text:
        if escaped:
            word.append((char, True))
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted, began = not quoted, True
        elif char.isspace() and not quoted:
            if word or began:
                yield word
            word, began = [], False
        else:
            word.append((char, quoted))
    if word or began:
        yield word


def pieces(word: Word, separator: str, count: int = -1) -> list[Word]:
    """The word cut at unquoted separators, at most `count` times."""
    parts: list[Word] = [[]]
    for char, quoted in word:
        if char == separator and not quoted and count != 0:
            parts.append([])
            count -= 1
        else:
            parts[-1].append((char, quoted))
    return parts


def plain(word: Word) -> str:
    return "".join(char for char, _ in word)


class Reading:
    """A text on its way to a filter."""

    def __init__(self, now: datetime, zone: tzinfo | None) -> None:
        self.now = now
        self.zone = zone
        self.filter = audit_log_pb2.EventFilter()
        self.terms: list[Term] = []
        self.warnings: list[str] = []

    def take(self, word: Word) -> None:
        head, *rest = pieces(word, ":", 1)
        if not rest:
            self._word(plain(word))
            return
        negate = bool(head) and head[0] == ("-", False)
        name = plain(head[1:] if negate else head).lower()
        field = ALIASES.get(name, name)
        values = tuple(dict.fromkeys(value for part in pieces(rest[0], ",") if (value := plain(part).strip())))
        if field not in FIELDS and field not in TIMES:
            known = ", ".join((*FIELDS, *TIMES))
            self.warnings.append(f"There is no field {name!r}. Fields: {known}. In quotes it is searched as text.")
        elif not values:
            self.warnings.append(f"{name}: has no value.")
        elif field in TIMES:
            self._time(field, values, negate)
        else:
            self._match(field, values, negate)

    def _word(self, word: str) -> None:
        word = word.strip()
        if not word:
            return
        if len(self.filter.words) == WORDS_MAX:
            self.warnings.append(f"More than {WORDS_MAX} words: the rest is left out.")
            return
        if len(word) > WORD_LENGTH_MAX:
            self.warnings.append(f"A word is longer than {WORD_LENGTH_MAX} characters: the rest of it is left out.")
            word = word[:WORD_LENGTH_MAX].strip()
        self.filter.words.append(word)
        self.terms.append(Term("", (word,)))

    def _match(self, field: str, values: tuple[str, ...], negate: bool) -> None:
        normal = tuple(dict.fromkeys(normalize(field, value) for value in values))
        if field == "status" and (wrong := [value for value in normal if "*" not in value and value not in STATUSES]):
            self.warnings.append(f"There is no status {', '.join(wrong)}. Statuses: {', '.join(STATUSES)}.")
            normal = tuple(value for value in normal if value not in wrong)
        if any(len(value) > VALUE_LENGTH_MAX for value in normal):
            self.warnings.append(f"{field}: values longer than {VALUE_LENGTH_MAX} characters are left out.")
            normal = tuple(value for value in normal if len(value) <= VALUE_LENGTH_MAX)
        if len(normal) > VALUES_MAX:
            self.warnings.append(f"{field}: has more than {VALUES_MAX} values: the rest is left out.")
            normal = normal[:VALUES_MAX]
        if not normal:
            return
        if len(self.filter.matches) == MATCHES_MAX:
            self.warnings.append(f"More than {MATCHES_MAX} conditions: the rest is left out.")
            return
        self.filter.matches.add(field=FIELDS[field], values=normal, negate=negate)
        self.terms.append(Term(field, normal, negate))

    def _time(self, field: str, values: tuple[str, ...], negate: bool) -> None:
        value = values[0]
        if negate or len(values) > 1:
            self.warnings.append(f"{field}: takes one time, and cannot be excluded.")
            return
        try:
            begins, ends = self._span(value) if field == "since" and SPAN.fullmatch(value) else moment(value, self.zone)
            bounds = {
                "since": (timestamp(begins), None),
                "from": (timestamp(begins), None),
                "to": (None, timestamp(ends)),
                "at": (timestamp(begins), timestamp(ends)),
            }[field]
        except (ValueError, OverflowError):
            self.warnings.append(f"{field}:{value} is not a time. Times: 2h, 2026-11-20, 2026-11-20T14:05:00Z.")
            return
        for bound, time in zip(("since", "until"), bounds, strict=True):
            if time is not None:
                getattr(self.filter, bound).CopyFrom(time)
        self.terms = [term for term in self.terms if term.field != field]
        self.terms.append(Term(field, (value,)))

    def _span(self, value: str) -> tuple[datetime, datetime]:
        begins = self.now - span(value)
        return begins, begins


def span(text: str) -> timedelta:
    """Of `30s`, `15m`, `2h`, `7d`, `2w`; ValueError or OverflowError when it is none of these."""
    found = SPAN.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a span of time, as in 30s, 15m, 2h, 7d")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def moment(text: str, zone: tzinfo | None = UTC) -> tuple[datetime, datetime]:
    """Begin and end (not included) of the day, hour, minute or second that an ISO 8601 text names."""
    text = text.upper()
    named = ZONE.search(text) if "T" in text else None
    bare = text[: named.start()] if named else text
    width = next((width for pattern, width in PRECISIONS if pattern.fullmatch(bare)), None)
    if width is None:
        raise ValueError(f"{text!r} is not a time")
    begins = datetime.fromisoformat(text)
    if begins.tzinfo is None:
        begins = begins.replace(tzinfo=zone) if zone else begins.astimezone()
    return begins, begins + (width or timedelta(microseconds=1))


def normalize(field: str, value: str) -> str:
    """The value as events have it: actions lower case, statuses and codes upper case, names without collection."""
    match field:
        case "action":
            return value.lower()
        case "status" | "code":
            return value.upper()
        case "target" | "agent" | "cmd":
            return names.short(value)
        case _:
            return value
