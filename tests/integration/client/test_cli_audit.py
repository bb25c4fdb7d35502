import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from google.rpc import code_pb2

from lading.v1 import audit_log_pb2
from tests.integration.client.conftest import Lading, make_token
from tests.integration.client.fake_server import Fleet, error_info


@pytest.fixture
def events(fleet: Fleet) -> Fleet:
    for index in range(7):
        event = audit_log_pb2.Event(
            id=f"e{index}",
            index=index,
            operation=f"op{index}",
            action="container.stop",
            actor=audit_log_pb2.Actor(type=audit_log_pb2.ACTOR_TYPE_USER, id="ada", email="ada@acme.example"),
            targets=[audit_log_pb2.Target(type="container", id=f"dock-1/c{index}")],
            outcome=audit_log_pb2.OUTCOME_SUCCESS,
            stage=audit_log_pb2.STAGE_COMPLETED,
            changes=True,
        )
        event.recorded_at.FromJsonString(f"2026-11-21T18:10:0{index}Z")
        fleet.events.append(event)
    fleet.events[3].outcome = audit_log_pb2.OUTCOME_FAILURE
    fleet.events[3].code = 9
    fleet.events[3].reason = "=cmd()"
    fleet.events[4].outcome = audit_log_pb2.OUTCOME_UNKNOWN
    fleet.events[5].diff.add_struct().update({"op": "replace", "path": "/role", "was": "viewer", "value": "admin"})
    return fleet


def test_ls_shows_the_last_word_and_how_to_go_on(events: Fleet, lading: Lading) -> None:
    exit_code, out, err = lading("audit", "ls", "action:stop -status:SUCCESS", "--since", "7d", "--limit", "4")
    assert exit_code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["TIMESTAMP", "USER", "ACTION", "TARGET", "REASON", "STATUS"]
    assert len(lines) == 5
    assert "■ STOP" in lines[1]
    assert "✗ FAILURE FAILED_PRECONDITION" in lines[4]
    assert "(none)" in lines[1]
    since = events.asked("ListEvents")[0].filter.since.ToJsonString()
    assert err == f"more: lading audit ls 'action:stop -status:SUCCESS' --since {since} --limit 4 --cursor 4\n"
    (request,) = events.asked("ListEvents")
    assert request.filter.latest_only
    assert request.filter.HasField("since")
    assert [(match.field, match.negate) for match in request.filter.matches] == [(2, False), (5, True)]
    assert lading("audit", "ls", "--limit=4", "--cursor=4")[1].count("\n") == 4


def test_a_query_may_begin_with_an_exclusion(events: Fleet, lading: Lading) -> None:
    assert lading("audit", "ls", "-status:SUCCESS", "-outcome:UNKNOWN", "dock")[0] == 0
    (request,) = events.asked("ListEvents")
    assert [(match.field, match.negate) for match in request.filter.matches] == [(5, True), (5, True)]
    assert list(request.filter.words) == ["dock"]


def test_all_shows_every_stage(events: Fleet, lading: Lading) -> None:
    lading("audit", "ls", "--all")
    assert not events.asked("ListEvents")[0].filter.latest_only


def test_an_unknown_field_is_said_and_the_rest_applies(events: Fleet, lading: Lading) -> None:
    exit_code, _, err = lading("audit", "ls", "colour:red action:stop")
    assert exit_code == 0
    assert "colour" in err
    assert len(events.asked("ListEvents")[0].filter.matches) == 1


def test_what_is_not_known_is_never_green(events: Fleet, lading: Lading, monkeypatch: pytest.MonkeyPatch) -> None:
    from lading_client.cli import output

    assert output.status("UNKNOWN").color == "yellow"
    assert output.status("A_NEW_WORD").color != "green"


