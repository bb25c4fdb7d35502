"""What is hashed of an event (DESIGN section 5): the entry, and the details it commits to. Pure.

The canonical form is RFC 8785. For what stands in an entry (strings without lone surrogates, integers below 2^53, keys in
the basic plane) it is what json writes with sorted keys; details may hold more and are checked.
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


def encode_details(details: dict[str, Any]) -> bytes:
    """The canonical form of an event's details."""
    return canonical(details)


def encode_entry(
    event: Event, targets: list[dict[str, str]], recorded_at: int, boot_id: str, sequence: int, commitment: bytes
) -> bytes:
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
            "targets": targets,
            "v": VERSION,
        }
    ).encode()
    if len(raw) > ENTRY_BYTES_MAX:
        raise ValueError(f"the entry has {len(raw)} bytes, allowed are {ENTRY_BYTES_MAX}")
    return raw


def commit_to(salt: bytes, details: bytes) -> bytes:
    """What an entry says of its details: SHA-256(salt ‖ details)."""
    return sha256(salt + details).digest()
