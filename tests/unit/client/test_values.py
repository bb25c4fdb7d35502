from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from lading_client.cli.values import LABELS, MOMENT, PAIR, SPAN


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("15m", 900), ("2h", 7200), ("7d", 604800), ("45", 45)])
def test_spans(text: str, seconds: float) -> None:
    assert SPAN.convert(text, None, None) == seconds


def test_a_moment_is_a_span_ago_or_a_time() -> None:
    found = MOMENT.convert("2h", None, None)
    ago = datetime.now(UTC) - found
    assert timedelta(hours=2) <= ago < timedelta(hours=2, minutes=1)
    assert MOMENT.convert("2026-11-20T14:05:00Z", None, None) == datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
    assert MOMENT.convert("2026-11-20", None, None).tzinfo is not None


def test_labels_and_pairs() -> None:
    assert LABELS.convert("env=prod,app=a=b", None, None) == {"env": "prod", "app": "a=b"}
    assert PAIR.convert("A=1=2", None, None) == ("A", "1=2")


@pytest.mark.parametrize(
    ("kind", "text"),
    [(SPAN, "soon"), (SPAN, "9" * 30 + "d"), (MOMENT, "then"), (LABELS, "env"), (LABELS, "=x"), (PAIR, "A")],
)
def test_others_are_usage_errors(kind: Any, text: str) -> None:
    with pytest.raises(click.UsageError):
        kind.convert(text, None, None)
