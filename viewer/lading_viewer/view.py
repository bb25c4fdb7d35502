"""What one page shows, as its URL says it. The URL is the only state: a reload, a bookmark, a colleague see the same.

`q` search text, `range` time range, `win` window (see moments.Window) that goes before the range, `reads=1` shows
reads, `cur` cursor of an older page, `event` id of the open event, `tz=Local`, `live=true`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from urllib.parse import urlencode

from lading.v1.audit_log_pb2 import EventFilter
from lading_client import query, requests
from lading_viewer.moments import SPANS, Clock, Window, moment

DEFAULT_SPAN = "24h"


@dataclass(frozen=True)
class View:
    """See the module. `now` is when it was asked for, and `clock` the zone of times in the search text."""

    now: datetime
    clock: Clock
    text: str = ""
    span: str = DEFAULT_SPAN
    window: Window | None = None
    reads: bool = False
    cursor: str = ""
    event: str = ""

    @classmethod
    def parse(cls, parameters: Mapping[str, str], now: datetime, clock: Clock) -> "View":
        """Of the parameters of a URL; what is not understood is as if it were not there."""
        span = parameters.get("range", "")
        return cls(
            now=now,
            clock=clock,
            text=parameters.get("q", ""),
            span=span if span in SPANS else DEFAULT_SPAN,
            window=Window.parse(parameters.get("win", "")),
            reads=parameters.get("reads", "") == "1",
            cursor=parameters.get("cur", ""),
            event=parameters.get("event", ""),
        )

    @cached_property
    def query(self) -> query.Query:
        return query.parse(self.text, self.now, self.clock.zone)

    @cached_property
    def shown(self) -> Window:
        """The time that is shown. Times in the search text come first, then the window, then the range."""
        asked = self.query.filter
        default = self.window or Window(self.now - SPANS[self.span], self.now)
        begins = moment(asked.since) if asked.HasField("since") else default.begins
        ends = moment(asked.until) if asked.HasField("until") else default.ends
        return Window(begins, max(ends, begins + timedelta(seconds=1)))

    @property
    def open_ended(self) -> bool:
        """Whether what happens now belongs to it."""
        return self.window is None and not self.query.filter.HasField("until")

    def filter(self) -> EventFilter:
        """One row for each asked thing; reads only when they are shown."""
        found = EventFilter()
        found.CopyFrom(self.query.filter)
        found.since.CopyFrom(requests.timestamp(self.shown.begins))
        if not self.open_ended:
            found.until.CopyFrom(requests.timestamp(self.shown.ends))
        found.latest_only = True
        found.changes_only = not self.reads
        return found

    def tail_filter(self) -> EventFilter:
        """The same without times, which a tail does not have."""
        found = self.filter()
        found.ClearField("since")
        found.ClearField("until")
        return found

    def at_step(self, step_s: int) -> "View":
        """The same view at a round number of seconds, so that what is counted for it can be used again."""
        rounded = datetime.fromtimestamp(self.now.timestamp() // step_s * step_s, UTC)
        return replace(self, now=rounded)

    def link(self, event: str = "") -> str:
        """The URL query of exactly this view, with absolute times."""
        fixed = {"q": self.text, "win": str(self.shown), "reads": "1" if self.reads else "", "event": event}
        return urlencode({name: value for name, value in fixed.items() if value})

    def wider(self) -> str | None:
        """The next longer range; None at the longest."""
        spans = list(SPANS)
        at = spans.index(self.span) + 1
        return spans[at] if at < len(spans) else None

    def with_term(self, field: str, value: str, *, exclude: bool = False) -> "View":
        """Another alternative for a field, or one that is not wanted. A second time takes it away again."""
        value = query.normalize(field, value)
        state = self.state_of(field, value)
        terms = _without(self.query.terms, field, value)
        if state == "" or (exclude and state == "in"):
            same = next((term for term in terms if term.field == field and term.negate == exclude), None)
            if same is None:
                terms.append(query.Term(field, (value,), exclude))
            else:
                terms[terms.index(same)] = replace(same, values=(*same.values, value))
        return replace(self, text=query.write(terms), cursor="")

    def without(self, field: str) -> "View":
        """The same view without the conditions on a field."""
        return replace(self, text=query.write(term for term in self.query.terms if term.field != field))

    def state_of(self, field: str, value: str) -> str:
        """`in`, `out` or empty: whether the search text asks for a value, or for others."""
        value = query.normalize(field, value)
        for term in self.query.terms:
            if term.field == field and value in term.values:
                return "out" if term.negate else "in"
        return ""


def _without(terms: Iterable[query.Term], field: str, value: str) -> list[query.Term]:
    less = [
        replace(term, values=tuple(each for each in term.values if each != value)) if term.field == field else term
        for term in terms
    ]
    return [term for term in less if term.values]
