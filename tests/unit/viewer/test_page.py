"""The page as Streamlit runs it, without a browser."""

import pathlib
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import grpc
import pytest
from streamlit.testing.v1 import AppTest

from lading.v1 import audit_log_pb2
from lading_viewer import connection
from tests.unit.viewer import audit_server
from tests.unit.viewer.audit_server import Log, event
from tests.unit.viewer.conftest import component

Open = Callable[..., AppTest]


def rows(page: AppTest) -> list[dict[str, Any]]:
    table = component(page, "audit_table")
    return table["rows"] if table else []


def notice(page: AppTest) -> dict[str, Any]:
    found = component(page, "notice")
    assert found is not None
    return found


def fill(log: Log, now: datetime, count: int = 60, **fields: Any) -> None:
    for index in range(count):
        log.events.append(event(index, now - timedelta(seconds=10 * (count - index)), **fields))


def test_page_shows_nothing_to_those_who_are_not_signed_in(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    for token in ("", "not.a.token", "e30.e30.e30"):
        page = open_page(token=token)
        assert notice(page)["testid"] == "error-signed-out"
        assert rows(page) == []
    assert log.calls == []


def test_page_asks_nothing_of_the_server_after_the_token_has_expired(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    page = open_page(token=audit_server.token(lifetime=timedelta(seconds=-1)))
    assert notice(page)["testid"] == "error-expired"
    assert "Sign in again to continue" in notice(page)["title"]
    assert log.calls == []


def test_calls_carry_the_token_of_the_person(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    token = audit_server.token("emi")
    open_page(token=token)
    assert {authorization for _, authorization in log.calls} == {f"Bearer {token}"}


def test_table_has_exactly_the_six_columns(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    table = component(open_page(), "audit_table")
    assert table is not None
    assert table["columns"] == ["Timestamp", "User", "Action", "Target", "Reason", "Status"]
    assert table["label"] == "Audit events"
    assert len(table["rows"]) == 50


def test_row_says_who_did_what_to_what_and_how_it_ended(log: Log, open_page: Open, now: datetime) -> None:
    at = now.replace(microsecond=187_000) - timedelta(seconds=5)
    log.events.append(
        event(7, at, "container.stop", reason="INC-527", outcome=audit_log_pb2.OUTCOME_FAILURE, code=5, error="gone")
    )
    (row,) = rows(open_page())
    assert row["time"] == f"{at:%H:%M:%S}.187Z"
    assert row["user"]["text"] == "ada@acme.example"
    assert (row["action"]["word"], row["action"]["icon"], row["action"]["tone"]) == ("STOP", "stop", "bad")
    assert (row["target"], row["reason"]) == ("dock-1/web", "INC-527")
    assert (row["status"]["word"], row["status"]["tone"], row["code"]) == ("FAILURE", "bad", "NOT_FOUND")
    assert row["says"] == f"ada@acme.example STOP dock-1/web FAILURE {at:%Y-%m-%d %H:%M:%S}.187Z"


def test_event_without_outcome_is_pending(log: Log, open_page: Open, now: datetime) -> None:
    pending = event(1, now, outcome=audit_log_pb2.OUTCOME_UNSPECIFIED, stage=audit_log_pb2.STAGE_RECEIVED)
    log.events.append(pending)
    (row,) = rows(open_page())
    assert row["status"]["word"] == "PENDING"


def test_superseded_events_and_reads_are_not_listed(log: Log, open_page: Open, now: datetime) -> None:
    log.events.append(event(1, now, superseded_by=2))
    log.events.append(event(2, now))
    log.events.append(event(3, now, "container.list"))
    assert [row["id"] for row in rows(open_page())] == [log.events[1].id]
    assert [row["action"]["word"] for row in rows(open_page({"reads": "1"}))] == ["LIST", "START"]


def test_hidden_reads_are_said_to_be_hidden(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    overview = component(open_page(), "overview")
    assert overview is not None
    assert [(chip["label"], chip["on"]) for chip in overview["chips"]] == [("Hide reads", True)]


def test_url_names_search_range_window_zone_and_page(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now, 200)
    page = open_page({"q": "user:ada", "range": "7d", "tz": "Local"}, timezone="Asia/Tokyo")
    assert page.text_input(key="q").value == "user:ada"
    assert rows(page)[0]["time"].endswith("+0900")
    assert rows(page)[0]["other_time"].endswith("Z")
    older = open_page({"cur": "149"})
    assert rows(older)[0]["id"] == log.events[149].id
    begins, ends = (now - timedelta(seconds=seconds) for seconds in (600, 400))
    window = f"{begins:%Y%m%dT%H%M%SZ}--{ends:%Y%m%dT%H%M%SZ}"
    times = [row["time"] for row in rows(open_page({"win": window}))]
    assert len(times) == 20
    inside = {f"{begins + timedelta(seconds=seconds):%H:%M:%S}" for seconds in range(201)}  # also over midnight
    assert {time[:8] for time in times} <= inside


def test_unknown_search_field_is_named_and_the_rest_applies(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    log.events.append(event(99, now, "container.kill"))
    page = open_page({"q": "bogus:1 action:container.kill"})
    assert any("bogus" in text.value and "target" in text.value for text in page.text)
    assert len(rows(page)) == 1


def test_typing_a_search_leaves_the_older_page(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now, 200)
    page = open_page({"cur": "149"})
    page.text_input(key="q").set_value("target:dock-1/web").run()
    assert "cur" not in page.query_params
    assert rows(page)[0]["id"] == log.events[199].id


def test_going_back_to_the_newest_page_drops_the_cursor(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now, 200)
    page = open_page({"cur": "199"})
    assert "cur" not in page.query_params


def test_nothing_found_offers_what_would_show_more(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    page = open_page({"q": "nosuchthing"})
    assert notice(page)["title"] == "No events match."
    assert [action["label"] for action in notice(page)["actions"]] == ["Search 7 days", "Clear 1 filter", "Show reads"]
    facets = component(page, "facets")
    assert facets is not None
    assert facets["groups"] == []
    assert component(page, "footer") is None


def test_new_system_says_how_to_begin(open_page: Open) -> None:
    data = notice(open_page())
    assert data["title"] == "No events yet."
    assert "lading demo" in data["text"]


@pytest.mark.parametrize(
    ("code", "testid", "words"),
    [
        (grpc.StatusCode.UNAVAILABLE, "error-down", "The control plane cannot be reached."),
        (grpc.StatusCode.PERMISSION_DENIED, "error-denied", "Ask an administrator of acme."),
        (grpc.StatusCode.UNAUTHENTICATED, "error-expired", "Your session is over."),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "error-limited", "no more calls"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "error-slow", "still reading"),
        (grpc.StatusCode.INTERNAL, "error-failed", "The server failed."),
    ],
)
def test_failure_of_the_server_is_said(
    log: Log, open_page: Open, now: datetime, code: grpc.StatusCode, testid: str, words: str
) -> None:
    fill(log, now)
    log.fails["*"] = code
    page = open_page()
    assert notice(page)["testid"] == testid
    assert words in notice(page)["title"]
    assert rows(page) == []
    assert component(page, "footer") is None


def test_server_that_is_back_is_shown_again(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    log.fails["*"] = grpc.StatusCode.UNAVAILABLE
    page = open_page()
    assert notice(page)["retry_in_s"] == 2
    page.run()
    assert notice(page)["retry_in_s"] == 5
    log.fails.clear()
    page.run()
    assert len(rows(page)) == 50


def test_role_that_may_not_read_sees_no_search(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    log.fails["ListEvents"] = grpc.StatusCode.PERMISSION_DENIED
    assert not [field for field in open_page().text_input if field.key == "q"]


def test_rows_are_shown_when_counting_fails(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    log.fails["SummarizeEvents"] = grpc.StatusCode.INTERNAL
    page = open_page()
    overview = component(page, "overview")
    assert overview is not None
    assert overview["summary"] == "Counts are unavailable."
    assert len(rows(page)) == 50


def test_forged_cursor_offers_the_newest_events(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    data = notice(open_page({"cur": "forged"}))
    assert data["testid"] == "error-invalid"
    assert data["actions"][0]["label"] == "Newest events"


def test_table_is_read_before_anything_is_counted(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    open_page()
    names = [name for name, _ in log.calls]
    assert names.index("ListEvents") < names.index("SummarizeEvents")


def test_counts_are_used_again_for_a_while(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    window = f"{now - timedelta(hours=1):%Y%m%dT%H%M%SZ}--{now:%Y%m%dT%H%M%SZ}"
    page = open_page({"win": window})
    page.run()
    assert [name for name, _ in log.calls].count("SummarizeEvents") == 1
    assert [name for name, _ in log.calls].count("ListEvents") == 2


def test_no_row_is_kept_in_the_session(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now, target="dock-1/secret-name")
    page = open_page()
    assert "secret-name" not in str(page.session_state)


def test_export_is_offered_to_those_who_may(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    footer = component(open_page(), "footer")
    assert footer is not None
    assert footer["exports"]["csv"].startswith("/export?format=csv&win=")
    log.permissions = ["audit.read"]
    footer = component(open_page(token=audit_server.token("emi")), "footer")
    assert footer is not None
    assert footer["exports"] is None
    assert "does not allow exporting" in footer["why"]


def test_drawer_of_the_event_in_the_url_is_open(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    drawer = component(open_page({"event": log.events[3].id}), "event")
    assert drawer is not None
    assert "".join(part["text"] for part in drawer["sentence"]) == (
        "ada@acme.example asked to START dock-1/web; done after 41 ms."
    )


@pytest.mark.parametrize("event_id", ["01990000-0000-7000-8000-999999999999", "'; drop table", "x" * 5000])
def test_missing_event_is_said_to_be_missing(log: Log, open_page: Open, now: datetime, event_id: str) -> None:
    fill(log, now)
    page = open_page({"event": event_id})
    assert component(page, "event") is None
    assert any("There is no such event in your organization." in text.value for text in page.text)


def test_parameters_that_make_no_sense_show_the_default(log: Log, open_page: Open, now: datetime) -> None:
    fill(log, now)
    page = open_page({"range": "forever", "win": "a--b", "tz": "Mars", "reads": "maybe", "live": "?"})
    assert len(rows(page)) == 50


def test_page_loads_neither_pandas_nor_numpy(log: Log, now: datetime, tmp_path: pathlib.Path) -> None:
    fill(log, now)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from importlib import resources\n"
        "from streamlit.testing.v1 import AppTest\n"
        "from lading_viewer import connection, session\n"
        "connection.configure(connection.Connection(sys.argv[1]))\n"
        "session.cookie = lambda: sys.argv[2]\n"
        "page = AppTest.from_file(str(resources.files('lading_viewer') / 'app.py'), default_timeout=60)\n"
        "page.query_params['event'] = sys.argv[3]\n"
        "page.run()\n"
        "assert len(page.get('bidi_component')) == 8, page.get('bidi_component')\n"
        "print([name for name in ('pandas', 'numpy', 'pyarrow', 'altair') if name in sys.modules])\n"
    )
    address = connection.clients().connection.address
    done = subprocess.run(
        [sys.executable, script, address, audit_server.token(), log.events[0].id], capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
