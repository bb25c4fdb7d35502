"""A whole log, entry by entry from its first: the tree, what the events say of each other, and who wrote them.

Memory: one hash for each bit of the size, about 25 bytes for each operation, and more only for those that are open.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass, field
from hashlib import sha256
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from lading.transparency.entry import SALT_BYTES, VERSION
from lading.transparency.merkle import Frontier
from lading_client.verify import canonical
from lading_client.verify.broken import Broken
from lading_client.verify.claims import first_difference
from lading_client.verify.digests import Digests

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Event

TEXTS = ("action", "details", "id", "operation", "organization", "outcome", "parent", "stage")
NUMBERS = ("code", "occurred_at", "recorded_at", "v")
_texts, _numbers = itemgetter(*TEXTS), itemgetter(*NUMBERS)
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
    try:
        return canonical.read(raw)
    except ValueError as failure:
        raise ValueError("the details are not JSON in canonical form") from failure


def check_event(event: Event, organization: str) -> tuple[dict[str, Any], bool]:
    """An event with its entry: the entry, and whether its details were erased. Raises ValueError."""
    entry = read_entry(event.entry, organization)
    erased = not event.entry_details and not event.salt
    if erased and not event.HasField("erasure"):
        raise ValueError("its details are missing, and nobody erased them")
    details = None if erased else read_details(entry, event.entry_details, event.salt)
    if wrong := first_difference(event, entry, details):
        raise ValueError(f"`{wrong}` is shown as something else than what was recorded")
    return entry, erased


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

    `sizes`: of which sizes the roots are wanted, in `roots`.
    """

    def __init__(self, organization: str, sizes: Collection[int] = ()) -> None:
        self.organization = organization
        self.frontier = Frontier()
        self.operations = Operations()
        self.erased = 0
        self.bare = 0
        self.processes: dict[str, int] = {}
        """Number of the last event of each process that wrote, by its boot id."""
        self.gaps = 0
        self.first_gap = 0
        self._recorded_at = 0
        self._sizes = frozenset(sizes)
        self.roots: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        """How many events it took."""
        return self.frontier.size

    def take_event(self, event: Event) -> None:
        """The next event, with its entry."""
        if event.index != self.size:
            raise Broken(f"it is missing: the next one is #{event.index}", self.size)
        try:
            entry, erased = check_event(event, self.organization)
            self.erased += erased
            self._take(event.entry, entry)
        except ValueError as failure:
            raise Broken(str(failure), self.size, event.id) from failure

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
        # No fault of the tree: older versions numbered the events of all logs together.
        if sequence != before + 1:
            self.gaps += 1
            self.first_gap = self.first_gap if self.gaps > 1 else self.size
        self.processes[boot_id] = sequence
        if entry["recorded_at"] < self._recorded_at:
            raise ValueError("it was recorded before the one before it")
        self._recorded_at = entry["recorded_at"]
        self.frontier.append(sha256(b"\x00" + raw).digest())
        if self.frontier.size in self._sizes:
            self.roots[self.frontier.size] = self.frontier.root()
