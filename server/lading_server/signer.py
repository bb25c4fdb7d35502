"""Signs checkpoints, and refuses to sign a log that went back (DESIGN section 5).

The key, and beside it the size and root last signed of each log, live outside the database: a database restored from a
backup is noticed here and nowhere else. Crash order: the state is on disk before a signature is given away; a crash
between leaves a state that nobody saw the signature of, which the same tree still extends.
"""

import json
import os
import pathlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading.transparency import merkle, note
from lading_server import errors
from lading_server.tree import Growth

KEY_FILE = "log-key.pem"
NAME_FILE = "log-name"
STATE_FOLDER = "signed"

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

    def organizations(self) -> list[str]:
        """Whose logs were signed."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def key(self, organization: str) -> note.Key:
        """The key that verifies the checkpoints of this organization's log; its name is the log's origin."""
        return note.Key(f"{self._name}/{organization}", note.ED25519, self._public)

    def check(self, organization: str, size: int, root: bytes, prove: Prove) -> None:
        """Raise RolledBack unless the log, as it stands, extends what was last signed of it."""
        known = self._last(organization)
        if known is not None and (size, root) != (known.size, known.root):
            self._check_extends(organization, known, size, root, prove)
        self._known[organization] = Signed(size, root)

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
            self._write(organization, self._known[organization])
        return f"{text}\n{note.format_signature(key, self._key.sign(text.encode()))}"

    def accept(self, organization: str, size: int, root: bytes) -> Signed | None:
        """Go on from here although the log does not extend what was signed; returns what was. `keep` makes it last."""
        was = self._last(organization)
        self._known[organization] = Signed(size, root)
        return was

    def keep(self, organization: str) -> None:
        """Write down the end that was last accepted or followed."""
        self._write(organization, self._known[organization])

    def _check_extends(self, organization: str, known: Signed, size: int, root: bytes, prove: Prove) -> None:
        try:
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

    def _last(self, organization: str) -> Signed | None:
        if organization not in self._known:
            path = self._path(organization)
            try:
                state = json.loads(path.read_text())
                self._known[organization] = Signed(int(state["size"]), bytes.fromhex(state["root"]))
            except FileNotFoundError:
                return None
            except (ValueError, KeyError, TypeError) as failure:
                raise RolledBack(
                    f"{path} cannot be read: {failure}", metadata={"organization": organization}
                ) from failure
            self._written[organization] = self._known[organization]
        return self._known[organization]

    def _write(self, organization: str, state: Signed) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(organization)
        text = json.dumps({"size": state.size, "root": state.root.hex()}) + "\n"
        write_durably(path, text.encode())
        self._written[organization] = state

    def _path(self, organization: str) -> pathlib.Path:
        return self._folder / f"{organization}.json"


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
