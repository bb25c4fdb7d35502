"""Which events: a filter as a value, and as conditions of SQL.

Text is compared without case for ASCII letters only, alike on both databases. NUL, which no database text holds, is
looked for as what the ledger stores in its place.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import sqlalchemy as sa

from lading_server import errors
from lading_server.errors import Code
from lading_server.event import ActorType, Outcome
from lading_server.store import schema
from lading_server.store.schema import events

ACTIONS_MAX = 300
"""A log with more actions than this is searched for a verb row by row."""

Condition = sa.ColumnElement[bool]
UNSUCCESSFUL: Condition = events.c.outcome > sa.literal_column("1")
"""As the index of these has it."""
CHANGES: Condition = sa.literal_column("events.changes").self_group()  # of no type, for which SQLite gets "= 1"


class Field(IntEnum):
    """Numbers as in lading.v1.Field."""

    ACTOR = 1
    ACTION = 2
    TARGET = 3
    AGENT = 4
    OUTCOME = 5
    CODE = 6
    REASON = 7
    OPERATION = 8
    CORRELATION = 9
    EVENT = 10
    PEER = 11
    SOURCE = 12
    ACTOR_TYPE = 13
    ERROR = 14


@dataclass(frozen=True, slots=True)
class Match:
    """One of `values` in a field, or none of them. `*` in a value stands for any text."""

    field: Field
    values: tuple[str, ...]
    negate: bool = False


@dataclass(frozen=True, slots=True)
class EventFilter:
    """All of these hold. Times in microseconds since the epoch: recorded at or after `since`, before `until`."""

    since: int | None = None
    until: int | None = None
    matches: tuple[Match, ...] = ()
    words: tuple[str, ...] = ()
    latest_only: bool = False
    changes_only: bool = False

    def digest(self, organization: str) -> str:
        """Short fingerprint of the organization and everything but the times, which move while one reads."""
        rest = (organization, self.matches, self.words, self.latest_only, self.changes_only)
        return hashlib.sha256(repr(rest).encode()).hexdigest()[:16]


def conditions(
    wanted: EventFilter, dialect: str, actions: Sequence[str] | None = None, as_of: int | None = None
) -> list[Condition]:
    """All of the filter but organization and times. Raises InvalidArgument for names that there are not.

    `actions`: those of the log (see `actions_of`), so that a verb or a wildcard finds its events by an index.
    `as_of`: an index; what came later supersedes nothing.
    """
    text = Text(dialect)
    found = [condition_of(match, text, actions) for match in wanted.matches]
    found += [word_condition(word.replace("\0", "\ufffd"), text) for word in wanted.words]
    if wanted.latest_only and as_of is None:
        found.append(events.c.superseded_by.is_(None))
    elif wanted.latest_only:
        found.append(events.c.superseded_by.is_(None) | (events.c.superseded_by >= as_of))
    if wanted.changes_only:
        found.append(CHANGES)
    return found


def condition_of(match: Match, text: "Text", actions: Sequence[str] | None = None) -> Condition:
    """What one match asks of an event."""
    values = [value.replace("\0", "\ufffd") for value in match.values]
    if match.field in NAMED:
        return named_condition(match, values)
    if match.field == Field.ACTION and actions is not None:
        meant = [action for action in actions if is_action(action, values)]
        found: Condition = events.c.action.in_(meant) if meant else sa.false()
    else:
        found = sa.or_(
            *FINDERS[match.field](text, [v for v in values if "*" not in v], [v for v in values if "*" in v])
        )
    return sa.not_(found) if match.negate else found


class Text:
    """Comparisons of text in the SQL of one database."""

    def __init__(self, dialect: str) -> None:
        self._is_postgresql = dialect == "postgresql"

    def like(self, column: sa.ColumnElement[str], pattern: str) -> Condition:
        """`*` stands for any text, everything else for itself; ASCII letters without case."""
        escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
        if self._is_postgresql:
            return sa.collate(column, "C").ilike(escaped, escape="\\")
        return column.like(escaped, escape="\\")

    def any_of(self, column: sa.ColumnElement[str], exact: Sequence[str], patterns: Sequence[str]) -> list[Condition]:
        """Alternatives: the column is one of `exact`, or is like one of `patterns`."""
        found = [column.in_(exact)] if exact else []
        return found + [self.like(column, pattern) for pattern in patterns]

    def detail(self, key: str, value: str, forms: Iterable[str] = ("{}",)) -> Condition:
        """One of an event's details is like one of the forms of a value."""
        # Not ->>, which fails on an escaped NUL anywhere in the document.
        at = f"events.details::json -> '{key}'" if self._is_postgresql else f"events.details -> '$.{key}'"
        found = sa.literal_column(f"coalesce(cast({at} AS text), '')", sa.Text)
        # The first condition spares most documents from being parsed, the second is exact.
        somewhere = f'*"{key}":"*{quoted(value)[1:-1]}*'
        return self.like(events.c.details, somewhere) & sa.or_(
            *(self.like(found, quoted(form.format(value))) for form in forms)
        )


