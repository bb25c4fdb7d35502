"""What a call asked for, kept so that the same call is known again, and another one is told in what it differs."""

import base64
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from google.protobuf.message import Message

SALT_BYTES = DIGEST_BYTES = 16


def fields_of(message: Message, without: Collection[str] = ()) -> dict[str, bytes]:
    """The fields that are set, those of messages inside by dotted names (`spec.image`), with the bytes of each."""
    found: dict[str, bytes] = {}
    for field, value in message.ListFields():
        if field.name in without:
            continue
        inner = field.message_type
        if inner is None or field.is_repeated:
            found[field.name] = bytes_of(value)
        elif inner.full_name.startswith("google.protobuf."):
            found[field.name] = value.SerializeToString(deterministic=True)
        else:
            found |= {f"{field.name}.{name}": said for name, said in fields_of(value).items()} or {field.name: b""}
    return found


def bytes_of(value: Any) -> bytes:
    """The same bytes for the same value: a scalar, a list or a map."""
    if isinstance(value, Message):
        return value.SerializeToString(deterministic=True)
    if isinstance(value, Mapping):
        return repr([(key, bytes_of(value[key])) for key in sorted(value)]).encode()
    if isinstance(value, str | bytes | int | float):
        return repr(value).encode()
    return repr([bytes_of(item) for item in value]).encode()


def digest(fields: Mapping[str, bytes]) -> str:
    """What is kept of fields: a digest of each, salted, because they may hold secrets. JSON."""
    salt = os.urandom(SALT_BYTES)
    kept = {name: _digest(salt, name, value) for name, value in fields.items()}
    return json.dumps({"salt": base64.b64encode(salt).decode(), "fields": kept}, separators=(",", ":"))


def differences(kept: str | bytes, fields: Mapping[str, bytes]) -> list[str]:
    """Names of the fields that are not as they were; empty when all are."""
    was = json.loads(kept)
    salt, digests = base64.b64decode(was["salt"]), was["fields"]
    now = {name: _digest(salt, name, value) for name, value in fields.items()}
    return sorted(name for name in digests.keys() | now.keys() if digests.get(name) != now.get(name))


def _digest(salt: bytes, name: str, value: bytes) -> str:
    digest = hashlib.sha256(salt + name.encode() + b"\0" + value).digest()
    return base64.b64encode(digest[:DIGEST_BYTES]).decode()
