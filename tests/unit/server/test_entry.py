"""Entries and details are written by hand for speed: what comes out is what RFC 8785 says of the same values."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.transparency.jcs import canonical
from lading_server.entry import ACTORS, ENTRY_BYTES_MAX, OUTCOMES, STAGES, doubled, encode_details, encode_entry
from lading_server.event import Actor, ActorType, Event, Outcome, Stage

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["method", "peer", "request", "data", "diff", "zeta", "duration_us", "claimed_address"])
numbers = st.integers(0, 2**53 - 1)
actors = st.builds(Actor, st.sampled_from(ActorType), *[texts] * 6)
events = st.builds(
    Event,
    id=texts,
    organization=texts,
    operation=texts,
    stage=st.sampled_from(Stage),
    occurred_at=numbers,
    actor=actors,
    action=texts,
    outcome=st.sampled_from(Outcome),
    code=st.integers(0, 16),
    parent=texts,
    changes=st.booleans(),
    targets=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    agent=texts,
    reason=texts,
    error=texts,
    request_id=texts,
    source=texts,
    count=st.integers(1, 10**6),
    details=st.dictionaries(names, values, max_size=4),
)


@given(events, numbers, texts, numbers, st.binary(min_size=32, max_size=32))
def test_entry_is_canonical(event: Event, at: int, boot_id: str, sequence: int, commitment: bytes) -> None:
    said = {
        "action": event.action,
        "actor": {"id": event.actor.id, "type": ACTORS[event.actor.type]},
        "code": event.code,
        "details": base64.b64encode(commitment).decode(),
        "emitter": {"boot_id": boot_id, "sequence": sequence},
        "id": event.id,
        "occurred_at": event.occurred_at,
        "operation": event.operation,
        "organization": event.organization,
        "outcome": OUTCOMES[event.outcome],
        "parent": event.parent,
        "recorded_at": at,
        "stage": STAGES[event.stage],
        "targets": [{"id": target, "type": kind} for kind, target in event.targets],
        "v": 1,
    }
    assert encode_entry(event, at, boot_id, sequence, commitment) == canonical(said)


@given(events)
def test_details_are_canonical(event: Event) -> None:
    names = ("auth_method", "credential", "email", "name", "on_behalf_of")
    said: dict[str, Any] = dict(event.details)
    said["actor"] = {name: getattr(event.actor, name) for name in names if getattr(event.actor, name)}
    said |= {"changes": event.changes, "count": event.count}
    if len(event.targets) > 1:
        said["targets"] = event.targets
    for name in ("agent", "error", "reason", "request_id", "source"):
        if getattr(event, name):
            said[name] = getattr(event, name)
    assert encode_details(event).encode() == canonical(doubled(said))


@given(events)
def test_entry_that_no_reader_takes_is_refused(event: Event) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        encode_entry(replace(event, action="a" * ENTRY_BYTES_MAX), 1, "boot", 1, bytes(32))
