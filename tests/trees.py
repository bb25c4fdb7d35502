"""The trees of a database, recomputed from its entries by who shares no code with the server."""

import base64
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from lading.transparency import merkle
from lading.transparency.entry import check_details, parse_entry
from lading.transparency.jcs import parse
from lading.transparency.tiles import WIDTH, tiles_of
from tests.faults.reader import rows

STAGES = {"RECEIVED": 1, "STARTED": 2, "COMPLETED": 3, "ABANDONED": 4}
OUTCOMES = ("PENDING", "SUCCESS", "FAILURE", "DENIED", "CANCELLED", "DEADLINE", "UNKNOWN")
ACTORS = {"user": 1, "service": 2, "agent": 3, "anonymous": 4}
COLUMNS = (
    *("id", "operation", "parent", "stage", "outcome", "code", "action", "occurred_at", "recorded_at"),
    *("actor_type", "actor", "target_type", "target", "boot_id", "sequence", "organization"),
)


@dataclass(frozen=True)
class Tree:
    """What the entries of a log come to."""

    size: int
    root: bytes
    leaves: list[bytes]


def check_trees(url: str) -> dict[str, Tree]:
    """Assert what holds of every log of a database at any time; its trees. Nobody may write meanwhile."""
    heads = {name: (size, bytes(edge)) for name, size, edge in rows(url, "SELECT organization, size, edge FROM logs")}
    return {name: check_tree(url, name, size, edge) for name, (size, edge) in heads.items()}


def check_tree(url: str, organization: str, size: int, edge: bytes) -> Tree:
    """Assert that the entries of a log say what its rows say, and come to its edge and its tiles."""
    columns = ", ".join(COLUMNS)
    frontier = merkle.Frontier()
    leaves = []
    sequences: defaultdict[str, int] = defaultdict(int)
    query = (
        f"SELECT {columns}, entry, details, salt FROM events WHERE organization = '{organization}' ORDER BY \"index\""
    )
    for row in rows(url, query):
        values, (entry, details, salt) = dict(zip(COLUMNS, row, strict=False)), row[-3:]
        check_entry(values, bytes(entry), details, salt)
        sequences[values["boot_id"]] += 1
        assert values["sequence"] == sequences[values["boot_id"]], "the numbers of a process have a gap"
        leaves.append(merkle.leaf_hash(bytes(entry)))
        frontier.append(leaves[-1])
    assert frontier.size == size
    assert root_of_edge(edge) == frontier.root(), f"the edge of {organization} is not that of its {size} entries"
    check_tiles(url, organization, leaves)
    return Tree(size, frontier.root(), leaves)


def check_entry(row: dict[str, Any], raw: bytes, details: str, salt: bytes | None) -> None:
    """Assert that an entry says what its row says."""
    entry = parse_entry(raw)
    if salt is not None:
        check_details(entry, bytes(salt), parse(details.encode()))
    else:
        assert details == "{}"
    target = entry["targets"][0] if entry["targets"] else {"type": "", "id": ""}
    said = {
        **{name: entry[name] for name in ("id", "operation", "parent", "code", "action", "occurred_at", "recorded_at")},
        "organization": entry["organization"],
        "stage": STAGES[entry["stage"]],
        "outcome": OUTCOMES.index(entry["outcome"]),
        "actor_type": ACTORS[entry["actor"]["type"]],
        "actor": entry["actor"]["id"],
        "target_type": target["type"],
        "target": target["id"],
        **entry["emitter"],
    }
    assert said == row
    assert len(base64.b64decode(entry["details"])) == 32


def root_of_edge(edge: bytes) -> bytes:
    """The root over complete subtrees that stand together, the largest first."""
    roots = [edge[at : at + 32] for at in range(0, len(edge), 32)]
    if not roots:
        return hashlib.sha256(b"").digest()
    found = roots.pop()
    while roots:
        found = hashlib.sha256(b"\x01" + roots.pop() + found).digest()
    return found


def check_tiles(url: str, organization: str, leaves: list[bytes]) -> None:
    """Assert that the tiles are there, and are those of the leaves: the open one of level 0 is not stored."""
    levels = [leaves]
    while len(levels[-1]) >= WIDTH:
        below = levels[-1]
        levels.append([root_of(below[at : at + WIDTH]) for at in range(0, len(below) // WIDTH * WIDTH, WIDTH)])
    wanted = {
        (level, index): b"".join(levels[level][index * WIDTH : index * WIDTH + width])
        for level, index, width in tiles_of(len(leaves))
        if level or width == WIDTH
    }
    query = f"SELECT level, \"index\", hashes FROM tiles WHERE organization = '{organization}'"
    found = {(level, index): bytes(hashes) for level, index, hashes in rows(url, query)}
    assert found == wanted, f"the tiles of {organization} are not those of its entries"


def root_of(leaves: list[bytes]) -> bytes:
    """Root over leaf hashes."""
    frontier = merkle.Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()
