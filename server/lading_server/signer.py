"""Signs checkpoints, and refuses to sign a log that went back (DESIGN section 5).

The key, and beside it the size and root last signed of each log, live outside the database: a database restored from a
backup is noticed here and nowhere else. Crash order: the state is on disk before a signature is given away; a crash
between leaves a state that nobody saw the signature of, which the same tree still extends.

Several processes may serve one data directory. They sign in another order than they committed, so that a state is only
ever raised, under a lock; and every tree that another process made is held against it before it is built upon. A state
is written after its commit and read under the lock of the log's head, so that none is ahead of what is looked at.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading.transparency import merkle, note
from lading_server import errors
from lading_server.event import SYSTEM
from lading_server.tree import Growth

KEY_FILE = "log-key.pem"
NAME_FILE = "log-name"
STATE_FOLDER = "signed"
SLOT_BYTES = 4096
"""A state is written in place, into one of two slots by turns: one sync of one block, where a new file and its name
cost three of them; a write that a crash tears leaves the other slot, which is what was signed before."""

Prove = Callable[[int, int], Sequence[bytes]]
"""Consistency proof between two sizes of the log."""


class RolledBack(errors.Error):
    """The database went back behind what was signed."""

    code = errors.Code.UNAVAILABLE

    @property
    def organization(self) -> str:
        """Whose log it is."""
        return self.metadata.get("organization", "")


class NoLogKey(errors.Error):
    """The data directory holds no log key."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The end of a log that was last signed, or that is known to extend it."""

    size: int
    root: bytes


class Signer:
    """Holds the key of all logs of one installation; used by the ledger's thread alone."""

    def __init__(self, data: pathlib.Path, key: Ed25519PrivateKey, name: str) -> None:
        self._folder = data / STATE_FOLDER
        self._key, self._name = key, name
        self._public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self._known: dict[str, Signed] = {}
        self._written: dict[str, Signed] = {}
        self._accepted: set[str] = set()

    def organizations(self) -> list[str]:
        """Whose logs were signed; `system` first, as it must be the first to be accepted when it went back."""
        return sorted((path.stem for path in self._folder.glob("*.json")), key=lambda name: (name != SYSTEM, name))

    def key(self, organization: str) -> note.Key:
        """The key that verifies the checkpoints of this organization's log; its name is the log's origin."""
        return note.Key(f"{self._name}/{organization}", note.ED25519, self._public)

    def check(self, organization: str, size: int, root: bytes, prove: Prove) -> None:
        """Raise RolledBack unless the log, as it stands, extends what was last signed of it."""
        found = Signed(size, root)
        beside = None if organization in self._accepted else self._read(organization)
        for signed in {self._known.get(organization), beside} - {None, found}:
            assert signed is not None
            self._check_extends(organization, signed, size, root, prove)
        self._known[organization] = found

    def follow(self, organization: str, growth: Growth) -> None:
        """The log grew, and was `check`ed before: what it is now extends what it was, by construction."""
        self._known[organization] = Signed(growth.after.size, growth.after.root())

    def sign(self, organization: str, size: int, root: bytes) -> str:
        """The checkpoint of a log at the end that was last checked or followed."""
        if self._known.get(organization) != Signed(size, root):
            raise RolledBack(
                f"the log of {organization} at {size} was not checked before it was to be signed",
                metadata={"organization": organization},
            )
        key = self.key(organization)
        text = note.Checkpoint(key.name, size, root).text()
        if self._written.get(organization) != self._known[organization]:
            self._advance(organization, self._known[organization])
        return f"{text}\n{note.format_signature(key, self._key.sign(text.encode()))}"

    def accept(self, organization: str, size: int, root: bytes) -> Signed | None:
        """Go on from here although the log does not extend what was signed; returns what was. `keep` makes it last."""
        was = self._known.get(organization) or self._read(organization)
        self._known[organization] = Signed(size, root)
        self._accepted.add(organization)
        return was

    def keep(self, organization: str) -> None:
        """Write down the end that was last accepted or followed."""
        with self._alone(organization):
            self._write(organization, self._known[organization])
        self._accepted.discard(organization)

    def _check_extends(self, organization: str, known: Signed, size: int, root: bytes, prove: Prove) -> None:
        try:
            if not known.size and known.root != merkle.EMPTY_ROOT:
                raise ValueError("what was signed is damaged: an empty log has another root")
            if known.size:
                proof = prove(known.size, size) if known.size < size else ()
                merkle.verify_consistency(known.size, size, known.root, root, proof)
        except (ValueError, LookupError) as failure:
            raise RolledBack(
                f"the log of {organization} has {size} entries and does not extend the {known.size} that were signed "
                f"({failure}): the database was restored or changed. Bring back the newer one, or, if that is lost, "
                f"run `lading server accept-rollback --org {organization} --reason TEXT`",
                metadata={"organization": organization},
            ) from failure

    def _read(self, organization: str) -> Signed | None:
        """What was signed of a log by any process on this folder; None before the first time."""
        path = self._path(organization)
        try:
            return read_state(path.read_text(errors="replace"))
        except FileNotFoundError:
            return None
        except ValueError as failure:
            raise RolledBack(f"{path} cannot be read: {failure}", metadata={"organization": organization}) from failure

    def _advance(self, organization: str, state: Signed) -> None:
        """Write a state that extends the last one, into the slot that does not hold it; a reader takes the larger."""
        with self._alone(organization):
            newest = self._read(organization)
            if newest is None or self._path(organization).stat().st_size != 2 * SLOT_BYTES:
                self._write(organization, state)
            elif newest.size < state.size:
                with open(self._path(organization), "rb+") as file:
                    turn = int(is_slot(file.read(SLOT_BYTES), newest))
                    os.pwrite(file.fileno(), slot_of(state), turn * SLOT_BYTES)
                    os.fdatasync(file.fileno())
            elif newest.size == state.size and newest.root != state.root:
                raise RolledBack(
                    f"another process signed another tree of {state.size} entries of the log of {organization}: "
                    "do they use the same database?",
                    metadata={"organization": organization},
                )
            # Else another process has signed more of it, and that is on disk.
        self._written[organization] = state

    @contextlib.contextmanager
    def _alone(self, organization: str) -> Iterator[None]:
        """While this process is the one to write the state of a log."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file = os.open(self._folder / f"{organization}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _write(self, organization: str, state: Signed) -> None:
        """Write a state whatever was before."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._path(organization), 2 * slot_of(state))
        self._written[organization] = state

    def _path(self, organization: str) -> pathlib.Path:
        return self._folder / f"{organization}.json"


