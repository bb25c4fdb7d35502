"""The record of one stage of one operation (DESIGN section 5). Pure values."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

SYSTEM = "system"
"""Name of the organization, and of the log, for calls that have none."""


class Stage(IntEnum):
    """Numbers as in lading.v1.Stage."""

    RECEIVED = 1
    STARTED = 2
    COMPLETED = 3
    ABANDONED = 4


class Outcome(IntEnum):
    """Numbers as in lading.v1.Outcome; PENDING is its UNSPECIFIED."""

    PENDING = 0
    SUCCESS = 1
    FAILURE = 2
    DENIED = 3
    CANCELLED = 4
    DEADLINE = 5
    UNKNOWN = 6


class ActorType(IntEnum):
    """Numbers as in lading.v1.ActorType."""

    USER = 1
    SERVICE = 2
    AGENT = 3
    ANONYMOUS = 4


@dataclass(frozen=True, slots=True)
class Actor:
    """Who, as verified. `credential` is a fingerprint, never the credential."""

    type: ActorType
    id: str
    email: str = ""
    name: str = ""
    auth_method: str = "token"
    credential: str = ""
    on_behalf_of: str = ""


ANONYMOUS = Actor(ActorType.ANONYMOUS, "", auth_method="none")


@dataclass(slots=True)
class Event:
    """One audit record before it has its place in a log. Nobody changes one; it is not frozen because that has it take
    five times as long to make.

    `occurred_at`: microseconds since the epoch. `targets`: (type, id) pairs, the first one is that of the lists.
    `follows`: it says more of an operation that has an event already. `superseded_by`: index of the event that stands
    for this one from the start, for a call that became a command. `details`: the rest, as JSON values.
    """

    id: str
    organization: str
    operation: str
    stage: Stage
    occurred_at: int
    actor: Actor
    action: str
    outcome: Outcome
    code: int = 0
    parent: str = ""
    changes: bool = False
    targets: tuple[tuple[str, str], ...] = ()
    agent: str = ""
    reason: str = ""
    error: str = ""
    request_id: str = ""
    source: str = ""
    count: int = 1
    follows: bool = False
    superseded_by: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
