"""Filters as values and as conditions of SQL."""

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from lading_server import errors
from lading_server.store.event_filter import EventFilter, Field, Match, conditions, is_action, pattern_of
from lading_server.store.schema import TARGET_NAME

DIALECTS: dict[str, sa.Dialect] = {"postgresql": postgresql.dialect(), "sqlite": sqlite.dialect()}  # type: ignore[no-untyped-call]


def sql(wanted: EventFilter, dialect: str) -> str:
    found = sa.and_(sa.true(), *conditions(wanted, dialect))
    return str(found.compile(dialect=DIALECTS[dialect], compile_kwargs={"literal_binds": True}))


def test_a_digest_is_of_everything_but_the_times() -> None:
    actor = Match(Field.ACTOR, ("ada",))
    one = EventFilter(since=1, until=2, matches=(actor,))
    assert one.digest("acme") == EventFilter(since=5, matches=(actor,)).digest("acme")
    others = [
        one.digest("globex"),
        EventFilter().digest("acme"),
        EventFilter(matches=(Match(Field.ACTOR, ("ada",), negate=True),)).digest("acme"),
        EventFilter(matches=(Match(Field.TARGET, ("ada",)),)).digest("acme"),
        EventFilter(matches=(actor,), latest_only=True).digest("acme"),
        EventFilter(matches=(actor,), changes_only=True).digest("acme"),
        EventFilter(matches=(actor,), words=("x",)).digest("acme"),
    ]
    assert len({one.digest("acme"), *others}) == len(others) + 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_conditions_are_those_of_the_partial_indexes(dialect: str) -> None:
    def of(field: Field, *values: str) -> str:
        return sql(EventFilter(matches=(Match(field, values),)), dialect)

    assert "events.outcome > 1" in of(Field.OUTCOME, "FAILURE", "DENIED")
    assert "events.outcome > 1" not in of(Field.OUTCOME, "FAILURE", "SUCCESS")
    assert "events.outcome > 1" not in of(Field.OUTCOME, "FAILURE", "PENDING")
    assert "events.outcome > 1" in of(Field.CODE, "NOT_FOUND")
    assert "events.actor_email != ''" in of(Field.ACTOR, "a@b.example")
    assert "events.agent != ''" in of(Field.AGENT, "dock-1")
    assert "events.agent != ''" not in of(Field.AGENT, "")
    assert "events.request_id != ''" in of(Field.CORRELATION, "x")
    assert TARGET_NAME in of(Field.TARGET, "web")
    assert sql(EventFilter(changes_only=True), dialect).endswith("events.changes")


@pytest.mark.parametrize("field", Field)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_value_gets_into_the_text_of_a_statement(field: Field, dialect: str) -> None:
    value = "SUCCESS*" if field == Field.OUTCOME else "OK*" if field == Field.CODE else "use*'; DROP"
    if field == Field.ACTOR_TYPE:
        value = "user"
    wanted = EventFilter(matches=(Match(field, (value, value)), Match(field, (value,), negate=True)), words=(value,))
    found = sa.and_(*conditions(wanted, dialect)).compile(dialect=DIALECTS[dialect])
    assert "DROP" not in str(found)


def test_a_nul_is_looked_for_as_what_is_stored_for_it() -> None:
    assert "a\ufffdb" in sql(EventFilter(matches=(Match(Field.REASON, ("a\0b",)),)), "sqlite")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(errors.InvalidArgument, match="PENDING, SUCCESS, FAILURE"):
        sql(EventFilter(matches=(Match(Field.OUTCOME, ("DONE",)),)), "sqlite")


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("container.start", {"container.start"}),
        ("start", {"container.start"}),
        ("st*", {"container.start", "container.stop"}),
        ("CONTAINER.*", {"container.start", "container.stop"}),
        ("*.role.*", {"rbac.role.assign"}),
        ("container", set()),
        ("", set()),
    ],
)
def test_a_value_without_a_dot_means_the_verb(value: str, meant: set[str]) -> None:
    actions = ["container.start", "container.stop", "rbac.role.assign"]
    assert {action for action in actions if is_action(action, [value])} == meant


@given(st.text(), st.text(), st.text())
def test_a_star_stands_for_any_text_and_nothing_else_does(head: str, middle: str, tail: str) -> None:
    head, tail = head.replace("*", ""), tail.replace("*", "")
    assert pattern_of(f"{head}*{tail}").fullmatch(head + middle + tail)
    assert not pattern_of(f"{head}*{tail}").fullmatch(f"{head}{middle}{tail}x") or tail[-1:] in ("", "x", "X")