def slot_of(state: Signed) -> bytes:
    """A line of JSON that fills a slot."""
    root = state.root.hex()
    text = json.dumps({"size": state.size, "root": root, "check": zlib.crc32(f"{state.size} {root}".encode())})
    return text.ljust(SLOT_BYTES - 1).encode() + b"\n"


def is_slot(slot: bytes, state: Signed) -> bool:
    """Whether a slot holds this state; one that a crash tore holds none."""
    try:
        return read_slot(slot.decode(errors="replace")) == state
    except ValueError:
        return False


def read_slot(line: str) -> Signed:
    """The state in a slot. Raises ValueError."""
    try:
        state = json.loads(line)
        size, root = int(state["size"]), str(state["root"])
        # Older ones have no check; they were replaced as a whole.
        if state.get("check") not in (None, zlib.crc32(f"{size} {root}".encode())):
            raise ValueError("a write was torn")
        return Signed(size, bytes.fromhex(root))
    except (KeyError, TypeError, AttributeError) as failure:
        raise ValueError(f"it is no state: {failure}") from failure


def read_state(text: str) -> Signed:
    """The larger of the slots that hold one. Raises ValueError when none does."""
    found: list[Signed] = []
    failure: Exception | None = None
    for line in filter(None, map(str.strip, text.split("\n"))):
        try:
            found.append(read_slot(line))
        except ValueError as error:
            failure = error
    if not found:
        raise ValueError(f"it holds no state: {failure or 'it is empty'}")
    return max(found, key=lambda state: state.size)


def write_durably(path: pathlib.Path, content: bytes) -> None:
    """Replace a file by one that is on disk, mode 0600; a crash leaves the old one or the new one."""
    pending = path.with_name(path.name + ".new")
    with open(os.open(pending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    pending.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def create(data: pathlib.Path) -> None:
    """Make the key and the name of this installation's logs, unless they are there."""
    if (data / KEY_FILE).exists():
        return
    if not (data / NAME_FILE).exists():
        write_durably(data / NAME_FILE, f"lading-{secrets.token_hex(4)}.internal\n".encode())
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_durably(data / KEY_FILE, key)


def load(data: pathlib.Path) -> Signer:
    """The signer of a data directory. Raises NoLogKey, with what to do."""
    try:
        key = serialization.load_pem_private_key((data / KEY_FILE).read_bytes(), None)
        name = (data / NAME_FILE).read_text().strip()
    except FileNotFoundError as failure:
        raise NoLogKey(
            f"{failure.filename} is missing: bring it back from where the data directory was copied; without it no "
            "agent will believe this server"
        ) from None
    except ValueError as failure:
        raise NoLogKey(f"{data / KEY_FILE} is not a private key: {failure}") from None
    if not isinstance(key, Ed25519PrivateKey) or not note.is_name(name):
        raise NoLogKey(f"{data / KEY_FILE} must be an Ed25519 key, and {NAME_FILE} one word without a plus sign")
    return Signer(data, key, name)
