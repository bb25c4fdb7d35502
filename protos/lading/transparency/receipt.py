"""Self-contained proofs that an entry is in a log: C2SP tlog-proof v1 (file ending `.tlog-proof`)."""

import base64
import binascii
import re
from dataclasses import dataclass

from lading.transparency import merkle, note

HEADER = "c2sp.org/tlog-proof@v1"


class InvalidReceipt(ValueError):
    """The receipt does not hold."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Index, inclusion proof and signed checkpoint; `extra`: bytes that travel along, unproven."""

    index: int
    proof: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None


def format_receipt(receipt: Receipt) -> str:
    """The text of a receipt."""
    extra = "" if receipt.extra is None else f"extra {base64.b64encode(receipt.extra).decode()}\n"
    hashes = "".join(f"{base64.b64encode(one).decode()}\n" for one in receipt.proof)
    return f"{HEADER}\n{extra}index {receipt.index}\n{hashes}\n{receipt.checkpoint}"


def parse_receipt(text: str) -> Receipt:
    """Read a receipt. Raises InvalidReceipt."""
    head, empty, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    if not empty or lines[0] != HEADER:
        raise InvalidReceipt(f"a receipt begins with {HEADER}")
    extra = None
    if len(lines) > 1 and lines[1].startswith("extra "):
        extra = _decode(lines.pop(1).removeprefix("extra "))
    if len(lines) < 2 or not re.fullmatch(r"index (0|[1-9][0-9]{0,18})", lines[1]):
        raise InvalidReceipt("a receipt has a line `index N`")
    proof = tuple(_decode(line) for line in lines[2:])
    return Receipt(int(lines[1].removeprefix("index ")), proof, checkpoint, extra)


def verify_receipt(receipt: Receipt, entry: bytes, log_key: note.Key) -> note.Checkpoint:
    """Check that the entry is in the log, as the receipt says; returns the checkpoint it is proven against.

    Raises InvalidReceipt.
    """
    try:
        checkpoint = note.open_checkpoint(receipt.checkpoint, log_key)
        merkle.verify_inclusion(merkle.leaf_hash(entry), receipt.index, checkpoint.size, receipt.proof, checkpoint.root)
    except ValueError as failure:
        raise InvalidReceipt(str(failure)) from failure
    return checkpoint


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidReceipt("that is not base64") from None
