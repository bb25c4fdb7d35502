"""Values on the command line: spans, times, labels, agents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click


class Span(click.ParamType[float]):
    """`30s`, `15m`, `2h`, `7d`; a bare number is seconds. Converted to seconds."""

    name = "span"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        from lading_client.query import span

        try:
            seconds = span(value + "s" if value.isdecimal() else value).total_seconds()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a span of time, as in 30s, 15m, 2h, 7d", param, ctx)
        return seconds


class Moment(click.ParamType[datetime]):
    """A span before now, or a time in ISO 8601 (local when it names no zone). Converted to an aware datetime."""

    name = "time"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "SPAN|TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        from lading_client.query import span

        try:
            return datetime.now(UTC) - span(value)
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC) + timedelta(days=1)
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time, as in 24h, 2026-11-20 or 2026-11-20T14:05:00Z", param, ctx)


class Labels(click.ParamType[dict[str, str]]):
    """`env=prod,app=web`. Converted to a dict."""

    name = "labels"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "K=V[,K=V]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        pairs = [pair.partition("=") for pair in value.split(",")]
        if not all(key and equals for key, equals, _ in pairs):
            self.fail(f"{value!r} is not KEY=VALUE[,KEY=VALUE], as in env=prod,app=web", param, ctx)
        return {key.strip(): text.strip() for key, _, text in pairs}


class Pair(click.ParamType[tuple[str, str]]):
    """`KEY=VALUE`; the value may hold anything. Converted to a pair."""

    name = "pair"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "K=V"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text


SPAN, MOMENT, LABELS, PAIR = Span(), Moment(), Labels(), Pair()
