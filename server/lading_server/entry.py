"""What is hashed of an event (DESIGN section 5): the entry, and the details it commits to. Pure.

The canonical form is RFC 8785. For plain values (text, integers, keys of ASCII) that is what json writes with sorted
keys, many times faster; what services record may hold others.
"""

import base64
import json
from hashlib import sha256
from typing import Any

from lading.transparency.jcs import canonical
from lading_server.event import ActorType, Event, Outcome, Stage

VERSION = 1
ENTRY_BYTES_MAX = 65_535
SALT_BYTES = 16

STAGES = {stage: stage.name for stage in Stage}
OUTCOMES = {outcome: outcome.name for outcome in Outcome}
ACTORS = {kind: kind.name.lower() for kind in ActorType}

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, check_circular=False).encode


def encode_details(details: dict[str, Any]) -> str:
    """The canonical form of an event's details. Raises ValueError for what JSON cannot say."""
    return _encode(details) if is_plain(details) else canonical(doubled(details)).decode()


def doubled(value: Any) -> Any:
    """The same with doubles for integers that JSON, whose numbers are doubles, cannot say."""
    kind = type(value)
    if kind is int:
        return value if abs(value) < 2**53 else float(value)
    if kind is dict:
        return {key: doubled(item) for key, item in value.items()}
    return [doubled(item) for item in value] if kind in (list, tuple) else value


def is_plain(value: Any) -> bool:
    """Whether json writes it canonically by itself."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return bool(abs(value) < 2**53)
    if kind is dict:
        return all(type(key) is str and key.isascii() and is_plain(item) for key, item in value.items())
    return kind in (list, tuple) and all(map(is_plain, value))


def details_of(event: Event) -> dict[str, Any]:
    """All that an entry only commits to: it can be erased."""
    actor = event.actor
    details = dict(event.details)
    details["actor"] = {
        key: value
        for key, value in (
            ("auth_method", actor.auth_method),
            ("credential", actor.credential),
            ("email", actor.email),
            ("name", actor.name),
            ("on_behalf_of", actor.on_behalf_of),
        )
        if value
    }
    if len(event.targets) > 1:
        details["targets"] = event.targets
    details["changes"] = event.changes
    details["count"] = event.count
    for key, value in (
        ("agent", event.agent),
        ("error", event.error),
        ("reason", event.reason),
        ("request_id", event.request_id),
        ("source", event.source),
    ):
        if value:
            details[key] = value
    return details


def encode_entry(event: Event, recorded_at: int, boot_id: str, sequence: int, commitment: bytes) -> bytes:
    """The entry of an event. Raises ValueError when it would be longer than any reader takes."""
    raw = _encode(
        {
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
            "recorded_at": recorded_at,
            "stage": STAGES[event.stage],
            "targets": [{"id": target, "type": kind} for kind, target in event.targets],
            "v": VERSION,
        }
    ).encode()
    if len(raw) > ENTRY_BYTES_MAX:
        raise ValueError(f"the entry has {len(raw)} bytes, allowed are {ENTRY_BYTES_MAX}")
    return raw


def commit_to(salt: bytes, details: bytes) -> bytes:
    """What an entry says of its details: SHA-256(salt ‖ details)."""
    return sha256(salt + details).digest()
