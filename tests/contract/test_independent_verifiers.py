"""Verifiers that nobody of Lading wrote accept what a real server and its agent sign, and refuse it changed."""

import base64
import json
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lading.transparency.note import Key, Note, parse_key, parse_note
from lading.transparency.receipt import parse_receipt
from lading.v1 import audit_log_pb2 as pb
from lading.v1 import audit_log_pb2_grpc
from tests.stack import Stack

VERIFIER = pathlib.Path(__file__).with_name("sigstore.js")
MODULES = pathlib.Path(__file__).parents[2] / "node_modules"


@dataclass(frozen=True)
class Signed:
    """A checkpoint with what the agent cosigned of the log, and receipts of its events."""

    checkpoint: pb.GetCheckpointResponse
    receipts: list[pb.Receipt]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        server = stack.start_server()
        stack.start_agent("dock-1", processes={"web": ["sleep", "1000"]})
        audit = audit_log_pb2_grpc.AuditLogStub(stack.channel())
        who = stack.credentials()

        def checkpoint() -> pb.GetCheckpointResponse:
            return audit.GetCheckpoint(pb.GetCheckpointRequest(), metadata=who, timeout=20)

        server.wait_until(lambda: bool(checkpoint().cosignatures), "the agent cosigned")
        events = audit.ListEvents(pb.ListEventsRequest(), metadata=who, timeout=20).events
        receipts = [
            audit.GetReceipt(pb.GetReceiptRequest(id=event.id), metadata=who, timeout=20) for event in events[-7:]
        ]
        yield Signed(checkpoint(), receipts)


def accepts(key: Key, message: bytes, signature: bytes, folder: pathlib.Path) -> bool:
    """Whether OpenSSL takes it for a signature of this key."""
    if not shutil.which("openssl"):
        pytest.skip("OpenSSL is not installed: apt-get install openssl")
    parts = {"key": spki(key), "message": message, "signature": signature}
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    command = "openssl pkeyutl -verify -rawin -pubin -keyform DER -inkey key -in message -sigfile signature"
    return subprocess.run(command.split(), cwd=folder, capture_output=True, timeout=20).returncode == 0


def spki(key: Key) -> bytes:
    return Ed25519PublicKey.from_public_bytes(key.public).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def one_signature(note: Note, key: Key) -> bytes:
    (signature,) = (one for one in note.signatures if one.key_id == key.id)
    return signature.blob


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def test_openssl_accepts_the_checkpoint_and_no_other(signed: Signed, tmp_path: pathlib.Path) -> None:
    key = parse_key(signed.checkpoint.log_key)
    note = parse_note(signed.checkpoint.checkpoint)
    text, signature = note.text.encode(), one_signature(note, key)
    assert accepts(key, text, signature, tmp_path)
    assert not accepts(key, flipped(text, -2), signature, tmp_path)
    assert not accepts(key, text, flipped(signature, 0), tmp_path)
    assert not accepts(Key(key.name, key.algorithm, bytes(31) + b"\1"), text, signature, tmp_path)


def test_openssl_accepts_the_cosignature_and_no_other(signed: Signed, tmp_path: pathlib.Path) -> None:
    (cosignature,) = signed.checkpoint.cosignatures
    origin = parse_note(signed.checkpoint.checkpoint).text.split("\n")[0]
    root = base64.b64encode(cosignature.root).decode()
    key = parse_key(cosignature.witness_key)
    (line,) = parse_note(f"\n\n{cosignature.signature}").signatures
    at = int.from_bytes(line.blob[:8], "big")
    # As C2SP tlog-cosignature v1 has it, written out here once more.
    message = f"cosignature/v1\ntime {at}\n{origin}\n{cosignature.size}\n{root}\n".encode()
    assert accepts(key, message, line.blob[8:], tmp_path)
    assert not accepts(key, message.replace(b"time 1", b"time 2"), line.blob[8:], tmp_path)


@pytest.mark.node
def test_sigstore_accepts_receipts_and_no_changed_ones(signed: Signed) -> None:
    if not shutil.which("node"):
        pytest.skip("Node.js is not installed: apt-get install nodejs npm")
    if not (MODULES / "@sigstore/verify").exists():
        pytest.skip("@sigstore/verify is not installed: make node_modules/installed")
    whole = [as_document(receipt) for receipt in signed.receipts]
    last = whole[-1]
    changed = [
        {**last, "entry": encoded(flipped(signed.receipts[-1].entry, 20))},
        {**last, "index": last["index"] + 1},
        {**last, "hashes": last["hashes"][:-1]},
        {**last, "hashes": [encoded(flipped(base64.b64decode(one), 0)) for one in last["hashes"]]},
        {**last, "checkpoint": last["checkpoint"].replace("\n", "\n1", 1)},
        {**last, "checkpoint": last["checkpoint"].replace("/acme\n", "/acne\n", 1)},
    ]
    assert judge(parse_key(signed.receipts[0].log_key), whole) == ["accepted"] * len(whole)
    verdicts = judge(parse_key(signed.receipts[0].log_key), changed)
    assert "accepted" not in verdicts
    assert all("TLOG_INCLUSION_PROOF_ERROR" in verdict for verdict in verdicts), verdicts


def judge(key: Key, receipts: list[dict[str, Any]]) -> list[str]:
    described = {"name": key.name, "id": encoded(key.id), "spki": encoded(spki(key))}
    given = json.dumps({"modules": str(MODULES), "key": described, "receipts": receipts})
    done = subprocess.run(["node", VERIFIER], input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def as_document(receipt: pb.Receipt) -> dict[str, Any]:
    proof = parse_receipt(receipt.proof)
    hashes = [encoded(one) for one in proof.proof]
    return {
        "checkpoint": proof.checkpoint,
        "index": proof.index,
        "hashes": hashes,
        "entry": encoded(receipt.entry),
    }


def encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
