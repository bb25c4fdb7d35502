"""Times, windows and ticks."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading_viewer.moments import Window, clock, ticks

TIME = datetime(2026, 11, 21, 18, 47, 46, 146_500, UTC)


def test_time_names_its_zone_and_milliseconds() -> None:
    assert clock(False, "Europe/Berlin").full(TIME) == "2026-11-21 18:47:46.146Z"
    assert clock(True, "Europe/Berlin").full(TIME) == "2026-11-21 19:47:46.146+0100"
    assert clock(True, "Asia/Kolkata").full(TIME) == "2026-11-22 00:17:46.146+0530"


def test_other_zone_is_that_of_the_browser_or_utc() -> None:
    assert clock(False, "Europe/Berlin").other(TIME) == "2026-11-21 19:47:46.146+0100"
    assert clock(True, "Europe/Berlin").other(TIME) == "2026-11-21 18:47:46.146Z"


@pytest.mark.parametrize("zone", [None, "", "Mars/Base", "../../etc/passwd", "UTC"])
def test_zone_that_is_not_known_is_utc(zone: str | None) -> None:
    assert clock(True, zone).full(TIME).startswith("2026-11-21 18:47:46.146")


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.integers(1, 10**8))
def test_window_survives_its_url(begins: datetime, seconds: int) -> None:
    begins = begins.replace(microsecond=0, tzinfo=UTC)
    window = Window(begins, begins + timedelta(seconds=seconds))
    assert Window.parse(str(window)) == window


@given(st.text())
def test_any_text_is_a_window_or_none(text: str) -> None:
    window = Window.parse(text)
    assert window is None or window.begins < window.ends


def test_window_that_ends_before_it_begins_is_none() -> None:
    assert Window.parse("20261121T000000Z--20261120T000000Z") is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_part_of_a_window_is_never_empty(one: float, other: float) -> None:
    whole = Window(TIME, TIME + timedelta(minutes=15))
    part = whole.part(min(one, other), max(one, other))
    assert part.ends - part.begins >= timedelta(seconds=1)
    assert part.begins >= whole.begins.replace(microsecond=0)


@pytest.mark.parametrize("hours", [0.25, 1, 24, 7 * 24, 30 * 24, 365 * 24])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata"])
def test_axis_has_a_few_round_ticks_in_order(hours: float, zone: str) -> None:
    found = ticks(Window(TIME, TIME + timedelta(hours=hours)), clock(True, zone))
    assert 2 <= len(found) <= 14
    assert [tick.at for tick in found] == sorted(tick.at for tick in found)
    assert all(0 < tick.at < 1 for tick in found)


def test_ticks_stay_round_over_a_change_of_summer_time() -> None:
    begins = datetime(2026, 3, 28, 12, tzinfo=UTC)
    labels = [tick.label for tick in ticks(Window(begins, begins + timedelta(hours=24)), clock(True, "Europe/Berlin"))]
    assert labels == ["15:00", "18:00", "21:00", "Mar 29", "03:00", "06:00", "09:00", "12:00"]
