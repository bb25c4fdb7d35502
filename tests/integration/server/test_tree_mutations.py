"""Whatever is changed in a database, `lading audit verify` finds it at the real server, or the signer does."""

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lading.v1 import audit_log_pb2 as pb
from lading_client import Client
from lading_client.verify.broken import Broken
from lading_client.verify.pins import Pin
from lading_client.verify.served_log import verify_log
from lading_server import signer
from lading_server.event import Actor, ActorType
from lading_server.settings import Settings
from lading_server.store import database
from lading_server.store.schema import erasures, events, logs, tiles
from lading_server.tree import Edge, grow, hash_leaf
from tests.integration.server.backups import Backup
from tests.integration.server.conftest import LONG_LIMITS, initialize
from tests.integration.server.ledgers import event
from tests.integration.server.running import Running, running, sign
from tests.postgres import Cluster

EVENTS = 300
AT = 100
"""The event that most tests change."""
ERASED = 41
"""Every one of so many is erased."""
NAMED = r"#\d+|checkpoint|first \d+ events|\d+ entries|the head of the log|cannot be read"
"""Each refusal names an index, or what was signed."""


@dataclasses.dataclass
class Original:
    """A log of an installation that is stopped: as it is, as it was half-way, and what a client saw of it."""

    settings: Settings
    engine: sa.Engine
    folder: pathlib.Path
    backup: Backup
    earlier: Backup
    pin: Pin

    @property
    def signed(self) -> pathlib.Path:
        return self.settings.data / signer.STATE_FOLDER

    def restore(self) -> None:
        self.backup.restore()
        self.sign_as("signed")

    def sign_as(self, name: str) -> None:
        """Put the signer's state back."""
        shutil.rmtree(self.signed)
        shutil.copytree(self.folder / name, self.signed)

    def change(self, mutate: "Mutation") -> None:
        with self.engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
            mutate(connection, self)


Mutation = Callable[[sa.Connection, Original], Any]


def verify(server: Running, pin: Pin | None, client: Any = None) -> str:
    """What `lading audit verify` says of the log; empty when it holds."""
    with Client(server.address, token=sign(server.settings)) as real:
        try:
            verify_log(client(real) if client else real, pin, organization="acme")
        except Broken as broken:
            return str(broken)
    return ""


async def judge(original: Original, pin: Pin | None, mutate: Mutation | None = None, client: Any = None) -> str:
    """What is found at a server that starts; `mutate`: what is done to its database once it runs."""
    try:
        async with running(original.settings) as server:
            if mutate is not None:
                await asyncio.to_thread(original.change, mutate)
            return await asyncio.to_thread(verify, server, pin, client)
    except signer.RolledBack as failure:
        return failure.message


async def record(settings: Settings, count: int) -> None:
    async with running(settings) as server:
        actor = Actor(ActorType.USER, "ada", "ada@acme.example")
        some = {"reason": "why", "request_id": "r", "source": "cli", "error": "e", "agent": "dock-1"}
        details = {"request": {"a": [1, 0.5]}, "data": {"b": "c"}, "peer": "p", "method": "/m", "duration_us": 5}
        targets = (("task", "1"), ("task", "2"))
        made = [event(actor=actor, details=details, targets=targets[: number % 3], **some) for number in range(count)]
        await server.ledger.record(made)
        request = pb.EraseEventDetailsRequest(ids=[one.id for one in made[::ERASED]], reason="so")
        await server.stubs.audit_log.EraseEventDetails(request, metadata=server.me)
        assert await asyncio.to_thread(verify, server, None) == ""


async def look(settings: Settings) -> Pin:
    async with running(settings) as server:
        with Client(server.address, token=sign(settings)) as client:
            return (await asyncio.to_thread(verify_log, client, None, organization="acme")).pin