def test_show_tells_what_changed(events: Fleet, lading: Lading) -> None:
    exit_code, out, _ = lading("audit", "show", "e5")
    assert exit_code == 0
    assert '− "viewer"' in out
    assert '+ "admin"' in out
    assert json.loads(lading("audit", "show", "e5", "--raw")[1])["index"] == "5"
    assert lading("audit", "show", "none")[0] == 4


def test_tail_is_in_the_order_in_which_events_came(events: Fleet, lading: Lading) -> None:
    _, out, _ = lading("audit", "tail", "-n", "3", "-o", "name")
    assert out.splitlines() == ["e4", "e5", "e6"]
    assert lading("audit", "tail", "-f", "since:2h")[0] == 2


def test_a_followed_tail_shows_each_event_once(events: Fleet, address: str, home: pathlib.Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lading_client.cli", "audit", "tail", "-f", "-n", "3", "-o", "jsonl"],
        env={**os.environ, "LADING_SERVER": address, "LADING_TOKEN": make_token()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    seen = [json.loads(process.stdout.readline())["id"] for _ in range(3)]
    events.events.append(audit_log_pb2.Event(id="e7", index=7))
    seen.append(json.loads(process.stdout.readline())["id"])
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert seen == ["e4", "e5", "e6", "e7"]
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_tail_that_is_refused_for_now_does_not_say_that_the_server_is_away(
    events: Fleet, address: str, home: pathlib.Path
) -> None:
    events.fail("TailEvents", code_pb2.RESOURCE_EXHAUSTED, "too many tails", error_info("OVERLOADED"))
    with subprocess.Popen(
        [sys.executable, "-m", "lading_client.cli", "audit", "tail", "-f", "-n", "3", "-o", "jsonl"],
        env={**os.environ, "LADING_SERVER": address, "LADING_TOKEN": make_token()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        said = process.stderr.readline()
        events.events.append(audit_log_pb2.Event(id="e7", index=7))
        again = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert said == (
        "The server does not serve this tail now (RESOURCE_EXHAUSTED: too many tails). "
        "Trying again until it does; nothing will be left out.\n"
    )
    assert again == "The server serves this tail again.\n"
    assert process.returncode == 130


def test_stats_counts(events: Fleet, lading: Lading) -> None:
    exit_code, out, _ = lading("audit", "stats", "--by", "status")
    assert exit_code == 0
    assert "4 events, 1 of them failed" in out
    assert "FAILURE" in out
    assert lading("audit", "stats", "--by", "reason")[0] == 2


def test_export_writes_csv_that_a_spreadsheet_may_open(events: Fleet, lading: Lading, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "audit.csv"
    exit_code, printed, err = lading("audit", "export", "--format", "csv", "--out", str(out))
    assert (exit_code, printed) == (0, "")
    assert "7 events" in err
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 7
    assert rows[3]["reason"] == "'=cmd()"
    assert rows[3]["code"] == "FAILED_PRECONDITION"
    assert json.loads(rows[5]["diff"])[0]["was"] == "viewer"
    assert events.asked("ExportEvents")[0].format == "csv"


def test_export_writes_json_lines(events: Fleet, lading: Lading) -> None:
    _, out, _ = lading("audit", "export")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [f"e{index}" for index in range(7)]


def test_an_export_that_breaks_leaves_the_old_file(events: Fleet, lading: Lading, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "audit.jsonl"
    out.write_text("before")
    events.fail("ExportEnd", code_pb2.INTERNAL, "broken")
    assert lading("audit", "export", "--out", str(out))[0] == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["audit.jsonl"]
    assert out.read_text() == "before"
    assert lading("audit", "export", "--out", str(tmp_path / "no" / "folder"))[0] == 1


def test_fields_are_the_vocabulary(lading: Lading) -> None:
    vocabulary = json.loads(lading("audit", "fields", "-o", "json")[1])
    assert "container.start" in vocabulary["actions"]
    assert "UNKNOWN" in vocabulary["statuses"]
    assert "user" in vocabulary["fields"]
