"""Signed notes and checkpoints: C2SP signed-note v1, tlog-checkpoint v1, tlog-cosignature v1."""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURES_MAX = 16
NOTE_BYTES_MAX = 1_000_000
ED25519 = 0x01
COSIGNATURE = 0x04


class InvalidNote(ValueError):
    """The note does not hold."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that verifies notes: the signer's name, the algorithm (ED25519 or COSIGNATURE), 32 bytes of public key."""

    name: str
    algorithm: int
    public: bytes

    @property
    def id(self) -> bytes:
        """Its 4 bytes in a signature line: SHA-256(name ‖ LF ‖ algorithm ‖ public)[:4]."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.algorithm]) + self.public).digest()[:4]

    def __str__(self) -> str:
        """As a verifier key: `name+12345678+base64`."""
        encoded = base64.b64encode(bytes([self.algorithm]) + self.public).decode()
        return f"{self.name}+{self.id.hex()}+{encoded}"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: who says it is, 4 bytes of key id, and what the algorithm puts there."""

    name: str
    key_id: bytes
    blob: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A text, ending in a newline, and its signatures; nothing verified yet."""

    text: str
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the log claims: its origin, how many leaves, and their root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def parse_key(text: str) -> Key:
    """Read a verifier key. Raises InvalidNote."""
    name, plus, rest = text.strip().partition("+")
    digits, also_plus, encoded = rest.partition("+")
    raw = _decode(encoded) if plus and also_plus else b""
    if not is_name(name) or len(raw) != 33 or raw[0] not in (ED25519, COSIGNATURE):
        raise InvalidNote("a verifier key is NAME+8 HEX DIGITS+BASE64, of Ed25519")
    key = Key(name, raw[0], raw[1:])
    if digits != key.id.hex():
        raise InvalidNote(f"the id of the key {name} does not fit the key")
    return key


def is_name(name: str) -> bool:
    """Whether it can name a key: not empty, no white space, no plus sign."""
    return bool(name) and "+" not in name and not re.search(r"\s", name)


def parse_note(raw: str) -> Note:
    """Take a signed note apart. Raises InvalidNote."""
    if len(raw) > NOTE_BYTES_MAX or re.search(r"[\x00-\x09\x0b-\x1f\x7f]", raw):
        raise InvalidNote("the note is too long, or holds control characters")
    split = raw.rfind("\n\n")
    if split < 0 or not raw.endswith("\n"):
        raise InvalidNote("the note has no signatures")
    lines = raw[split + 2 :].splitlines()
    if not 1 <= len(lines) <= SIGNATURES_MAX:
        raise InvalidNote(f"the note has {len(lines)} signatures, allowed are 1 to {SIGNATURES_MAX}")
    return Note(raw[: split + 1], tuple(_parse_signature(line) for line in lines))


def _parse_signature(line: str) -> Signature:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "—" or not is_name(parts[1]):
        raise InvalidNote("a signature line is `— NAME BASE64`")
    raw = _decode(parts[2])
    if len(raw) < 5:
        raise InvalidNote("a signature is too short")
    return Signature(parts[1], raw[:4], raw[4:])


def verify_note(note: Note, keys: Iterable[Key]) -> list[tuple[Key, int]]:
    """The keys whose signatures hold, with the time of the signature (seconds since the epoch; 0 where it has none).

    Signatures by unknown keys are passed over. Raises InvalidNote when one by a known key does not hold, or none holds.
    """
    known = {(key.name, key.id): key for key in keys}
    found: list[tuple[Key, int]] = []
    for signature in note.signatures:
        key = known.pop((signature.name, signature.key_id), None)
        if key is not None:
            found.append((key, _verify(key, note.text, signature.blob)))
    if not found:
        raise InvalidNote("no signature by a known key")
    return found


def _verify(key: Key, text: str, blob: bytes) -> int:
    at = 0
    message = text.encode()
    if key.algorithm == COSIGNATURE:
        if len(blob) != 72:
            raise InvalidNote(f"the cosignature of {key.name} does not have 72 bytes")
        at, blob = int.from_bytes(blob[:8], "big"), blob[8:]
        message = cosigned(text, at)
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(blob, message)
    except (InvalidSignature, ValueError):
        raise InvalidNote(f"the signature of {key.name} does not hold") from None
    return at


def cosigned(text: str, at: int) -> bytes:
    """What a witness signs of a checkpoint's text at a time, seconds since the epoch (tlog-cosignature)."""
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def format_signature(key: Key, blob: bytes) -> str:
    """A signature as a line of a note."""
    return f"— {key.name} {base64.b64encode(key.id + blob).decode()}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Read the text of a checkpoint. Raises InvalidNote; further lines (extensions) are allowed and passed over."""
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0] or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
        raise InvalidNote("a checkpoint is ORIGIN, SIZE and ROOT, a line each")
    root = _decode(lines[2])
    if len(root) != 32:
        raise InvalidNote("the root of a checkpoint has 32 bytes")
    return Checkpoint(lines[0], int(lines[1]), root)


def open_checkpoint(raw: str, log_key: Key) -> Checkpoint:
    """Read a checkpoint that this log must have signed, under its own name as origin. Raises InvalidNote."""
    note = parse_note(raw)
    verify_note(note, [log_key])
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != log_key.name:
        raise InvalidNote(f"the checkpoint is of the log {checkpoint.origin}, not of {log_key.name}")
    return checkpoint


def _decode(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidNote("that is not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise InvalidNote("that is not canonical base64")
    return raw
