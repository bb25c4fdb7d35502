"""Facets, histogram and export: what is made of events and their counts."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta

import pytest

from lading.v1 import audit_log_pb2
from lading.v1.audit_log_pb2 import ExportEventsResponse, FacetValue, SummarizeEventsResponse
from lading_client import requests
from lading_viewer import export, facets, histogram
from lading_viewer.moments import Window, clock
from lading_viewer.view import View
from tests.unit.viewer.audit_server import event

NOW = datetime(2026, 11, 21, 18, tzinfo=UTC)
CLOCK = clock(False, None)


def test_value_that_fails_twice_as_often_as_the_rest_is_marked_with_both_rates() -> None:
    summary = SummarizeEventsResponse(total=1000, failed=60)
    assert facets.hot(FacetValue(value="dock-3", total=100, failed=30), summary) == (
        "30.0% fail here, 3.3% of the rest. "
    )
    assert facets.hot(FacetValue(value="dock-3", total=100, failed=9), summary) == ""
    assert facets.hot(FacetValue(value="dock-3", total=400, failed=30), summary) == ""
    assert facets.hot(FacetValue(value="all", total=1000, failed=60), summary) == ""


def test_facets_show_words_and_send_values() -> None:
    summary = SummarizeEventsResponse(total=3, failed=1)
    actions = summary.facets.add(field=audit_log_pb2.FIELD_ACTION)
    actions.values.add(value="container.stop", total=3, failed=1)
    statuses = summary.facets.add(field=audit_log_pb2.FIELD_OUTCOME)
    for name in ("PENDING", "FAILURE", "SUCCESS"):
        statuses.values.add(value=name, total=1)
    view = View(NOW, CLOCK, text="-action:container.stop user:ana")
    groups = facets.data(view, {kind.field: summary for kind in facets.KINDS})
    assert [group["name"] for group in groups] == ["Status", "Action", "User"]
    assert [value["word"] for value in groups[0]["values"]] == ["SUCCESS", "FAILURE", "PENDING"]
    (stop,) = groups[1]["values"]
    assert (stop["word"], stop["value"], stop["icon"], stop["state"]) == ("STOP", "container.stop", "stop", "out")
    # Too rare to be among those that are counted: all that is shown is hers.
    assert [(value["word"], value["total"], value["state"]) for value in groups[2]["values"]] == [("ana", 3, "in")]


def test_value_that_nothing_has_can_be_taken_away_again() -> None:
    nothing = SummarizeEventsResponse()
    summaries = {kind.field: nothing for kind in facets.KINDS}
    (group,) = facets.data(View(NOW, CLOCK, text="user:ana,eve"), summaries)
    assert [(value["word"], value["total"], value["state"]) for value in group["values"]] == [
        ("ana", 0, "in"),
        ("eve", 0, "in"),
    ]


def test_histogram_fits_its_highest_bar_and_says_each() -> None:
    summary = SummarizeEventsResponse(total=130, failed=3, width=requests.duration(3600))
    for hour, (total, failed) in enumerate([(47, 0), (0, 0), (83, 3)]):
        bucket = summary.buckets.add(total=total, failed=failed)
        bucket.begins_at.CopyFrom(requests.timestamp(NOW + timedelta(hours=hour)))
    chart = histogram.data(summary, Window(NOW + timedelta(minutes=5), NOW + timedelta(hours=3)), CLOCK)
    assert chart is not None
    assert chart["top"] == 150
    assert [level["label"] for level in chart["levels"]] == ["0", "50", "100", "150"]
    assert [round(bar["from"], 3) for bar in chart["bars"]] == [0, 0.333, 0.667]
    assert chart["bars"][2]["says"] == "2026-11-21 20:00:00.000Z: 83 events, 3 failed or refused"
    assert chart["label"].startswith("Events over time: 130 events, 3 failed or refused.")


def test_histogram_of_nothing_is_not_drawn() -> None:
    assert histogram.data(SummarizeEventsResponse(), Window(NOW, NOW + timedelta(hours=1)), CLOCK) is None


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 10, 11, 99, 100, 101, 99_999, 10**9])
def test_levels_are_whole_numbers_over_the_highest_bar(most: int) -> None:
    summary = SummarizeEventsResponse(total=most, width=requests.duration(60))
    summary.buckets.add(total=most).begins_at.CopyFrom(requests.timestamp(NOW))
    chart = histogram.data(summary, Window(NOW, NOW + timedelta(minutes=1)), CLOCK)
    assert chart is not None
    assert most <= chart["top"] <= 6 * most or most == 1
    assert all("." not in level["label"] for level in chart["levels"])


def test_totals_over_the_limit_are_marked() -> None:
    assert histogram.total(SummarizeEventsResponse(total=100_000, capped=True)) == "100\u00a0000+ events"
    assert histogram.total(SummarizeEventsResponse(total=1)) == "1 event"


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_csv_cell_is_no_formula(text: str) -> None:
    batch = ExportEventsResponse(events=[event(1, NOW, reason=text)])
    header, row = csv.reader(io.StringIO(b"".join(export.lines([batch], "csv")).decode(), newline=""))
    assert dict(zip(header, row, strict=True))["reason"] == f"'{text}"


def test_csv_keeps_commas_quotes_and_line_breaks() -> None:
    reason = 'a,b "c"\nd'
    batch = ExportEventsResponse(events=[event(1, NOW, reason=reason), event(2, NOW)])
    header, *rows = csv.reader(io.StringIO(b"".join(export.lines([batch], "csv")).decode(), newline=""))
    assert [row[header.index("reason")] for row in rows] == [reason, ""]
    assert rows[0][header.index("recorded_at")] == "2026-11-21T18:00:00.000Z"


def test_jsonl_has_one_event_on_each_line() -> None:
    batch = ExportEventsResponse(events=[event(1, NOW, reason="a\nb"), event(2, NOW)])
    found = [json.loads(line) for line in b"".join(export.lines([batch, batch], "jsonl")).decode().splitlines()]
    assert [each["id"][-1] for each in found] == ["1", "2", "1", "2"]
    assert found[0]["reason"] == "a\nb"


def test_file_name_says_whose_and_when() -> None:
    window = Window(NOW, NOW + timedelta(hours=1))
    assert export.file_name("acme", window, "csv") == "audit-acme-20261121T180000Z-20261121T190000Z.csv"
