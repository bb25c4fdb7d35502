"""A log, entry by entry from its first, or from a later one: the tree, what events say of each other, who wrote them.

Memory: one hash for each bit of the size, about 25 bytes for each operation, and more only for those that are open.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from lading.transparency.entry import SALT_BYTES, VERSION
from lading.transparency.merkle import Frontier
from lading_client.verify import canonical
from lading_client.verify.broken import Broken
from lading_client.verify.claims import first_difference, first_of_details, shown_entry
from lading_client.verify.digests import Digests
from lading_client.verify.erasures import Erasures

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Event

TEXTS = ("action", "details", "id", "operation", "organization", "outcome", "parent", "stage")
NUMBERS = ("code", "occurred_at", "recorded_at", "v")
_texts, _numbers = itemgetter(*TEXTS), itemgetter(*NUMBERS)
SYSTEM = "system"
"""The log of the servers themselves."""
SERVER = {"id": "lading-server", "type": "service"}
ENDS_OF_PROCESSES = ("server.stop", "server.crash")
FIELDS = {*TEXTS, *NUMBERS, "actor", "emitter", "targets"}


def read_entry(raw: bytes, organization: str) -> dict[str, Any]:
    """An entry of this organization, each field of its type. Raises ValueError."""
    try:
        entry = canonical.read(raw)
    except ValueError as failure:
        raise ValueError("the entry is not JSON in canonical form") from failure
    if entry.keys() != FIELDS or entry["v"] != VERSION:
        raise ValueError(f"the entry is not one of version {VERSION}")
    actor, emitter = entry["actor"], entry["emitter"]
    typed = (
        set(map(type, _texts(entry))) == {str}
        and set(map(type, _numbers(entry))) == {int}
        and type(actor) is dict
        and actor.keys() == {"id", "type"}
        and type(emitter) is dict
        and emitter.keys() == {"boot_id", "sequence"}
        and type(emitter["sequence"]) is int
        and type(emitter["boot_id"]) is str
        and type(entry["targets"]) is list
        and all(type(one) is dict and one.keys() == {"id", "type"} for one in entry["targets"])
    )
    if not typed:
        raise ValueError("the entry has a field of another type")
    if entry["organization"] != organization:
        raise ValueError(f"the entry is of the organization {entry['organization']}, not of {organization}")
    return entry


def read_details(entry: dict[str, Any], raw: bytes, salt: bytes) -> dict[str, Any]:
    """The details that the entry commits to. Raises ValueError when these are others."""
    try:
        wanted = base64.b64decode(entry["details"], validate=True)
    except binascii.Error as failure:
        raise ValueError("the entry commits to nothing") from failure
    if len(salt) != SALT_BYTES or sha256(salt + raw).digest() != wanted:
        raise ValueError("the details are not those that the entry commits to")
    return _read(raw)


def _read(raw: bytes) -> dict[str, Any]:
    try:
        return canonical.read(raw)
    except ValueError as failure:
        raise ValueError("the details are not JSON in canonical form") from failure


def check_event(event: Event, organization: str) -> tuple[dict[str, Any], bool]:
    """An event with its entry: the entry, and whether its details were erased. Raises ValueError."""
    if entry := as_shown(event, organization):
        if wrong := first_of_details(event, _read(event.entry_details)):
            raise ValueError(f"`{wrong}` is shown as something else than what was recorded")
        return entry, False
    entry = read_entry(event.entry, organization)
    erased = not event.entry_details and not event.salt
    if erased and not event.HasField("erasure"):
        raise ValueError("its details are missing, and nobody erased them")
    if not erased and event.HasField("erasure"):
        raise ValueError("its details are there, and are shown as erased")
    details = None if erased else read_details(entry, event.entry_details, event.salt)
    if wrong := first_difference(event, entry, details):
        raise ValueError(f"`{wrong}` is shown as something else than what was recorded")
    return entry, erased


def as_shown(event: Event, organization: str) -> dict[str, Any] | None:
    """The entry, if its bytes are what the event as it is shown, and its details, demand: so are nearly all, and
    nothing has to be parsed then. None says nothing."""
    raw, salt = event.entry_details, event.salt
    if len(salt) != SALT_BYTES or event.HasField("erasure") or event.organization != organization:
        return None
    entry = shown_entry(event, base64.b64encode(sha256(salt + raw).digest()).decode())
    try:
        return entry if canonical.write(entry) == event.entry else None
    except TypeError:
        return None


@dataclass
class Operations:
    """Which operations are open, which ended. ABANDONED says that the end is not known: one end may follow it."""

    ended: Digests = field(default_factory=Digests)
    open: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def take(self, entry: dict[str, Any]) -> None:
        """The next event. Raises ValueError."""
        operation, stage = entry["operation"], entry["stage"]
        if operation in self.ended:
            what = "ends a second time" if stage in ("COMPLETED", "ABANDONED") else "goes on after its end"
            raise ValueError(f"the operation {operation} {what}")
        if stage == "ABANDONED" or (stage == "COMPLETED" and entry["outcome"] == "UNKNOWN"):
            if operation in self.unknown:
                raise ValueError(f"the operation {operation} is given up a second time")
            self.open.discard(operation)
            self.unknown.add(operation)
        elif stage == "COMPLETED":
            self.open.discard(operation)
            self.unknown.discard(operation)
            self.ended.add(operation)
        elif stage not in ("RECEIVED", "STARTED"):
            raise ValueError(f"there is no stage {stage}")
        elif operation not in self.unknown:
            self.open.add(operation)


class LogCheck:
    """Takes the events of one log in their order; raises Broken at the first that is wrong.

    `sizes`: of which sizes the roots are wanted, in `roots`. `first`: the events before it are not taken, only the
    `edge` of their tree; what an operation or a process did there is not known then.
    """

    def __init__(
        self, organization: str, sizes: Collection[int] = (), *, first: int = 0, edge: Sequence[bytes] = ()
    ) -> None:
        self.organization = organization
        self.first = first
        self.frontier = Frontier(first, edge)
        self.operations = Operations()
        self.erased = 0
        self.erasures = Erasures()
        self.bare = 0
        self.processes: dict[str, int] = {}
        """Number of the last event of each process that wrote, by its boot id."""
        self.leaf = b""
        """Hash of the last one."""
        self._recorded_at = 0
        self._sizes = frozenset(sizes)
        self.roots: dict[int, bytes] = {first: self.frontier.root()} if first in self._sizes else {}

    @property
    def size(self) -> int:
        """Events so far, those before the first too."""
        return self.frontier.size

    def take_event(self, event: Event) -> None:
        """The next event, with its entry."""
        if event.index != self.size:
            raise Broken(f"it is missing: the next one is #{event.index}", self.size)
        try:
            entry, erased = check_event(event, self.organization)
            self.erased += erased
            self.erasures.take(event, entry)
            self._take(event.entry, entry)
            if self.organization == SYSTEM and not erased and entry["action"] in ENDS_OF_PROCESSES:
                self._take_end(entry, event.entry_details)
        except ValueError as failure:
            raise Broken(str(failure), event.index, event.id) from failure

    def take_entry(self, raw: bytes) -> None:
        """The next entry, where its details are not at hand."""
        entry: dict[str, Any] = {}
        try:
            entry = read_entry(raw, self.organization)
            self.bare += 1
            self._take(raw, entry)
        except ValueError as failure:
            raise Broken(str(failure), self.size, entry.get("id", "")) from failure

    def _take(self, raw: bytes, entry: dict[str, Any]) -> None:
        self.operations.take(entry)
        emitter = entry["emitter"]
        boot_id, sequence = emitter["boot_id"], emitter["sequence"]
        before = self.processes.get(boot_id, 0)
        if sequence <= before:
            raise ValueError(f"the process {boot_id} wrote its event {sequence} after {before}")
        # Numbers are given in the transaction that commits the event: neither a crash nor a rollback leaves one out.
        if sequence != before + 1 and (before or not self.first):
            raise ValueError(
                f"the process {boot_id} wrote its event {sequence} after {before}: {_missing(before, sequence)}"
            )
        self.processes[boot_id] = sequence
        if entry["recorded_at"] < self._recorded_at:
            raise ValueError("it was recorded before the one before it")
        self._recorded_at = entry["recorded_at"]
        self.leaf = sha256(b"\x00" + raw).digest()
        self.frontier.append(self.leaf)
        if self.frontier.size in self._sizes:
            self.roots[self.frontier.size] = self.frontier.root()

    def _take_end(self, entry: dict[str, Any], raw: bytes) -> None:
        """A process says how many events it wrote into this log, or who found it dead does. Raises ValueError."""
        if entry["actor"] != SERVER:
            return
        data = canonical.read(raw).get("data", {})
        boot_id, sequences = data.get("boot_id"), data.get("sequences", {})
        said, wrote = sequences.get(SYSTEM), self.processes.get(boot_id)
        if wrote is None and self.first:
            return
        # A crash is recorded by the numbers that were found near the end of the log; none are named beyond that.
        if said is not None and said != (wrote or 0):
            raise ValueError(f"the process {boot_id} wrote {said} events by its end; here are {wrote or 0}")


def _missing(before: int, sequence: int) -> str:
    count = sequence - before - 1
    return f"{before + 1} is missing" if count == 1 else f"{before + 1} to {sequence - 1} are missing"
