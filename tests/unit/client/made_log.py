"""A log that a test makes: with the server's own encoders and signer, served by hand, so that it can lie."""

import itertools
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lading.transparency import note
from lading.transparency.receipt import Receipt, format_receipt
from lading.v1 import audit_log_pb2 as pb
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger import rows
from lading_server.services.messages import event_of
from lading_server.tree import Edge, grow, hash_leaf, hash_pair, prove_consistency, prove_inclusion

ORGANIZATION = "acme"
BOOT = "0198c2de-0000-7000-8000-000000000001"
BEGAN = 1_763_000_000_000_000
ADA = Actor(ActorType.USER, "ada", "ada@acme.example", "Ada", "token", "t1")
OF_DETAILS = (
    *("entry_details", "salt", "reason", "error", "request", "diff", "details", "method", "peer", "user_agent"),
    *("trace_id", "request_id", "claimed_address", "messages_in", "messages_out", "duration", "agent_time"),
)
DATA = {"state": "done", "tags": ["a", None, True], "ratio": 0.5, "größe": 3}


def id_of(number: int) -> str:
    return str(uuid.UUID(int=0x0198C2DE_0000_7000_8000_000000000000 + number))


class MadeLog:
    """`events` may be changed before they are served; `sign` signs what they are then, unless told what to sign."""

    def __init__(self, count: int = 0, organization: str = ORGANIZATION) -> None:
        self.organization = organization
        self.origin = f"test.internal/{organization}"
        self.private = Ed25519PrivateKey.generate()
        self.key = note.Key(self.origin, note.ED25519, public_of(self.private))
        self.events: list[pb.Event] = []
        self.cosignatures: list[pb.Cosignature] = []
        self.signed: tuple[int, bytes] | None = None
        self.tiles: dict[tuple[int, int], list[bytes]] = {}
        self.calls: list[str] = []
        self._sequences: dict[str, Iterator[int]] = {}
        for number in range(count):
            self.add(number)
        self.build()

    @property
    def client(self) -> Any:
        """Has what the checks use of a Client."""
        return SimpleNamespace(audit=self)

    def add(
        self,
        operation: int,
        stage: Stage = Stage.COMPLETED,
        outcome: Outcome = Outcome.SUCCESS,
        *,
        boot: str = BOOT,
        action: str = "task.update",
        actor: Actor = ADA,
        data: Any = DATA,
        **more: Any,
    ) -> pb.Event:
        index = len(self.events)
        event = Event(
            id=id_of(10_000_000 + index),
            organization=self.organization,
            operation=id_of(operation),
            stage=stage,
            occurred_at=BEGAN + index,
            actor=actor,
            action=action,
            outcome=outcome,
            targets=(("container", f"dock-1/c{index}"), ("task", "42")),
            agent="dock-1",
            reason=f"because {index} – ü",
            request_id="r1",
            source="lading-cli/1",
            changes=True,
            details={
                "method": "/lading.v1.AuditLog/RecordEvents",
                "peer": "127.0.0.1",
                "duration_us": 1500,
                "messages_in": 1,
                "request": {"name": "x", "limit": 50},
                "diff": [{"op": "replace", "path": "/state", "was": 1, "value": "done"}],
                "data": data,
            },
            **more,
        )
        row = rows.encode(event, index, BEGAN + index, boot, self._number(boot))
        message = event_of(row, with_entry=True)
        self.events.append(message)
        return message

    def skip(self) -> None:
        """Leave a number out."""
        self._number(BOOT)

    def _number(self, boot: str) -> int:
        return next(self._sequences.setdefault(boot, itertools.count(1)))

    def erase(self, *indexes: int) -> pb.Event:
        """Erase the details of events, and record that; returns the record."""
        record = self.add(9_000_000 + len(self.events), action="audit.erase", data={"erased": len(indexes)})
        for index in indexes:
            erase(self.events[index])
            self.events[index].erasure.erased_at.CopyFrom(record.recorded_at)
            self.events[index].erasure.reason = record.reason
        self.build()
        return record

    def build(self) -> None:
        """The tree of the entries as they are now."""
        growth = grow(Edge(), [hash_leaf(event.entry) for event in self.events])
        self.nodes = growth.nodes
        self.tiles.clear()
        level, count = 0, len(self.events)
        while count:
            for at in range(count):
                self.tiles.setdefault((level, at // 256), []).append(self.nodes[level * 8, at])
            level, count = level + 1, count // 256
        self.signed = (growth.after.size, growth.after.root())

    def root(self, size: int) -> bytes:
        return grow(Edge(), [hash_leaf(event.entry) for event in self.events[:size]]).after.root()

    def checkpoint(self) -> str:
        assert self.signed is not None
        text = note.Checkpoint(self.origin, *self.signed).text()
        return f"{text}\n{note.format_signature(self.key, self.private.sign(text.encode()))}"

    def cosign(self, agent: str, size: int, root: bytes | None = None, private: Ed25519PrivateKey | None = None) -> str:
        """Let an agent cosign a tree; its key."""
        private = private or Ed25519PrivateKey.generate()
        key = note.Key(f"{ORGANIZATION}/{agent}", note.COSIGNATURE, public_of(private))
        found = root or self.root(size)
        blob = private.sign(note.cosigned(note.Checkpoint(self.origin, size, found).text(), 1_763_000_000))
        line = note.format_signature(key, (1_763_000_000).to_bytes(8, "big") + blob)
        self.cosignatures.append(
            pb.Cosignature(agent=f"agents/{agent}", witness_key=str(key), size=size, root=found, signature=line)
        )
        return str(key)

    # -- what a server answers

    def GetCheckpoint(self, request: pb.GetCheckpointRequest) -> pb.GetCheckpointResponse:
        assert self.signed is not None
        return pb.GetCheckpointResponse(
            checkpoint=self.checkpoint(),
            log_key=str(self.key),
            size=self.signed[0],
            cosignatures=self.cosignatures,
        )

    def ExportEvents(self, request: pb.ExportEventsRequest) -> Iterator[pb.ExportEventsResponse]:
        assert request.with_entries
        found = self.events[request.from_index :]
        found = found if request.oldest_first else found[::-1]
        found = found[: min(request.limit or 700, 700)]
        for begin in range(0, len(found), 100):
            yield pb.ExportEventsResponse(events=found[begin : begin + 100])

    def ReadTiles(self, request: pb.ReadTilesRequest) -> Iterator[pb.ReadTilesResponse]:
        self.calls.append("ReadTiles")
        for tile in request.tiles:
            if tile.level >= 0:
                data = b"".join(self.tiles[tile.level, tile.index][: tile.width])
            else:
                begin = tile.index * 256
                entries = [event.entry for event in self.events[begin : begin + tile.width]]
                data = b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
            yield pb.ReadTilesResponse(tile=tile, data=data)

    def GetConsistencyProof(self, request: pb.GetConsistencyProofRequest) -> pb.ConsistencyProof:
        hashes = prove_consistency(request.first, request.second, self._node)
        return pb.ConsistencyProof(first=request.first, second=request.second, hashes=hashes)

    def GetReceipt(self, request: pb.GetReceiptRequest) -> pb.Receipt:
        assert self.signed is not None
        event = next(event for event in self.events if request.id in (event.id, event.operation))
        proof = prove_inclusion(event.index, self.signed[0], self._node)
        text = format_receipt(Receipt(event.index, proof, self.checkpoint()))
        return pb.Receipt(
            proof=text,
            entry=event.entry,
            entry_details=event.entry_details,
            salt=event.salt,
            log_key=str(self.key),
        )

    def _node(self, level: int, index: int) -> bytes:
        if (level, index) not in self.nodes:
            return hash_pair(self._node(level - 1, index * 2), self._node(level - 1, index * 2 + 1))
        return self.nodes[level, index]


def erase(event: pb.Event) -> None:
    """As the server shows an event whose details were erased."""
    for name in OF_DETAILS:
        event.ClearField(name)  # type: ignore[arg-type]
    event.actor.CopyFrom(pb.Actor(type=event.actor.type, id=event.actor.id))
    event.erasure.actor, event.erasure.reason = "ada", "asked for"


def public_of(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


__all__ = ["MadeLog", "Outcome", "Stage", "erase", "id_of"]
