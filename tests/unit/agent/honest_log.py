"""A log as the server keeps it, small and naive: the recursive definitions of RFC 9162 over a list of entries."""

import base64
import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lading.transparency import note
from lading.transparency.jcs import canonical
from lading.transparency.merkle import EMPTY_ROOT, leaf_hash, node_hash
from lading.v1.agent_link_pb2 import Dispatch, Envelope, Growth
from lading.v1.commands_pb2 import VERB_PULL, Verb

AGENT = "dock-1"
ORGANIZATION = "acme"


def command(verb: str, container: str = "web", *, within: float | None = None, **arguments: Any) -> Envelope:
    """A command for the agent; `within`: seconds that it may take."""
    envelope = Envelope(
        command=str(uuid.uuid4()),
        organization=ORGANIZATION,
        agent=AGENT,
        container=container,
        verb=Verb.Value(f"VERB_{verb.upper()}"),
        actor="ada",
        nonce=os.urandom(16),
    )
    envelope.issued_at.FromMicroseconds(time.time_ns() // 1000)
    if within is not None:
        envelope.execute_within.FromMicroseconds(int(within * 1e6))
    for key, value in arguments.items():
        setattr(envelope.arguments, key, value)
    return envelope


def intent_of(envelope: Envelope) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entry, without its commitment, and details of the event that records a command, as the server writes them."""
    action = Verb.Name(envelope.verb).removeprefix("VERB_").lower() if envelope.verb in Verb.values() else "nothing"
    pull = envelope.verb == VERB_PULL
    at = envelope.issued_at.ToMicroseconds()
    entry = {
        "action": f"{'image' if pull else 'container'}.{action}",
        "actor": {"id": envelope.actor, "type": "user"},
        "code": 0,
        "emitter": {"boot_id": str(uuid.uuid4()), "sequence": 7},
        "id": str(uuid.uuid4()),
        "occurred_at": at,
        "operation": envelope.command,
        "organization": envelope.organization,
        "outcome": "PENDING",
        "parent": str(uuid.uuid4()),
        "recorded_at": at,
        "stage": "RECEIVED",
        "targets": [
            {"id": envelope.agent, "type": "agent"}
            if pull
            else {"id": f"{envelope.agent}/{envelope.container}", "type": "container"}
        ],
        "v": 1,
    }
    digest = hashlib.sha256(envelope.SerializeToString(deterministic=True)).digest()
    details = {
        "actor": {"auth_method": "token"},
        "agent": envelope.agent,
        "changes": True,
        "count": 1,
        "envelope": base64.b64encode(digest).decode(),
        "request": {"name": f"agents/{envelope.agent}/containers/{envelope.container}"},
    }
    return entry, details


class HonestLog:
    """Entries, a key, and proofs. `private`: another log's key can be given to lie with."""

    def __init__(
        self, organization: str = ORGANIZATION, name: str = "harbour.internal", private: Ed25519PrivateKey | None = None
    ) -> None:
        self.private = private or Ed25519PrivateKey.generate()
        public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key = note.Key(f"{name}/{organization}", note.ED25519, public)
        self.leaves: list[bytes] = []
        self._intents: dict[bytes, Dispatch] = {}

    @property
    def size(self) -> int:
        return len(self.leaves)

    def append(self, entry: bytes) -> int:
        self.leaves.append(leaf_hash(entry))
        return self.size - 1

    def grow(self, count: int = 1) -> None:
        """Events of others."""
        for _ in range(count):
            self.append(os.urandom(40))

    def record(
        self, envelope: Envelope, entry: dict[str, Any] | None = None, details: dict[str, Any] | None = None
    ) -> Dispatch:
        """The intent, once in the log, without proof; what `entry` and `details` hold is said instead of the truth."""
        data = envelope.SerializeToString(deterministic=True)
        if data not in self._intents or entry or details:
            true_entry, true_details = intent_of(envelope)
            shown, salt = canonical({**true_details, **(details or {})}), os.urandom(16)
            commitment = base64.b64encode(hashlib.sha256(salt + shown).digest()).decode()
            raw = canonical({**true_entry, "details": commitment, **(entry or {})})
            self._intents[data] = Dispatch(
                envelope=data, entry=raw, entry_details=shown, salt=salt, index=self.append(raw)
            )
        found = Dispatch()
        found.CopyFrom(self._intents[data])
        return found

    def dispatch(self, envelope: Envelope, extends: int, **lies: Any) -> Dispatch:
        """The frame of a command, recorded when it is not yet, with its proof in the tree as it is now."""
        frame = self.record(envelope, **lies)
        frame.inclusion.extend(self.prove_inclusion(frame.index))
        frame.growth.CopyFrom(self.growth(extends))
        return frame

    def growth(self, extends: int, size: int | None = None) -> Growth:
        """What is shown to a witness that saw `extends` entries; `size`: the tree as it was then."""
        size = self.size if size is None else size
        return Growth(
            checkpoint=self.checkpoint(size),
            extends=extends,
            consistency=self.prove_consistency(extends, size),
            log_key=str(self.key),
        )

    def checkpoint(self, size: int) -> str:
        text = note.Checkpoint(self.key.name, size, root_of(self.leaves[:size])).text()
        return f"{text}\n{note.format_signature(self.key, self.private.sign(text.encode()))}"

    def prove_inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        return path(index, self.leaves[:size])

    def prove_consistency(self, first: int, size: int) -> list[bytes]:
        return subproof(first, self.leaves[:size], True) if 0 < first < size else []


def root_of(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1."""
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY_ROOT
    k = split(len(leaves))
    return node_hash(root_of(leaves[:k]), root_of(leaves[k:]))


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH of section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), root_of(leaves[k:])]
    return [*path(m - k, leaves[k:]), root_of(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of section 2.1.4.1."""
    if m == len(leaves):
        return [] if whole else [root_of(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), root_of(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), root_of(leaves[:k])]


def split(n: int) -> int:
    """The largest power of two below n."""
    return 1 << (n - 1).bit_length() - 1
