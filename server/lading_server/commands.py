"""The life of a command (DESIGN section 7). Pure: no clock, no I/O."""

from enum import IntEnum

from lading_server.errors import Code
from lading_server.event import Outcome


class State(IntEnum):
    """Numbers, and ranks, as in lading.v1.CommandState."""

    PENDING = 1
    DISPATCHED = 2
    ACKNOWLEDGED = 3
    UNKNOWN = 4
    SUCCEEDED = 5
    FAILED = 6
    REJECTED = 7
    CANCELLED = 8
    EXPIRED = 9


ENDS = frozenset({State.SUCCEEDED, State.FAILED, State.REJECTED, State.CANCELLED, State.EXPIRED})
IN_FLIGHT = frozenset({State.DISPATCHED, State.ACKNOWLEDGED, State.UNKNOWN})

SESSION_VERBS = frozenset({10})
"""VERB_EXEC: it lasts as long as its caller likes, so it takes no place of its agent's window once it has begun."""

BEFORE: dict[State, frozenset[State]] = {
    State.DISPATCHED: frozenset({State.PENDING}),
    State.ACKNOWLEDGED: frozenset({State.DISPATCHED}),
    State.UNKNOWN: frozenset({State.DISPATCHED, State.ACKNOWLEDGED}),
    State.SUCCEEDED: IN_FLIGHT,
    State.FAILED: IN_FLIGHT,
    State.REJECTED: IN_FLIGHT,
    State.CANCELLED: IN_FLIGHT | {State.PENDING},
    State.EXPIRED: frozenset({State.PENDING}),
}
"""From where a command may come into a state. Ranks only rise, and nothing leaves an end."""


def outcome_of(state: State, code: int) -> Outcome:
    """What the log says of a command that is in this state, with this code."""
    if state is State.SUCCEEDED:
        return Outcome.SUCCESS
    if state is State.CANCELLED:
        return Outcome.CANCELLED
    if state is State.EXPIRED or code == Code.DEADLINE_EXCEEDED:
        return Outcome.DEADLINE
    if state in ENDS:
        return Outcome.FAILURE
    return Outcome.UNKNOWN if state is State.UNKNOWN else Outcome.PENDING
