"""The events of a call: how it began, and how it ended."""

from collections.abc import Sequence

from lading_server.call import Call
from lading_server.clock import new_id
from lading_server.errors import Code
from lading_server.event import Event, Outcome, Stage
from lading_server.interceptors.methods import Method
from lading_server.ledger.transaction import Transaction
from lading_server.store import events

OUTCOMES = {
    Code.OK: Outcome.SUCCESS,
    Code.CANCELLED: Outcome.CANCELLED,
    Code.DEADLINE_EXCEEDED: Outcome.DEADLINE,
    Code.PERMISSION_DENIED: Outcome.DENIED,
    Code.UNAUTHENTICATED: Outcome.DENIED,
}
"""Every other code is a FAILURE."""


def event_of(
    call: Call,
    method: Method,
    stage: Stage,
    outcome: Outcome,
    code: int,
    error: str,
    at: int,
    counts: tuple[int, int] | None = None,
) -> Event:
    """An event of a call. `at`: now, microseconds since the epoch; `counts`: messages in and out, at its end."""
    details = {**call.details, "method": call.method, "peer": call.peer}
    if counts is not None:
        details["duration_us"] = at - call.began_at
        details["messages_in"], details["messages_out"] = counts
    if call.trace_id:
        details["trace_id"] = call.trace_id
    if call.claimed_address:
        details["claimed_address"] = call.claimed_address
    if call.diff is not None:
        details["diff"] = list(call.diff)
    return Event(
        id=new_id(),
        organization=call.organization,
        operation=call.operation,
        stage=stage,
        occurred_at=at,
        actor=call.actor,
        action=method.rule.action,
        outcome=outcome,
        code=code,
        changes=method.rule.changes,
        targets=call.targets,
        agent=call.agent,
        reason=call.reason,
        error=error,
        request_id=call.request_id,
        source=call.user_agent,
        follows=stage is Stage.COMPLETED and call.started,
        superseded_by=call.superseded_by,
        details=details,
    )


def append_missing(transaction: Transaction, ends: Sequence[Event]) -> None:
    """Record those that a COMMIT which answered too late has not brought."""
    known = {row.id for row in events.with_ids(transaction.connection, [end.id for end in ends])}
    for end in ends:
        if end.id not in known:
            transaction.append(end)