def quoted(value: str) -> str:
    """As the ledger writes it in JSON."""
    return json.dumps(value, ensure_ascii=False)


def indexed(column: sa.Column[str], values: Sequence[str]) -> list[Condition]:
    """The column is one of `values`, where its index leaves empty ones out."""
    found: list[Condition] = []
    if full := [value for value in values if value]:
        found.append(column.in_(full) & (column != sa.literal_column("''")))
    if len(full) < len(values):
        found.append(column == "")
    return found


def by_actor(text: Text, exact: Sequence[str], patterns: Sequence[str]) -> list[Condition]:
    by_email = indexed(events.c.actor_email, [value for value in exact if value])
    return [*text.any_of(events.c.actor, exact, patterns), *by_email, *text.any_of(events.c.actor_email, (), patterns)]


def by_action(text: Text, exact: Sequence[str], patterns: Sequence[str]) -> list[Condition]:
    forms = [form for value in (*exact, *patterns) for form in action_forms(value)]
    return text.any_of(events.c.action, exact, [form for form in forms if "*" in form])


def by_target(text: Text, exact: Sequence[str], patterns: Sequence[str]) -> list[Condition]:
    found: list[Condition] = []
    name = sa.literal_column(schema.TARGET_NAME, sa.Text)
    for value in exact:
        if not value:
            found.append(events.c.target == "")
        elif "/" in value:
            found += indexed(events.c.target, [value])
        else:
            found.append((name == value[:200]) & (events.c.target != sa.literal_column("''")))
            if len(value) > 200:
                found[-1] &= (events.c.target == value) | events.c.target.endswith(f"/{value}", autoescape=True)
    return [*found, *text.any_of(events.c.target, (), [*patterns, *(f"*/{value}" for value in patterns)])]


def by_agent(text: Text, exact: Sequence[str], patterns: Sequence[str]) -> list[Condition]:
    return [*indexed(events.c.agent, exact), *text.any_of(events.c.agent, (), patterns)]


def by_operation(text: Text, exact: Sequence[str], patterns: Sequence[str]) -> list[Condition]:
    ids = [value.removeprefix("commands/").lower() for value in exact]
    return [*text.any_of(events.c.operation, ids, patterns), *indexed(events.c.parent, [id for id in ids if id])]


def by_correlation(text: Text, exact: Sequence[str], patterns: Sequence[str]) -> list[Condition]:
    found = [*indexed(events.c.request_id, exact), *text.any_of(events.c.request_id, (), patterns)]
    # A trace id has no index: rows are read for what can be one, and for nothing else.
    traces = [value for value in exact if re.fullmatch("[0-9a-f]{32}", value)]
    return [*found, *(text.detail("trace_id", value) for value in (*traces, *patterns))]


def by_peer(text: Text, exact: Sequence[str], patterns: Sequence[str]) -> list[Condition]:
    forms = ("{}", "ipv4:{}:*", "ipv6:[{}]:*", "ipv6:%5B{}%5D:*")
    return [text.detail("peer", value, forms) for value in (*exact, *patterns)]


def by_column(
    column: sa.Column[str], fold: Callable[[str], str] = str
) -> Callable[[Text, Sequence[str], Sequence[str]], list[Condition]]:
    return lambda text, exact, patterns: text.any_of(column, [fold(value) for value in exact], patterns)


FINDERS = {
    Field.ACTOR: by_actor,
    Field.ACTION: by_action,
    Field.TARGET: by_target,
    Field.AGENT: by_agent,
    Field.REASON: by_column(events.c.reason),
    Field.OPERATION: by_operation,
    Field.CORRELATION: by_correlation,
    Field.EVENT: by_column(events.c.id, str.lower),
    Field.PEER: by_peer,
    Field.SOURCE: by_column(events.c.source),
    Field.ERROR: by_column(events.c.error),
}

