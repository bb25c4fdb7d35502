"""What the drawer says of one event."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.struct_pb2 import ListValue

from lading.v1 import audit_log_pb2
from lading.v1.audit_log_pb2 import Event
from lading_viewer import event_drawer
from lading_viewer.moments import clock
from tests.unit.viewer.audit_server import event

NOW = datetime(2026, 11, 21, 18, 47, 46, 146_000, UTC)
BERLIN = clock(False, "Europe/Berlin")


def data(of: Event, *related: Event) -> dict[str, Any]:
    return event_drawer.data(of, related, BERLIN, "event=1")


def sentence(of: Event) -> str:
    return "".join(part["text"] for part in data(of)["sentence"])


def changes(*patch: dict[str, Any]) -> list[dict[str, str]]:
    diff = ListValue()
    for step in patch:
        diff.add_struct().update(step)
    rows: list[dict[str, str]] = data(event(1, NOW, diff=diff))["change"]
    return rows


def test_sentence_says_who_what_and_how_it_ended() -> None:
    denied = event(1, NOW, "container.kill", outcome=audit_log_pb2.OUTCOME_DENIED, code=7)
    assert sentence(denied) == "ada@acme.example asked to KILL dock-1/web; refused after 41 ms."
    pending = event(2, NOW, outcome=audit_log_pb2.OUTCOME_UNSPECIFIED)
    pending.ClearField("duration")
    assert sentence(pending) == "ada@acme.example asked to START dock-1/web; no result yet."


def test_flood_of_refused_calls_says_for_how_many_it_stands() -> None:
    flood = event(1, NOW)
    flood.count = 1200
    assert sentence(flood).endswith("This stands for 1\u00a0200 calls.")


def test_error_comes_with_what_to_do() -> None:
    failed = event(1, NOW, outcome=audit_log_pb2.OUTCOME_FAILURE, code=5, error="no such container: web")
    error = data(failed)["error"]
    assert (error["code"], error["text"]) == ("NOT_FOUND", "no such container: web")
    assert "lading ps" in error["advice"]
    assert data(event(1, NOW))["error"] is None


def test_timestamp_is_given_in_both_zones() -> None:
    (field,) = [field for field in data(event(1, NOW))["fields"] if field["name"] == "Timestamp"]
    assert field["value"] == "2026-11-21 18:47:46.146Z  (2026-11-21 19:47:46.146+0100)"
    assert field["copy"]


def test_what_is_unknown_has_no_field() -> None:
    names = [field["name"] for field in data(event(1, NOW))["fields"]]
    assert "Trace id" not in names
    assert "Happened at" not in names
    late = event(1, NOW)
    late.occurred_at.FromDatetime(NOW - timedelta(hours=2))
    assert "Happened at" in [field["name"] for field in data(late)["fields"]]


def test_ids_can_be_copied_and_followed() -> None:
    fields = {field["name"]: field for field in data(event(1, NOW, request_id="c-1"))["fields"]}
    assert fields["Event id"]["copy"]
    assert fields["Correlation id"]["find"] == {"field": "corr", "value": "c-1"}
    assert fields["Container"]["find"] == {"field": "target", "value": "dock-1/web"}


def test_change_shows_before_and_after() -> None:
    assert changes(
        {"op": "replace", "path": "/state", "value": "running", "was": "exited"},
        {"op": "add", "path": "/spec/env/A~1B", "value": 1},
        {"op": "remove", "path": "/owner", "was": {"name": "ana"}},
    ) == [
        {"field": "state", "before": "exited", "after": "running"},
        {"field": "spec.env.A/B", "before": "(none)", "after": "1"},
        {"field": "owner", "before": '{"name": "ana"}', "after": "(none)"},
    ]


def test_change_to_the_same_value_is_no_change() -> None:
    assert changes({"op": "replace", "path": "/a", "value": "x", "was": "x"}) == []
    assert data(event(1, NOW))["change"] is None


def test_secret_is_shown_as_hidden() -> None:
    row = changes({"op": "replace", "path": "/password", "value": "[redacted]", "was": "[redacted]"})
    assert row == [{"field": "password", "before": "changed (hidden)", "after": "changed (hidden)"}]


def test_time_line_has_gaps_and_marks_the_open_event() -> None:
    asked = event(1, NOW, stage=audit_log_pb2.STAGE_RECEIVED, outcome=audit_log_pb2.OUTCOME_UNSPECIFIED)
    done = event(2, NOW + timedelta(milliseconds=38), operation=asked.operation)
    answered = event(3, NOW + timedelta(milliseconds=40), operation=asked.parent)
    for of_command in (asked, done):
        of_command.ClearField("method")
    steps = data(done, asked, done, answered)["timeline"]
    assert [(step["word"], step["gap"], step["here"]) for step in steps] == [
        ("START recorded", "", False),
        ("START ended on the agent", "+38 ms", True),
        ("START answered", "+2 ms", False),
    ]


def test_raw_record_is_the_event_as_json() -> None:
    record = json.loads(data(event(1, NOW, reason="ünï ![x](http://h/b.png) <img onerror=x>"))["record"])
    assert record["reason"] == "ünï ![x](http://h/b.png) <img onerror=x>"
    assert record["outcome"] == "OUTCOME_SUCCESS"


def test_neighbours_are_those_of_the_table() -> None:
    listed = [event(index, NOW) for index in (3, 2, 1)]
    assert event_drawer.neighbours(listed[1].id, listed) == {"newer": listed[0].id, "older": listed[2].id}
    assert event_drawer.neighbours("elsewhere", listed) == {"newer": None, "older": None}


def test_address_of_the_caller_is_searched_without_its_port() -> None:
    for peer, host in (("ipv4:10.0.3.59:51620", "10.0.3.59"), ("ipv6:%5B::1%5D:7", "::1"), ("unix:", "unix:")):
        of = event(1, NOW)
        of.peer = peer
        (field,) = [field for field in data(of)["fields"] if field["name"] == "From"]
        assert field["find"] == {"field": "ip", "value": host}


def test_exec_session_is_told_by_its_command_line_exit_code_bytes_and_digest() -> None:
    asked = event(1, NOW, "container.exec", stage=audit_log_pb2.STAGE_RECEIVED)
    asked.request.update({"spec": {"command": ["sh", "-c", "exit 3"], "env": {"TOKEN": "[redacted]"}}})
    done = event(2, NOW, "container.exec", operation=asked.operation)
    ran: dict[str, Any] = {"exit_code": 3, "input_bytes": 0, "output_bytes": 1234, "output_sha256": "ab12"}
    done.details["exec"] = ran
    done.ClearField("request")
    found = data(done, asked, done)
    fields = {field["name"]: field["value"] for field in found["fields"]}
    assert fields["Command line"] == "sh -c 'exit 3'"
    assert fields["Exit code"] == "3"
    assert fields["Bytes"] == "0 in, 1,234 out"
    assert fields["SHA-256 of its output"] == "ab12"
    assert "[redacted]" in found["request"], "what was asked is with the command's first event"
    assert "Exit code" not in {field["name"] for field in data(event(3, NOW))["fields"]}
    # One that still ran when it was left alone.
    del ran["exit_code"]
    done.details["exec"] = ran
    assert "Exit code" not in {field["name"] for field in data(done, asked, done)["fields"] if field["value"]}


def test_drift_is_told_as_what_the_agent_saw() -> None:
    seen = event(1, NOW, "container.drift")
    seen.ClearField("duration")
    seen.ClearField("method")
    seen.details.update({"action": "die", "attributes": {"exitCode": "137", "signal": "9"}})
    assert sentence(seen) == "ada@acme.example reported a change that no command made to dock-1/web."
    fields = {field["name"]: field["value"] for field in data(seen)["fields"]}
    assert (fields["Engine event"], fields["The engine says"]) == ("die", "exitCode=137, signal=9")
    (step,) = data(seen, seen)["timeline"]
    assert step["word"] == "DRIFT reported by the agent"
    seen.outcome = audit_log_pb2.OUTCOME_UNKNOWN
    assert sentence(seen) == "ada@acme.example does not know all that happened on dock-1/web."


def test_advice_for_a_rollout_is_about_rollouts() -> None:
    failed = event(1, NOW, "rollout.stop", outcome=audit_log_pb2.OUTCOME_FAILURE, code=9, error="it is over")
    assert "lading rollouts ls" in data(failed)["error"]["advice"]
