"""Receipts that stand alone: C2SP tlog-proof files whose `extra` carries the entry, its details, and the log's key."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lading.transparency import jcs
from lading.transparency.merkle import leaf_hash, verify_inclusion
from lading.transparency.note import Checkpoint, InvalidNote, Key, open_checkpoint, parse_checkpoint, parse_note
from lading.transparency.receipt import HEADER, Receipt, format_receipt, parse_receipt
from lading_client.verify import canonical
from lading_client.verify.broken import Broken
from lading_client.verify.log_check import read_details, read_entry

if TYPE_CHECKING:
    from lading.v1 import audit_log_pb2 as pb


@dataclass(frozen=True)
class Proven:
    """What a receipt proves. `details` is None where they were erased before it was made."""

    index: int
    entry: dict[str, Any]
    details: dict[str, Any] | None
    checkpoint: Checkpoint


def write(receipt: pb.Receipt) -> str:
    """The text of a receipt that stands alone, from the server's answer. Raises InvalidReceipt."""
    parts = {"details": receipt.entry_details, "entry": receipt.entry, "salt": receipt.salt}
    extra: dict[str, Any] = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    bare = parse_receipt(receipt.proof)
    proven = Receipt(bare.index, bare.proof, bare.checkpoint, jcs.canonical({**extra, "log_key": receipt.log_key}))
    return format_receipt(proven)


def is_receipt(head: str) -> bool:
    """Whether a file that begins like this is one."""
    return head.startswith(HEADER)


def origin_of(text: str) -> str:
    """Which log it says it is of. Raises ValueError."""
    return parse_checkpoint(parse_note(parse_receipt(text).checkpoint).text).origin


def verify(text: str, key: Key) -> Proven:
    """Check a receipt with the log's key. Raises Broken."""
    index = None
    try:
        receipt = parse_receipt(text)
        index = receipt.index
        # One text for one receipt: nothing may be hidden in how it is written.
        if format_receipt(receipt) != text:
            raise ValueError("the receipt is not written as it must be")
        extra = canonical.read(receipt.extra or b"")
        if extra.keys() != {"details", "entry", "log_key", "salt"} or extra["log_key"] != str(key):
            raise ValueError("the receipt does not carry an entry of this log")
        raw, details, salt = (_bytes(extra[name]) for name in ("entry", "details", "salt"))
        entry = read_entry(raw, key.name.rpartition("/")[2])
        said = read_details(entry, details, salt) if details or salt else None
        checkpoint = open_checkpoint(receipt.checkpoint, key)
        verify_inclusion(leaf_hash(raw), receipt.index, checkpoint.size, receipt.proof, checkpoint.root)
    except InvalidNote as failure:
        raise Broken(str(failure), part="checkpoint") from failure
    except ValueError as failure:
        raise Broken(str(failure), index, part="receipt") from failure
    return Proven(receipt.index, entry, said, checkpoint)


def _bytes(text: Any) -> bytes:
    raw = base64.b64decode(str(text), validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("that is not canonical base64")
    return raw
