"""Times as they are shown: ISO dates, 24 hours, milliseconds, and always the zone. Spans and windows of the URL."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

SPANS = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
COMPACT = "%Y%m%dT%H%M%SZ"


def moment(value: Timestamp) -> datetime:
    """The aware UTC time of a protobuf Timestamp."""
    return value.ToDatetime(tzinfo=UTC)


@dataclass(frozen=True)
class Clock:
    """A zone that times are shown in, and the other one for those who point at a time."""

    zone: tzinfo
    other_zone: tzinfo

    def date(self, time: datetime) -> str:
        return time.astimezone(self.zone).strftime("%Y-%m-%d")

    def time(self, time: datetime) -> str:
        """`18:47:46.146Z`"""
        return _time(time.astimezone(self.zone))

    def full(self, time: datetime) -> str:
        """`2026-11-21 18:47:46.146Z`"""
        return f"{self.date(time)} {self.time(time)}"

    def other(self, time: datetime) -> str:
        """In the other zone; empty when that is the same."""
        here, there = time.astimezone(self.zone), time.astimezone(self.other_zone)
        return "" if here.utcoffset() == there.utcoffset() else f"{there:%Y-%m-%d} {_time(there)}"

    def minute(self, time: datetime) -> str:
        """`11-20 08:49`, for chips that stand beside full times."""
        return time.astimezone(self.zone).strftime("%m-%d %H:%M")


def clock(local: bool, browser_zone: str | None) -> Clock:
    """UTC, or the browser's zone (its IANA name; UTC when it is not known)."""
    try:
        here: tzinfo = ZoneInfo(browser_zone) if browser_zone else UTC
    except (KeyError, ValueError, OSError):
        here = UTC
    return Clock(here, UTC) if local else Clock(UTC, here)


def _time(time: datetime) -> str:
    zone = time.strftime("%z")
    return f"{time:%H:%M:%S}.{time.microsecond // 1000:03d}{'Z' if time.tzinfo is UTC else zone}"


@dataclass(frozen=True)
class Window:
    """From and to, UTC; `to` is not included. In the URL: `20261120T084900Z--20261120T134900Z` (ISO 8601)."""

    begins: datetime
    ends: datetime

    @classmethod
    def parse(cls, text: str) -> "Window | None":
        """None when it is no window: a URL that somebody cut off still opens a page."""
        try:
            begins, ends = (datetime.strptime(part, COMPACT).replace(tzinfo=UTC) for part in text.split("--"))
        except ValueError:
            return None
        return cls(begins, ends) if begins < ends else None

    def __str__(self) -> str:
        return f"{self.begins.astimezone(UTC).strftime(COMPACT)}--{self.ends.astimezone(UTC).strftime(COMPACT)}"

    def part(self, begin: float, end: float) -> "Window":
        """The part between two shares of its length, in whole seconds, at least one."""
        length = self.ends - self.begins
        begins = (self.begins + length * max(0.0, begin)).replace(microsecond=0)
        ends = (self.begins + length * min(1.0, end)).replace(microsecond=0)
        return Window(begins, max(ends, begins + timedelta(seconds=1)))


@dataclass(frozen=True)
class Tick:
    """A label on the time axis; `at` is a share of its length."""

    at: float
    label: str


STEPS = tuple(
    timedelta(minutes=minutes) for minutes in (1, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 7200, 14400)
)
TICKS_MAX = 10


def ticks(window: Window, clock: Clock) -> list[Tick]:
    """Round times of the clock's zone, at most ten."""
    length = window.ends - window.begins
    step = next((step for step in STEPS if length / step <= TICKS_MAX), length / TICKS_MAX)
    days = step >= timedelta(days=1)
    midnight = window.begins.astimezone(clock.zone).replace(hour=0, minute=0, second=0, microsecond=0)
    found = []
    # Wall-clock steps from local midnight: at a change of summer time the labels stay round.
    naive = midnight.replace(tzinfo=None)
    for number in range(1, int((length + timedelta(days=2)) / step) + 2):
        time = (naive + number * step).replace(tzinfo=clock.zone)
        share = (time - window.begins) / length
        if 0.02 <= share <= 0.98:
            label = f"{time:%b} {time.day}" if days or (time.hour, time.minute) == (0, 0) else f"{time:%H:%M}"
            found.append(Tick(share, label))
    return found
