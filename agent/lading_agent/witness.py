"""The agent as a witness of its organization's log (C2SP tlog-witness): every tree must extend the last one it saw."""

import os
import pathlib
import time
from collections.abc import Sequence
from dataclasses import replace

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading.transparency import merkle, note
from lading.transparency.result import Statement
from lading.v1.agent_link_pb2 import Growth, Result, WitnessSignature
from lading.v1.commands_pb2 import CommandState
from lading_agent.errors import LogRefused, SessionBroken, SettingsError
from lading_agent.journal import Journal, View

KEY_FILE = "witness-key.pem"
SIZE_MAX = 2**63 - 1


class Witness:
    """One agent's eye on the log; `open` first. What it saw is in the journal, and moves only there."""

    def __init__(self, organization: str, agent: str, journal: Journal) -> None:
        self.organization, self.agent = organization, agent
        self._journal = journal
        self._private: Ed25519PrivateKey | None = None

    async def open(self) -> None:
        """Raises JournalError when the journal is another agent's, SettingsError when the key cannot be read or made.

        After the journal is open: its lock keeps two agents from making two keys.
        """
        await self._journal.claim(f"{self.organization}/{self.agent}")
        self._private = load_key(self._journal.folder)

    @property
    def size(self) -> int:
        """Entries of the last tree it saw; 0 for none."""
        return self._journal.view.tree.size if self._journal.view is not None else 0

    @property
    def key(self) -> note.Key:
        """Verifies its cosignatures."""
        assert self._private is not None, "open() first"
        public = self._private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return note.Key(f"{self.organization}/{self.agent}", note.COSIGNATURE, public)

    def check(self, growth: Growth) -> View:
        """The tree that the server shows, if it extends the last one; keep it before anything acts on it.

        Raises LogRefused when it does not, and SessionBroken when the proof begins at another tree than that one: then
        frames were lost, and the next session's Hello says where to begin.
        """
        known = self._journal.view
        try:
            key = known.log_key if known is not None else self._pin(growth.log_key)
            if growth.log_key != str(key):
                shown = growth.log_key[:256]
                raise LogRefused(f"proof: the server shows a log of the key {shown}, this agent has pinned {key}")
            tree = note.open_checkpoint(growth.checkpoint, key)
            if growth.extends != self.size:
                raise SessionBroken(f"the log is proven from {growth.extends} entries, and this agent saw {self.size}")
            last = known.tree if known is not None else note.Checkpoint(key.name, 0, merkle.EMPTY_ROOT)
            check_extends(last, tree, growth.consistency)
        except ValueError as error:
            raise LogRefused(f"proof: {error}") from error
        return View(key, growth.checkpoint, tree)

    def cosign(self) -> WitnessSignature:
        """Sign the last tree, which is on disk (C2SP tlog-cosignature, cosignature/v1)."""
        assert self._journal.view is not None, "nothing was seen yet"
        assert self._private is not None, "open() first"
        tree, at = self._journal.view.tree, int(time.time())
        blob = at.to_bytes(8, "big") + self._private.sign(note.cosigned(tree.text(), at))
        return WitnessSignature(size=tree.size, root=tree.root, signature=note.format_signature(self.key, blob))

    def sign_result(self, result: Result) -> Result:
        """The same, with what this agent signs of it (`lading.transparency.result`), unless that is there."""
        assert self._private is not None, "open() first"
        if not result.signature:
            statement = Statement(
                self.organization,
                self.agent,
                result.command,
                CommandState.Name(result.state).removeprefix("COMMAND_STATE_"),
                result.code,
                result.error,
                result.evidence,
                result.container_id,
            )
            if result.HasField("exec"):
                statement = replace(
                    statement,
                    exit_code=None if result.exec.still_runs else result.exec.exit_code,
                    output_sha256=result.exec.output_sha256,
                    output_bytes=result.exec.output_bytes,
                )
            result.signature = self._private.sign(statement.text())
        return result

    def _pin(self, text: str) -> note.Key:
        """The key at first contact, which is believed; raises ValueError unless it is of this organization's log."""
        key = note.parse_key(text)
        if key.algorithm != note.ED25519 or key.name.rpartition("/")[2] != self.organization:
            raise note.InvalidNote(f"{text[:256]!r} is not the key of the log of {self.organization}")
        return key


def check_extends(last: note.Checkpoint, tree: note.Checkpoint, proof: Sequence[bytes]) -> None:
    """Raises InvalidProof unless the tree extends the last one, which may be empty."""
    if tree.size > SIZE_MAX:
        raise merkle.InvalidProof(f"no log has {tree.size} entries")
    if last.size > 0:
        merkle.verify_consistency(last.size, tree.size, last.root, tree.root, proof)
    elif proof or (tree.size == 0 and tree.root != merkle.EMPTY_ROOT):
        raise merkle.InvalidProof("a tree that extends an empty one needs no proof, and an empty one has one root")


def load_key(folder: pathlib.Path) -> Ed25519PrivateKey:
    """The witness key of the folder, made at the first start; raises SettingsError."""
    path = folder / KEY_FILE
    try:
        if not path.exists():
            _create(path)
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise SettingsError(f"the witness key {path} cannot be read or made: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{path} is not a private key: bring it back, or remove it for a new one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path} is not an Ed25519 key: bring it back, or remove it for a new one")
    return key


def _create(path: pathlib.Path) -> None:
    """On disk before it is used; a crash leaves the key, or none and a file that is overwritten."""
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pending = path.with_name(f"{path.name}.new")
    with open(os.open(pending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    pending.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
