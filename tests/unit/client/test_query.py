from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.v1 import audit_log_pb2
from lading_client import query

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

PIECES = ["action:", "-", "status:", "user:", "since:", "at:", "to:", '"', "\\", ",", " ", "*", ":", "stop", "2h", "x"]
TIMES = ["2026-11-20", "9999-12-31", "0001-01-01T00:00+14:00", "99999999999999d"]
TEXTS = st.text() | st.lists(st.sampled_from([*PIECES, *TIMES, "SUCCESS", "\ud800", "\x00", "é"])).map("".join)


def parse(text: str) -> query.Query:
    return query.parse(text, NOW)


def match(text: str) -> tuple[int, list[str], bool]:
    (found,) = parse(text).filter.matches
    return found.field, list(found.values), found.negate


@given(TEXTS)
def test_no_text_is_an_error(text: str) -> None:
    parse(text).filter.SerializeToString()


@given(TEXTS)
def test_what_was_read_is_written_and_read_again_alike(text: str) -> None:
    first = parse(text)
    again = parse(str(first))
    assert again.terms == first.terms
    assert again.filter == first.filter
    assert again.warnings == ()


@given(TEXTS)
def test_a_filter_stays_within_the_field_rules(text: str) -> None:
    found = parse(text * 20).filter
    assert len(found.matches) <= 30
    assert len(found.words) <= 10
    assert all(0 < len(word) <= 256 for word in found.words)
    assert all(0 < len(value) <= 512 for one in found.matches for value in one.values)
    assert all(0 < len(one.values) <= 50 for one in found.matches)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("action:STOP", (audit_log_pb2.FIELD_ACTION, ["stop"], False)),
        ("-status:success", (audit_log_pb2.FIELD_OUTCOME, ["SUCCESS"], True)),
        ("outcome:FAILURE,unknown", (audit_log_pb2.FIELD_OUTCOME, ["FAILURE", "UNKNOWN"], False)),
        ("status:pending", (audit_log_pb2.FIELD_OUTCOME, ["PENDING"], False)),
        ("actor:*@acme.example", (audit_log_pb2.FIELD_ACTOR, ["*@acme.example"], False)),
        ("target:agents/dock-1/containers/web", (audit_log_pb2.FIELD_TARGET, ["dock-1/web"], False)),
        ('reason:"disk, full",b', (audit_log_pb2.FIELD_REASON, ["disk, full", "b"], False)),
        ('reason:"say \\"no\\""', (audit_log_pb2.FIELD_REASON, ['say "no"'], False)),
        ("cmd:commands/0b4e", (audit_log_pb2.FIELD_OPERATION, ["0b4e"], False)),
        ("corr:inc:527", (audit_log_pb2.FIELD_CORRELATION, ["inc:527"], False)),
        ("ip:ipv4:127.0.0.1", (audit_log_pb2.FIELD_PEER, ["ipv4:127.0.0.1"], False)),
        ("SOURCE:lading-cli*", (audit_log_pb2.FIELD_SOURCE, ["lading-cli*"], False)),
    ],
)
def test_a_term_becomes_a_match(text: str, expected: tuple[int, list[str], bool]) -> None:
    assert match(text) == expected


def test_bare_words_are_searched() -> None:
    assert list(parse('mailer "disk full" "web:1.30" -x').filter.words) == ["mailer", "disk full", "web:1.30", "-x"]


def test_an_unknown_field_warns_and_the_rest_applies() -> None:
    found = parse("colour:red action:stop")
    assert [one.field for one in found.filter.matches] == [audit_log_pb2.FIELD_ACTION]
    (warning,) = found.warnings
    assert "colour" in warning
    assert all(field in warning for field in query.FIELDS)


def test_an_unknown_status_warns() -> None:
    found = parse("status:GOOD,SUCCESS")
    assert list(found.filter.matches[0].values) == ["SUCCESS"]
    assert "GOOD" in found.warnings[0]


@pytest.mark.parametrize(
    ("text", "since", "until"),
    [
        ("since:2h", NOW - timedelta(hours=2), None),
        ("since:2026-11-20", datetime(2026, 11, 20, tzinfo=UTC), None),
        ("at:2026-11-20", datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC)),
        (
            "at:2026-11-20T14:05",
            datetime(2026, 11, 20, 14, 5, tzinfo=UTC),
            datetime(2026, 11, 20, 14, 6, tzinfo=UTC),
        ),
        ("to:2026-11-20", None, datetime(2026, 11, 21, tzinfo=UTC)),
        (
            "from:2026-11-20T10:00:00+01:00 to:2026-11-20T09:30:00Z",
            datetime(2026, 11, 20, 9, tzinfo=UTC),
            datetime(2026, 11, 20, 9, 30, 1, tzinfo=UTC),
        ),
    ],
)
def test_times_bound_the_filter(text: str, since: datetime | None, until: datetime | None) -> None:
    found = parse(text)
    assert found.warnings == ()
    for name, expected in (("since", since), ("until", until)):
        assert found.filter.HasField(name) == (expected is not None)  # type: ignore[arg-type]
        if expected is not None:
            assert getattr(found.filter, name).ToDatetime(UTC) == expected


def test_a_time_without_zone_is_in_the_zone_of_the_reader() -> None:
    found = query.parse("from:2026-11-20", NOW, timezone(timedelta(hours=1)))
    assert found.filter.since.ToDatetime(UTC) == datetime(2026, 11, 19, 23, tzinfo=UTC)


@pytest.mark.parametrize("text", ["since:soon", "at:2026-13-40", "from:", "-since:2h", "since:1h,2h"])
def test_what_is_no_time_warns(text: str) -> None:
    found = parse(text)
    assert found.warnings
    assert not found.filter.HasField("since")
