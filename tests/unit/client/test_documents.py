import csv
import io
import json

from hypothesis import given
from hypothesis import strategies as st

from lading.v1 import audit_log_pb2
from lading_client import documents, labels
from lading_client.cli.export import csv_lines


@given(st.text())
def test_no_cell_is_a_formula(text: str) -> None:
    assert not documents.inert(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert documents.inert(text).endswith(text)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_csv_is_read_back_by_others(reasons: list[str]) -> None:
    events = [audit_log_pb2.Event(index=index, reason=reason) for index, reason in enumerate(reasons)]
    text = "".join(line + "\n" for line in csv_lines(events))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["reason"] for row in rows] == [documents.inert(reason) for reason in reasons]
    assert [row["index"] for row in rows] == [str(event.index) for event in events]


def test_a_document_has_the_names_of_the_protos() -> None:
    event = audit_log_pb2.Event(id="e", outcome=audit_log_pb2.OUTCOME_DENIED, messages_in=3)
    event.recorded_at.FromJsonString("2026-11-21T18:10:22.686Z")
    found = json.loads(documents.json_line(event))
    assert found["recorded_at"] == "2026-11-21T18:10:22.686Z"
    assert found["outcome"] == "OUTCOME_DENIED"
    assert found["messages_in"] == "3"
    assert found["targets"] == []


def test_an_event_without_end_is_pending() -> None:
    assert labels.outcome(audit_log_pb2.Event()) == "PENDING"
    assert documents.csv_row(audit_log_pb2.Event())[documents.CSV_HEADER.index("code")] == ""


def test_actions_on_containers_are_verbs() -> None:
    assert labels.action(audit_log_pb2.Event(action="container.stop")) == "STOP"
    assert labels.action(audit_log_pb2.Event(action="image.pull")) == "PULL"
    assert labels.action(audit_log_pb2.Event(action="rbac.role.assign")) == "rbac.role.assign"


def test_what_a_newer_server_says_is_shown_as_it_is() -> None:
    assert labels.outcome(audit_log_pb2.Event(outcome=99)) == "OUTCOME_99"  # type: ignore[arg-type]
    assert labels.code(99) == "CODE_99"
