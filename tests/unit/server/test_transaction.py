"""What a unit appends, as rows of the log."""

import json
from typing import Any

import pytest
import sqlalchemy as sa

from lading.transparency import entry
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger import rows
from lading_server.ledger.transaction import Head, Transaction

ADA = Actor(ActorType.USER, "ada", "ada@acme.example", "Ada", "token", "t1", "bob")


def event(**values: Any) -> Event:
    given: dict[str, Any] = {
        "id": "id",
        "organization": "acme",
        "operation": "op",
        "stage": Stage.COMPLETED,
        "occurred_at": 1,
        "actor": ADA,
        "action": "task.update",
        "outcome": Outcome.SUCCESS,
    }
    return Event(**(given | values))


@pytest.fixture
def transaction() -> Transaction:
    """Of a process that has emitted 7 events into the log acme, which has 10, and none into globex."""
    heads = {"acme": Head(10, 10, 500, bytes(64), 7), "globex": Head(0, 0, 0, b"")}
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        made = Transaction(connection, heads, "boot", 400)
    engine.dispose()
    return made


def encoded(**values: Any) -> dict[str, Any]:
    return dict(zip(rows.COLUMNS, rows.encode(event(**values), 3, 9, "boot", 8), strict=True))


def test_row_has_every_column_and_the_rest_in_its_details() -> None:
    row = encoded(
        targets=(("container", "dock-1/web"), ("agent", "dock-1")), reason="why", code=5, count=2, details={"peer": "x"}
    )
    assert (row["organization"], row["index"], row["recorded_at"], row["sequence"]) == ("acme", 3, 9, 8)
    assert (row["actor"], row["actor_email"], row["target_type"], row["target"]) == (
        "ada",
        "ada@acme.example",
        "container",
        "dock-1/web",
    )
    assert (row["reason"], row["code"], row["count"], row["superseded_by"]) == ("why", 5, 2, None)
    details = json.loads(row["details"])
    assert details["actor"] == {
        "name": "Ada",
        "email": "ada@acme.example",
        "auth_method": "token",
        "credential": "t1",
        "on_behalf_of": "bob",
    }
    assert (details["peer"], details["reason"], details["count"]) == ("x", "why", 2)
    written = entry.parse_entry(row["entry"])
    entry.check_details(written, row["salt"], details)
    assert written["targets"] == [{"id": "dock-1/web", "type": "container"}, {"id": "dock-1", "type": "agent"}]


@pytest.mark.parametrize("name", ["target", "reason", "error", "actor", "request_id"])
def test_nul_becomes_a_character_that_every_database_takes(name: str) -> None:
    values = {
        "target": {"targets": (("container", "we\0b"),)},
        "actor": {"actor": Actor(ActorType.USER, "we\0b")},
    }
    assert encoded(**values.get(name, {name: "we\0b"}))[name] == "we\ufffdb"


def test_details_are_json_whatever_they_hold() -> None:
    held = {"nul": "\0", "quote": '"', "script": "世", "break": "\n", "list": [1, None, {"a": True}]}
    details = json.loads(encoded(details=held)["details"])
    assert {key: details[key] for key in held} == held


def test_indexes_and_sequence_go_on_where_they_were(transaction: Transaction) -> None:
    assert [transaction.append(event(organization=name)) for name in ("acme", "globex", "acme")] == [10, 0, 11]
    assert [row[rows.COLUMNS.index("sequence")] for row in transaction.rows] == [8, 1, 9]


def test_time_is_that_of_the_log_when_the_clock_is_behind(transaction: Transaction) -> None:
    assert transaction.recorded_at == 500


def test_what_was_appended_since_a_mark_can_be_forgotten(transaction: Transaction) -> None:
    transaction.append(event())
    mark = transaction.mark()
    transaction.append(event(follows=True))
    transaction.append(event(organization="globex", follows=True))
    transaction.reset(mark)
    assert (len(transaction.rows), transaction.follows) == (1, [])
    assert (transaction.append(event()), transaction.append(event(organization="globex"))) == (11, 0)


def test_log_that_is_not_held_takes_no_event(transaction: Transaction) -> None:
    with pytest.raises(KeyError):
        transaction.append(event(organization="umbrella"))
    assert transaction.rows == []