@contextlib.contextmanager
def make(folder: pathlib.Path, url: str = "") -> Iterator[Original]:
    """A new installation, once for all tests: each begins with `restore`."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in LONG_LIMITS:
            patch.setattr(*limit)
        settings = initialize(folder / "data", url)
        asyncio.run(record(settings, EVENTS // 2))
        shutil.copytree(settings.data / signer.STATE_FOLDER, folder / "earlier")
        (folder / "half").mkdir()
        earlier = Backup(settings, folder / "half")
        asyncio.run(record(settings, EVENTS // 2))
        pin = asyncio.run(look(settings))
        shutil.copytree(settings.data / signer.STATE_FOLDER, folder / "signed")
        engine = database.open_engine(settings.database_url)
        yield Original(settings, engine, folder, Backup(settings, folder), earlier, pin)
        engine.dispose()


@pytest.fixture(scope="module")
def made_on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    with make(tmp_path_factory.mktemp("original")) as made:
        yield made


@pytest.fixture(scope="module")
def made_on_postgresql(tmp_path_factory: pytest.TempPathFactory, postgres: Cluster) -> Iterator[Original]:
    with make(tmp_path_factory.mktemp("original"), postgres.fresh_database()) as made:
        yield made


@pytest.fixture(params=["sqlite"])
def original(request: pytest.FixtureRequest) -> Original:
    # Not a parameter of the fixture above: that would be made anew for each test.
    made: Original = request.getfixturevalue(f"made_on_{request.param}")
    made.restore()
    return made


def flipped(raw: bytes, bit: int) -> bytes:
    bit %= 8 * len(raw)
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


IS_ACME = events.c.organization == "acme"


def one(index: int) -> sa.ColumnElement[bool]:
    return sa.and_(IS_ACME, events.c.index == index)


def read(connection: sa.Connection, column: sa.Column[Any], where: sa.ColumnElement[bool]) -> Any:
    return connection.execute(sa.select(column).where(where)).scalar_one()


def setting(column: sa.Column[Any], change: Callable[[Any], Any], where: sa.ColumnElement[bool]) -> Mutation:
    """One value becomes another."""

    def mutate(connection: sa.Connection, _original: Original) -> None:
        value = read(connection, column, where)
        done = connection.execute(sa.update(column.table).where(where).values({column.name: change(value)}))
        assert done.rowcount == 1

    return mutate


def flip(column: sa.Column[Any], where: sa.ColumnElement[bool], bit: int = 777) -> Mutation:
    return setting(column, lambda value: flipped(bytes(value), bit), where)


def delete(where: sa.ColumnElement[bool], table: sa.Table = events) -> Mutation:
    def mutate(connection: sa.Connection, _original: Original) -> None:
        assert connection.execute(sa.delete(table).where(where)).rowcount

    return mutate


def move(connection: sa.Connection, index: int, to: int) -> None:
    connection.execute(sa.update(events).where(one(index)).values(index=to))


def swap(connection: sa.Connection, _original: Original) -> None:
    move(connection, AT, -1)
    move(connection, AT + 1, AT)
    move(connection, -1, AT + 1)


def close_the_gap(connection: sa.Connection, _original: Original) -> None:
    size = read(connection, logs.c.size, logs.c.organization == "acme")
    connection.execute(sa.delete(events).where(one(AT)))
    for index in range(AT + 1, size):
        move(connection, index, index - 1)


def append(connection: sa.Connection, _original: Original) -> None:
    """A row that is in no tree."""
    size = read(connection, logs.c.size, logs.c.organization == "acme")
    row = dict(connection.execute(sa.select(events).where(one(AT))).one()._mapping)
    connection.execute(sa.insert(events), {**row, "index": size, "id": "0", "operation": "0"})


def grow_anew(connection: sa.Connection, size: int) -> Edge:
    """Make head and tiles those of the first entries."""
    entries = connection.scalars(sa.select(events.c.entry).where(IS_ACME).order_by(events.c.index)).all()[:size]
    grown = grow(Edge(), [hash_leaf(bytes(entry)) for entry in entries])
    connection.execute(sa.delete(tiles).where(tiles.c.organization == "acme"))
    for level, width in ((0, 256), (1, 1)):
        for at in range(size // 256 if level == 0 else min(1, size // 256)):
            hashes = b"".join(grown.nodes[8 * level, at * 256 + offset] for offset in range(width))
            row = {"organization": "acme", "level": level, "index": at, "hashes": hashes}
            connection.execute(sa.insert(tiles), row)
    values = {"size": size, "edge": grown.after.pack()}
    connection.execute(sa.update(logs).where(logs.c.organization == "acme").values(values))
    return grown.after


def cut(connection: sa.Connection, _original: Original) -> None:
    """The newest events are gone, and the tree is that of the others."""
    size: int = read(connection, logs.c.size, logs.c.organization == "acme")
    connection.execute(sa.delete(events).where(IS_ACME, events.c.index >= size - 5))
    connection.execute(sa.update(logs).where(logs.c.organization == "acme").values(counted=0))
    grow_anew(connection, size - 5)


def rewrite(connection: sa.Connection, _original: Original) -> Edge:
    """Somebody else did it, and the tree says so."""
    entry = json.loads(read(connection, events.c.entry, one(AT)))
    entry["actor"]["id"] = "mallory"
    raw = json.dumps(entry, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    connection.execute(sa.update(events).where(one(AT)).values(entry=raw, actor="mallory"))
    return grow_anew(connection, read(connection, logs.c.size, logs.c.organization == "acme"))


def rewrite_what_was_signed(connection: sa.Connection, original: Original) -> None:
    edge = rewrite(connection, original)
    state = signer.Signed(edge.size, edge.root())
    (original.signed / "acme.json").write_bytes(2 * signer.slot_of(state))


def restore(_connection: sa.Connection, original: Original) -> None:
    original.earlier.restore()


def withhold(connection: sa.Connection, _original: Original) -> None:
    connection.execute(sa.update(events).where(one(AT)).values(details="{}", salt=None))


def claim_erasure(connection: sa.Connection, _original: Original) -> None:
    blank = dict.fromkeys(("actor_email", "reason", "error", "request_id", "source"), "")
    connection.execute(sa.update(events).where(one(AT)).values(details="{}", salt=None, **blank))
    row = {"organization": "acme", "index": AT, "erased_at": 5, "actor": "ada", "reason": "so"}
    connection.execute(sa.insert(erasures), row)


def spoil(text: str) -> Mutation:
    return setting(events.c.details, lambda _value: text, one(AT))


def nest(value: str) -> str:
    return value[:-1] + ',"z":' + "[" * 3000 + "]" * 3000 + "}"


HEAD = logs.c.organization == "acme"
TILE = sa.and_(tiles.c.organization == "acme", tiles.c.level == 0)
TILE_ABOVE = sa.and_(tiles.c.organization == "acme", tiles.c.level == 1)
LAST = events.c.index == sa.select(logs.c.size - 1).where(HEAD).scalar_subquery()
HERE = rf"#{AT}\b"
ROWS: dict[str, tuple[Mutation, str]] = {
    "entry": (flip(events.c.entry, one(AT)), HERE),
    "entry in the open tile": (flip(events.c.entry, one(290)), "#290"),
    "details": (setting(events.c.details, lambda value: value.replace("why", "who"), one(AT)), HERE),
    "details that are not JSON": (spoil("{"), HERE),
    "details that are no object": (spoil("[]"), HERE),
    "details without end": (setting(events.c.details, nest, one(AT)), HERE),
    "salt": (flip(events.c.salt, one(AT)), HERE),
    "salt that is gone": (setting(events.c.salt, lambda _value: None, one(AT)), HERE),
    "actor": (setting(events.c.actor, lambda _value: "eve", one(AT)), HERE),
    "e-mail": (setting(events.c.actor_email, lambda _value: "eve@acme.example", one(AT)), HERE),
    "first target": (setting(events.c.target, lambda _value: "7", one(AT + 1)), f"#{AT + 1}"),
    "type of the first target": (setting(events.c.target_type, lambda _value: "x", one(AT + 1)), f"#{AT + 1}"),
    "first target of an erased event": (setting(events.c.target, lambda _value: "7", one(ERASED * 2)), "#8[0-9]"),
    "time": (setting(events.c.occurred_at, lambda value: value + 1, one(AT)), HERE),
    "time that no calendar has": (setting(events.c.occurred_at, lambda _value: 2**62, one(AT)), HERE),
    "stage that there is not": (setting(events.c.stage, lambda _value: 99, one(AT)), HERE),
    "reason of an erased event": (setting(events.c.reason, lambda _value: "x", one(ERASED * 2)), "#8[0-9]|#82"),
    "withheld details": (withhold, HERE),
    "erasure that nobody asked for": (claim_erasure, HERE),
    "tile": (flip(tiles.c.hashes, TILE), r"#3: tile/0/000"),
    "tile above": (flip(tiles.c.hashes, TILE_ABOVE, 3), r"#0: tile/1/000"),
    "tile above that is gone": (delete(TILE_ABOVE, tiles), "#0: tile/1/000"),
    "deleted row": (delete(one(AT)), HERE),
    "deleted last row": (delete(sa.and_(IS_ACME, LAST)), r"#\d+"),
    "deleted suffix": (delete(sa.and_(IS_ACME, events.c.index >= 280)), r"#280|#279"),
    "deleted row and closed gap": (close_the_gap, r"#\d+"),
    "swapped rows": (swap, HERE),
}
"""What is done to rows, and what is said of it: at a server that starts then, and at one that runs."""
LIVE = ("entry", "salt", "e-mail", "withheld details", "tile", "tile above that is gone", "deleted row", "swapped rows")
"""What is also done while the server runs."""
ON_BOTH = {"entry", "details", "tile", "deleted row", "swapped rows", "edge", "cut with its tree", "restored backup"}
TREES: dict[str, tuple[Mutation, str]] = {
    "edge": (flip(logs.c.edge, HEAD), "log of acme has .* entries and does not extend"),
    "edge that is shorter": (setting(logs.c.edge, lambda value: bytes(value)[32:], HEAD), "head of the log of acme"),
    "size": (setting(logs.c.size, lambda value: value - 1, HEAD), "head of the log|does not extend"),
    "size zero": (setting(logs.c.size, lambda _value: 0, HEAD), "head of the log"),
    "head that is gone": (delete(HEAD, logs), "log of acme has 0 entries and does not extend"),
    "cut with its tree": (cut, "accept-rollback --org acme"),
    "restored backup": (restore, "accept-rollback --org acme"),
    "other history": (rewrite, "accept-rollback --org acme"),
}
"""What the signer refuses."""


def on_both(names: Iterable[str]) -> pytest.MarkDecorator:
    """All of them on SQLite, and those ON_BOTH on PostgreSQL too."""
    embedded = [pytest.param("sqlite", name, id=name) for name in names]
    others = [
        pytest.param("postgresql", name, id=f"{name}-postgresql", marks=pytest.mark.postgres)
        for name in names
        if name in ON_BOTH
    ]
    return pytest.mark.parametrize(("original", "name"), embedded + others, indirect=["original"])


@on_both(ROWS)
def test_changed_row_is_found_at_its_index(original: Original, name: str) -> None:
    mutate, said = ROWS[name]
    original.change(mutate)
    found = asyncio.run(judge(original, None))
    assert re.search(said, found), found


@pytest.mark.parametrize("name", LIVE)
def test_row_changed_under_a_server_that_runs_is_found(original: Original, name: str) -> None:
    mutate, said = ROWS[name]
    found = asyncio.run(judge(original, original.pin, mutate))
    assert re.search(said, found), found


@on_both(TREES)
def test_tree_that_does_not_extend_what_was_signed_is_refused(original: Original, name: str) -> None:
    mutate, said = TREES[name]
    if name == "restored backup":
        original.earlier.restore()
    else:
        original.change(mutate)
    found = asyncio.run(judge(original, None))
    assert re.search(said, found), found


def test_row_that_is_in_no_tree_is_refused(original: Original) -> None:
    original.change(append)
    assert re.search(r"\d+ entries by its head, and its last event is #\d+", asyncio.run(judge(original, None)))


def test_honest_log_is_verified(original: Original) -> None:
    assert asyncio.run(judge(original, original.pin)) == ""


def test_other_history_with_the_right_key_is_found_by_who_saw_the_first(original: Original) -> None:
    original.change(rewrite_what_was_signed)
    assert asyncio.run(judge(original, None)) == "", "it is a log as good as the other one"
    assert re.search(r"first \d+ events are not those that this client saw", asyncio.run(judge(original, original.pin)))


def test_backup_restored_with_the_signers_state_is_found_by_who_saw_more(original: Original) -> None:
    original.earlier.restore()
    original.sign_as("earlier")
    assert re.search(r"this client saw \d+", asyncio.run(judge(original, original.pin)))


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 8192, b'{"size": 0, "root": "00"}'])
def test_state_of_the_signer_that_was_changed_is_refused(original: Original, content: bytes) -> None:
    (original.signed / "acme.json").write_bytes(content)
    assert re.search("acme", asyncio.run(judge(original, None)))


class Between:
    """A client behind somebody who changes checkpoints on their way."""

    def __init__(self, client: Client, change: Callable[[Client, Any], None]) -> None:
        self.audit = Altered(client, change)


class Altered:
    """The calls of the log."""

    def __init__(self, client: Client, change: Callable[[Client, Any], None]) -> None:
        self._client, self._change = client, change

    def GetCheckpoint(self, request: Any) -> Any:
        answer = self._client.audit.GetCheckpoint(request)
        self._change(self._client, answer)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client.audit, name)


def change_signature(_client: Client, answer: Any) -> None:
    answer.checkpoint = (
        answer.checkpoint[:-20] + ("B" if answer.checkpoint[-20] == "A" else "A") + answer.checkpoint[-19:]
    )


def change_size(_client: Client, answer: Any) -> None:
    answer.checkpoint = answer.checkpoint.replace(f"\n{answer.size}\n", f"\n{answer.size - 1}\n")


def change_log(origin: str) -> Callable[[Client, Any], None]:
    def change(_client: Client, answer: Any) -> None:
        answer.checkpoint = answer.checkpoint.replace("/acme", origin)

    return change


@pytest.mark.parametrize("change", [change_signature, change_size, change_log("/globex"), change_log("")])
def test_checkpoint_that_was_changed_is_refused(original: Original, change: Any) -> None:
    for pin in (None, original.pin):
        found = asyncio.run(judge(original, pin, client=lambda client: Between(client, change)))
        assert found.startswith("BROKEN: "), found
        assert re.search("signature|checkpoint|origin|signed", found), found


async def of_another_log(original: Original, pin: Pin | None) -> str:
    """What is said when the server shows the checkpoint, signed by the same key, of another organization's log."""
    async with running(original.settings) as server:
        with Client(server.address, token=sign(original.settings, organization="globex")) as other:
            request = pb.GetCheckpointRequest()
            answer = await asyncio.to_thread(other.audit.GetCheckpoint, request)

        def change(_client: Client, given_: Any) -> None:
            given_.checkpoint, given_.log_key = answer.checkpoint, answer.log_key

        return await asyncio.to_thread(verify, server, pin, lambda client: Between(client, change))


