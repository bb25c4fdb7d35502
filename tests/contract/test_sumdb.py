"""What `go` checks the log of Go modules with accepts our tiles, checkpoint and proofs, and no changed ones."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from lading.transparency.note import Checkpoint, parse_checkpoint, parse_note
from lading.v1 import audit_log_pb2 as pb
from lading_client import Client, requests
from tests.stack import Stack

SOURCE = pathlib.Path(__file__).with_name("sumdb.go")
GO_PATH = pathlib.Path("/usr/share/gocode")
SIZES = (3, 253, 344)
"""Events that are recorded before each export: two full tiles of entries and more, so that there is one above them."""


@dataclass(frozen=True)
class Exported:
    """A folder of tiles, the log's key, and what the server gave as proofs in that tree, as `sumdb.go` reads it."""

    folder: pathlib.Path
    key: str
    proofs: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    if not shutil.which("go") or not (GO_PATH / "src/golang.org/x/mod/sumdb/tlog").exists():
        pytest.skip("Go or its module x/mod is not installed: apt-get install golang-go golang-golang-x-mod-dev")
    folder = tmp_path_factory.mktemp("go")
    environment = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOCACHE": str(folder / "cache"), "GOFLAGS": ""}
    built = subprocess.run(
        ["go", "build", "-o", folder / "sumdb", SOURCE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert built.returncode == 0, built.stderr
    return folder / "sumdb"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    folder = tmp_path_factory.mktemp("log")
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        stack.start_server()
        with Client(stack.address, token=stack.admin_token) as client:
            trees = []
            for count in SIZES:
                client.record_all([requests.record("task.update", ["task:ü"]) for _ in range(count)])
                trees.append(export(stack, folder))
            last = trees.pop()

            def consistency(tree: Checkpoint) -> dict[str, Any]:
                request = pb.GetConsistencyProofRequest(first=tree.size, second=last.size)
                hashes = encode(client.audit.GetConsistencyProof(request).hashes)
                return {"size": tree.size, "root": encode([tree.root])[0], "hashes": hashes}

            def inclusion(index: int) -> dict[str, Any]:
                request = pb.GetInclusionProofRequest(index=index, size=last.size)
                return {"index": index, "hashes": encode(client.audit.GetInclusionProof(request).hashes)}

            proofs = {
                "consistency": list(map(consistency, trees)),
                "inclusion": list(map(inclusion, (0, 255, 256, last.size - 1))),
            }
            key = client.audit.GetCheckpoint(pb.GetCheckpointRequest()).log_key
        yield Exported(folder, key, proofs)


def export(stack: Stack, folder: pathlib.Path) -> Checkpoint:
    done = stack.lading("audit", "export", "--tiles", str(folder))
    assert done.returncode == 0, done.stderr
    return parse_checkpoint(parse_note((folder / "checkpoint").read_text()).text)


def encode(hashes: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(one).decode() for one in hashes]


def judge(verifier: pathlib.Path, what: Exported) -> tuple[bool, str]:
    """Whether it accepts, and what it says."""
    given = json.dumps(what.proofs)
    done = subprocess.run([verifier, what.folder, what.key], input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def test_sumdb_accepts_folder_checkpoint_and_proofs(verifier: pathlib.Path, exported: Exported) -> None:
    size = parse_checkpoint(parse_note((exported.folder / "checkpoint").read_text()).text).size
    assert size > sum(SIZES)
    assert judge(verifier, exported) == (True, f"accepted {size}")


FILES = ("checkpoint", "tile/0/000", "tile/0/002.p/*", "tile/1/000.p/2", "tile/entries/001", "tile/entries/002.p/*")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["first", "middle", "last", "cut", "gone"])
def test_sumdb_refuses_a_folder_that_was_changed(
    verifier: pathlib.Path, exported: Exported, tmp_path: pathlib.Path, name: str, change: str
) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "log")
    (path,) = folder.glob(name)
    raw = bytearray(path.read_bytes())
    if change == "gone":
        path.unlink()
    else:
        if change == "cut":
            del raw[-1:]
        else:
            raw[{"first": 0, "middle": len(raw) // 2, "last": -2}[change]] ^= 1
        path.write_bytes(raw)
    accepted, said = judge(verifier, replace(exported, folder=folder))
    assert not accepted, said


def test_sumdb_refuses_entries_that_were_swapped(
    verifier: pathlib.Path, exported: Exported, tmp_path: pathlib.Path
) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "log")
    first, second = (folder / f"tile/entries/{name}" for name in ("000", "001"))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert judge(verifier, replace(exported, folder=folder))[0] is False


def flip(hashes: list[str]) -> list[str]:
    raw = base64.b64decode(hashes[0])
    return [*encode([bytes([raw[0] ^ 1]) + raw[1:]]), *hashes[1:]]


@pytest.mark.parametrize(
    ("kind", "lie"),
    [
        ("inclusion", lambda proof: {**proof, "index": proof["index"] + 1}),
        ("inclusion", lambda proof: {**proof, "hashes": flip(proof["hashes"])}),
        ("inclusion", lambda proof: {**proof, "hashes": proof["hashes"][1:]}),
        ("consistency", lambda proof: {**proof, "size": proof["size"] - 1}),
        ("consistency", lambda proof: {**proof, "root": flip([proof["root"]])[0]}),
        ("consistency", lambda proof: {**proof, "hashes": flip(proof["hashes"])}),
        ("consistency", lambda proof: {**proof, "hashes": proof["hashes"][:-1]}),
    ],
)
def test_sumdb_refuses_a_proof_that_was_changed(
    verifier: pathlib.Path, exported: Exported, kind: str, lie: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    first, *rest = exported.proofs[kind]
    accepted, said = judge(verifier, replace(exported, proofs={**exported.proofs, kind: [lie(first), *rest]}))
    assert not accepted
    assert kind in said


def test_sumdb_refuses_another_key(verifier: pathlib.Path, exported: Exported) -> None:
    other = "x/acme+2c1b9c4d+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
    assert judge(verifier, replace(exported, key=other))[0] is False
