"""Entries: the exact bytes that are hashed into the log, and the details they commit to (DESIGN section 5).

An entry is a JSON object in canonical form (RFC 8785) of at most 64 KB. It holds what must stay for ever; `details` is
the base64 of SHA-256(salt ‖ canonical form of the details). Details and salt stand beside it, and can be erased
together without breaking any proof.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Any

from lading.transparency.jcs import canonical, parse

ENTRY_BYTES_MAX = 65_535
SALT_BYTES = 16
VERSION = 1


class InvalidEntry(ValueError):
    """The entry does not hold."""


def parse_entry(raw: bytes) -> dict[str, Any]:
    """Read an entry. Raises InvalidEntry unless it is in canonical form and of a known version."""
    if len(raw) > ENTRY_BYTES_MAX:
        raise InvalidEntry(f"the entry has {len(raw)} bytes, allowed are {ENTRY_BYTES_MAX}")
    try:
        entry = parse(raw)
        same = canonical(entry) == raw
    except (ValueError, RecursionError) as failure:
        raise InvalidEntry("the entry is not JSON") from failure
    if not same or not isinstance(entry, dict):
        raise InvalidEntry("the entry is not a JSON object in canonical form")
    if entry.get("v") != VERSION:
        raise InvalidEntry(f"the entry is of version {entry.get('v')}, known is {VERSION}")
    return entry


def check_details(entry: dict[str, Any], salt: bytes, details: dict[str, Any]) -> None:
    """Check that these are the details that the entry commits to. Raises InvalidEntry."""
    try:
        wanted = base64.b64decode(entry.get("details", ""), validate=True)
        found = hashlib.sha256(salt + canonical(details)).digest()
    except (binascii.Error, TypeError, ValueError) as failure:
        raise InvalidEntry("the details cannot be checked against the entry") from failure
    if len(salt) != SALT_BYTES or not hmac.compare_digest(wanted, found):
        raise InvalidEntry("the details are not those that the entry commits to")
