"""The state of a page in its URL."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, parse_qsl

from hypothesis import given, settings
from hypothesis import strategies as st

from lading.v1 import audit_log_pb2
from lading_viewer.moments import clock, moment
from lading_viewer.view import View

NOW = datetime(2026, 11, 21, 18, 47, 46, tzinfo=UTC)
UTC_CLOCK = clock(False, None)


def view(**parameters: str) -> View:
    return View.parse(parameters, NOW, UTC_CLOCK)


def test_default_view_is_a_day_without_reads_one_row_for_each_operation() -> None:
    found = view().filter()
    assert moment(found.since) == NOW - timedelta(hours=24)
    assert not found.HasField("until")
    assert found.latest_only
    assert found.changes_only


def test_window_goes_before_the_range() -> None:
    found = view(range="7d", win="20261120T084900Z--20261120T134900Z").filter()
    assert moment(found.since) == datetime(2026, 11, 20, 8, 49, tzinfo=UTC)
    assert moment(found.until) == datetime(2026, 11, 20, 13, 49, tzinfo=UTC)


def test_times_in_the_search_go_before_the_window() -> None:
    found = view(q="at:2026-11-19", win="20261120T084900Z--20261120T134900Z").filter()
    assert moment(found.since) == datetime(2026, 11, 19, tzinfo=UTC)
    assert moment(found.until) == datetime(2026, 11, 20, tzinfo=UTC)


def test_link_opens_the_same_events_later() -> None:
    text = 'user:ana -status:SUCCESS "disk full"'
    link = dict(parse_qsl(view(q=text, range="7d", reads="1").link()))
    later = View.parse(link, NOW + timedelta(days=3), UTC_CLOCK)
    assert later.text == text
    assert later.reads
    assert (later.shown.begins, later.shown.ends) == (NOW - timedelta(days=7), NOW)


@given(st.dictionaries(st.sampled_from(["q", "range", "win", "reads", "cur", "event", "tz"]), st.text(max_size=40)))
def test_any_url_is_a_view_whose_link_is_one_too(parameters: dict[str, str]) -> None:
    found = View.parse(parameters, NOW, UTC_CLOCK)
    assert found.filter().latest_only
    link = {name: values[0] for name, values in parse_qs(found.link()).items()}
    assert View.parse(link, NOW, UTC_CLOCK).query.filter.matches == found.query.filter.matches


def test_picked_values_of_a_field_are_alternatives() -> None:
    picked = view(q="INC-527").with_term("action", "container.stop").with_term("action", "container.kill")
    assert picked.text == "INC-527 action:container.stop,container.kill"
    assert picked.with_term("action", "container.stop").text == "INC-527 action:container.kill"
    assert picked.state_of("action", "container.kill") == "in"
    assert picked.state_of("action", "container.start") == ""


def test_excluded_value_is_not_wanted_and_a_click_takes_it_away() -> None:
    excluded = view(q="status:SUCCESS").with_term("status", "SUCCESS", exclude=True)
    assert excluded.text == "-status:SUCCESS"
    assert excluded.state_of("status", "SUCCESS") == "out"
    assert excluded.with_term("status", "SUCCESS").text == ""


@settings(deadline=None)
@given(st.text(min_size=1, max_size=30).filter(lambda text: text.strip() == text and text.isprintable()))
def test_value_that_is_picked_is_what_the_server_is_asked_for(value: str) -> None:
    (match,) = view().with_term("user", value).query.filter.matches
    assert match.field == audit_log_pb2.FIELD_ACTOR
    assert list(match.values) == [value]


def test_counts_of_a_field_that_is_picked_from_leave_its_condition_out() -> None:
    assert view(q="action:container.stop user:ana").without("action").text == "user:ana"


def test_next_longer_range() -> None:
    assert [view(range=span).wider() for span in ("15m", "24h", "30d")] == ["1h", "7d", None]