def test_checkpoint_of_another_log_is_refused(original: Original) -> None:
    assert "globex is not that of acme" in asyncio.run(of_another_log(original, None))
    assert re.search("shows the key .*globex", asyncio.run(of_another_log(original, original.pin)))


PROVEN = [
    *(column for column in events.c if column.name != "superseded_by"),
    *(column for column in logs.c if column.name not in ("recorded_at", "counted")),
    *tiles.c,
    *erasures.c,
]
"""The others only help lists, and nobody is shown them as part of an event."""
KEPT = ("agent", "changes", "count")
"""What an erased event still has, unproven."""


class Pointless(Exception):
    """Nothing is changed, or nothing that is proven."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One bit of one value, or one row that goes."""

    column: sa.Column[Any]
    row: int
    bit: int
    goes: bool

    def __call__(self, connection: sa.Connection, _original: Original) -> None:
        table: sa.Table = self.column.table  # type: ignore[assignment]
        key = [*table.primary_key.columns]
        found = connection.execute(sa.select(table).where(table.c.organization == "acme").order_by(*key)).all()
        row = found[self.row % len(found)]._mapping
        where = sa.and_(*(column == row[column] for column in key))
        if not self.matters(row):
            raise Pointless
        if self.goes:
            connection.execute(sa.delete(table).where(where))
            return
        before = row[self.column]
        after = changed(before, self.bit)
        if after == before:
            raise Pointless
        try:
            with connection.begin_nested():
                connection.execute(sa.update(table).where(where).values({self.column.name: after}))
        except sa.exc.DBAPIError as failure:
            raise Pointless from failure

    def matters(self, row: Any) -> bool:
        """A full tile of level 0 that is gone is read from the entries; what an erased event keeps is not proven."""
        if self.column.table is tiles:
            return row["level"] > 0 or (self.column.name == "hashes" and not self.goes)
        return self.goes or not (self.column.table is events and row["salt"] is None and self.column.name in KEPT)


def changed(value: Any, bit: int) -> Any:
    match value:
        case None:
            return b"" if bit % 2 else b"0" * 16
        case bool():
            return not value
        case int():
            return value ^ 1 << bit % 31
        case bytes() | memoryview():
            return flipped(bytes(value), bit)
        case "":
            return "x"
        case _:
            at = bit % len(value)
            return value[:at] + chr(ord(value[at]) ^ 1 << bit // len(value) % 7) + value[at + 1 :]


CHANGES = st.builds(
    Change,
    column=st.sampled_from(PROVEN),
    row=st.integers(0, 1000),
    bit=st.integers(0, 100_000),
    goes=st.integers(0, 9).map(lambda number: number == 0),
)


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(change=CHANGES, running=st.booleans())
def test_no_change_passes(original: Original, change: Change, running: bool) -> None:
    original.restore()
    try:
        if running:
            found = asyncio.run(judge(original, None, change))
        else:
            original.change(change)
            found = asyncio.run(judge(original, None))
    except Pointless:
        assume(False)
    assert re.search(NAMED, found), found