NAMED: dict[Field, tuple[str, sa.Column[int], dict[str, int]]] = {
    Field.OUTCOME: ("outcome", events.c.outcome, {outcome.name: int(outcome) for outcome in Outcome}),
    Field.CODE: ("code", events.c.code, {code.name: int(code) for code in Code}),
    Field.ACTOR_TYPE: ("kind of actor", events.c.actor_type, {kind.name.lower(): int(kind) for kind in ActorType}),
}
"""Fields whose values have names: what one is called, its column, and the numbers of the names."""


def named_condition(match: Match, values: Sequence[str]) -> Condition:
    title, column, names = NAMED[match.field]
    numbers: set[int] = set()
    for value in values:
        like = pattern_of(value)
        found = {number for name, number in names.items() if like.fullmatch(name)}
        if not found:
            raise errors.InvalidArgument(
                f"there is no {title} {value!r}: use one of {', '.join(names)}",
                violations={"filter.matches.values": f"{value!r} is none of {', '.join(names)}"},
            )
        numbers |= found
    if match.negate:
        numbers = set(names.values()) - numbers
    condition: Condition = column.in_(sorted(numbers))
    if match.field == Field.OUTCOME and min(numbers, default=0) > Outcome.SUCCESS:
        condition &= UNSUCCESSFUL
    if match.field == Field.CODE and Code.OK not in numbers:
        # No success, and nothing that has not ended, has another code than OK.
        condition &= events.c.outcome.in_([outcome for outcome in Outcome if outcome > Outcome.SUCCESS]) & UNSUCCESSFUL
    return condition


def word_condition(word: str, text: Text) -> Condition:
    """A word of a search: an id is looked up, by indexes; anything else is looked for in texts."""
    if is_uuid(word.lower()):
        lookups = [by_operation, FINDERS[Field.EVENT], by_target, by_actor]
        found = [condition for lookup in lookups for condition in lookup(text, [word.lower()], ())]
        return sa.or_(*found, *indexed(events.c.request_id, sorted({word, word.lower()})))
    columns = (events.c.target, events.c.actor, events.c.actor_email, events.c.reason, events.c.error, events.c.action)
    found = [text.like(column, f"*{word}*") for column in columns]
    return sa.or_(*found, *indexed(events.c.request_id, [word]))


def actions_of(connection: sa.Connection, organization: str) -> list[str] | None:
    """The actions in a log, by one look into the index for each; None when they are more than ACTIONS_MAX."""
    named = sa.select(sa.func.min(events.c.action).label("action")).where(events.c.organization == organization)
    names = named.cte("names", recursive=True)
    step = named.where(events.c.action > names.c.action).scalar_subquery()
    names = names.union_all(sa.select(step).where(names.c.action.is_not(None)))
    listed = sa.select(names.c.action).where(names.c.action.is_not(None)).limit(ACTIONS_MAX + 1)
    found = list(connection.scalars(listed))
    return found if len(found) <= ACTIONS_MAX else None


def is_lookup(wanted: EventFilter) -> bool:
    """Whether it asks for ids: then indexes have the few events, and the order of the log leads astray."""
    ids = (Field.OPERATION, Field.CORRELATION, Field.EVENT)
    return any(match.field in ids and not match.negate for match in wanted.matches) or any(
        is_uuid(word.lower()) for word in wanted.words
    )


def needs_actions(wanted: EventFilter) -> bool:
    """Whether some condition on the action is not simply its name."""
    values = [value for match in wanted.matches if match.field == Field.ACTION for value in match.values]
    return any("*" in value or "." not in value for value in values)


def is_action(action: str, values: Iterable[str]) -> bool:
    """Whether an action is one of those meant."""
    return any(
        pattern_of(form).fullmatch(action) if "*" in form else form == action
        for value in values
        for form in action_forms(value)
    )


def action_forms(value: str) -> tuple[str, ...]:
    """A value without a dot is an action, or the verb of one."""
    return (value,) if "." in value else (value, f"*.{value}")


def pattern_of(value: str) -> re.Pattern[str]:
    """A value with wildcards as a regular expression."""
    return re.compile(".*".join(map(re.escape, value.split("*"))), re.IGNORECASE | re.DOTALL | re.ASCII)


def is_uuid(value: str) -> bool:
    return re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value) is not None
