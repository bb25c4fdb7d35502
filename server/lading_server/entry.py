"""What is hashed of an event (DESIGN section 5): the entry, and the details it commits to. Pure.

The canonical form is RFC 8785. For plain values (text, integers, keys of ASCII) that is what json writes with sorted
keys, many times faster; what services record may hold others. Each event is encoded, most of them of the same shape: so
the shape is written out here, which takes half the time of dicts and a sorting of their keys.
"""

import base64
import json
from hashlib import sha256
from json.encoder import encode_basestring as quote
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


def encode_value(value: Any) -> str:
    """The canonical form of a value. Raises ValueError for what JSON cannot say."""
    kind = type(value)
    if kind is str:
        return quote(value)
    if kind is int and -(2**53) < value < 2**53:
        return str(value)
    return _encode(value) if is_plain(value) else canonical(doubled(value)).decode()


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


def encode_details(event: Event) -> str:
    """The canonical form of all that an entry only commits to: it can be erased. Raises ValueError for what JSON cannot
    say. The names of details are the server's own: ASCII."""
    actor = event.actor
    details = {name: encode_value(value) for name, value in event.details.items()}
    of_actor = [
        f'"{name}":{quote(value)}'
        for name, value in (
            ("auth_method", actor.auth_method),
            ("credential", actor.credential),
            ("email", actor.email),
            ("name", actor.name),
            ("on_behalf_of", actor.on_behalf_of),
        )
        if value
    ]
    details["actor"] = f"{{{','.join(of_actor)}}}"
    if len(event.targets) > 1:
        details["targets"] = encode_value(event.targets)
    details["changes"] = "true" if event.changes else "false"
    details["count"] = encode_value(event.count)
    for name, text in (
        ("agent", event.agent),
        ("error", event.error),
        ("reason", event.reason),
        ("request_id", event.request_id),
        ("source", event.source),
    ):
        if text:
            details[name] = quote(text)
    return f"{{{','.join([f'{quote(name)}:{details[name]}' for name in sorted(details)])}}}"


def encode_entry(event: Event, recorded_at: int, boot_id: str, sequence: int, commitment: bytes) -> bytes:
    """The entry of an event. Raises ValueError when it would be longer than any reader takes."""
    actor = event.actor
    targets = ",".join([f'{{"id":{quote(target)},"type":{quote(kind)}}}' for kind, target in event.targets])
    raw = (
        f'{{"action":{quote(event.action)},"actor":{{"id":{quote(actor.id)},"type":"{ACTORS[actor.type]}"}},'
        f'"code":{event.code:d},"details":"{base64.b64encode(commitment).decode()}",'
        f'"emitter":{{"boot_id":{quote(boot_id)},"sequence":{sequence}}},"id":{quote(event.id)},'
        f'"occurred_at":{event.occurred_at},"operation":{quote(event.operation)},'
        f'"organization":{quote(event.organization)},"outcome":"{OUTCOMES[event.outcome]}",'
        f'"parent":{quote(event.parent)},"recorded_at":{recorded_at},"stage":"{STAGES[event.stage]}",'
        f'"targets":[{targets}],"v":{VERSION}}}'
    ).encode()
    if len(raw) > ENTRY_BYTES_MAX:
        raise ValueError(f"the entry has {len(raw)} bytes, allowed are {ENTRY_BYTES_MAX}")
    return raw


def commit_to(salt: bytes, details: bytes) -> bytes:
    """What an entry says of its details: SHA-256(salt ‖ details)."""
    return sha256(salt + details).digest()
