"""Time and identifiers: the only places that ask for either."""

import time
from collections.abc import Callable

import uuid_utils

Clock = Callable[[], int]
"""Microseconds since the epoch, UTC."""


def now() -> int:
    """The wall clock, in microseconds since the epoch, UTC."""
    return time.time_ns() // 1000


def new_id() -> str:
    """A UUIDv7 (RFC 9562) in its hyphenated form."""
    return str(uuid_utils.uuid7())
