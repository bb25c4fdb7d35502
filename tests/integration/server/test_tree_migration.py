"""A database of the first revision becomes one with a tree: its events are the first leaves, and nothing is lost."""

import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config

import lading_migrations
from lading.transparency import merkle, note
from lading_server import signer
from lading_server.clock import new_id
from lading_server.commands import State
from lading_server.settings import Settings
from lading_server.store import database, tiles
from tests.faults import reader
from tests.integration.server.fake_agent import FakeAgent, held
from tests.integration.server.ledgers import book, event
from tests.integration.server.running import running
from tests.trees import check_trees

LOGS = {"acme": 3_000, "globex": 257, "quiet": 1, "system": 70, "empty": 0}
SECOND = 1_000_000
BEGAN = 1_790_000_000 * SECOND


def to(revision: str, engine: sa.Engine) -> None:
    with engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
        config = Config()
        config.set_main_option("script_location", os.path.dirname(lading_migrations.__file__))
        config.attributes["connection"] = connection
        alembic.upgrade(config, revision)


def old_row(organization: str, index: int, dice: random.Random) -> dict[str, Any]:
    """As the ledger of the first revision wrote an event."""
    details: dict[str, Any] = {
        "peer": "ipv4:127.0.0.1:1",
        "actor": {"name": "", "auth_method": "token", "credential": new_id(), "on_behalf_of": dice.choice(["", "bob"])},
    }
    targets = [["task", f"t-{index}"], ["task", "ünï/🚢"]][: dice.randrange(3)]
    if len(targets) > 1:
        details["targets"] = targets
    if dice.random() < 0.2:
        details["data"] = {"ratio": 0.5, "big": 10**20, "tiny": 1e-7, "é": [None, True, {"b": 1, "a": -0.0}]}
    if dice.random() < 0.2:
        details["diff"] = [{"op": "replace", "path": "/x", "value": [1, 2], "was": None}]
    target_type, target = targets[0] if targets else ("", "")
    return {
        "organization": organization,
        "index": index,
        "id": new_id(),
        "operation": new_id(),
        "parent": dice.choice(["", new_id()]),
        "stage": dice.randrange(1, 5),
        "occurred_at": BEGAN + index * SECOND - 1,
        "recorded_at": BEGAN + index * SECOND,
        "actor_type": dice.randrange(1, 5),
        "actor": dice.choice(["ada", "", "ünïcode \ufffd"]),
        "actor_email": dice.choice(["", "ada@acme.example"]),
        "action": "task.update",
        "changes": dice.random() < 0.5,
        "target_type": target_type,
        "target": target,
        "agent": dice.choice(["", "dock-1"]),
        "outcome": dice.randrange(7),
        "code": dice.randrange(17),
        "reason": dice.choice(["", 'says "why"\n\t\x01']),
        "error": dice.choice(["", "no"]),
        "request_id": dice.choice(["", "r-1"]),
        "source": dice.choice(["", "cli"]),
        "boot_id": "boot",
        # Of all logs together, and in each log with gaps.
        "sequence": index * 3 + len(organization),
        "count": dice.randrange(1, 5),
        "superseded_by": None,
        "details": json.dumps(details, ensure_ascii=False, separators=(",", ":")),
    }


def insert(connection: sa.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    for at in range(0, len(rows), 1_000):
        of = sa.table(table, *(sa.column(name) for name in rows[0]))
        connection.execute(sa.insert(of), rows[at : at + 1_000])


def old_command(id: str, state: State, event_index: int) -> dict[str, Any]:
    texts = ("reason", "actor_email", "source", "correlation", "request_id", "parent", "error", "evidence")
    return {
        **dict.fromkeys((*texts, "container_id"), ""),
        **dict.fromkeys(("fingerprint", "precondition", "arguments_shown"), b""),
        "id": id,
        "organization": "acme",
        "agent": "dock-1",
        "container": "web",
        "verb": 2,
        "arguments": b"arguments",
        "state": int(state),
        "epoch": 1,
        "action": "container.start",
        "actor_type": 1,
        "actor": "ada",
        "created_at": BEGAN,
        "acknowledged_at": BEGAN if state is State.ACKNOWLEDGED else None,
        "settled_at": BEGAN if state is State.SUCCEEDED else None,
        "deliver_by": 2**52,
        "execute_within": SECOND,
        "code": 0,
        "event_index": event_index,
    }


class Old:
    """A database of the first revision, before `migrate`."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.settings = Settings(settings.data, settings.listen, url)
        self.engine = database.open_engine(self.settings.database_url)
        to("0001", self.engine)
        dice = random.Random(7)
        self.rows = {name: [old_row(name, index, dice) for index in range(size)] for name, size in LOGS.items()}
        with self.engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
            for name, size in LOGS.items():
                insert(connection, "events", self.rows[name])
                head = {"organization": name, "size": size, "recorded_at": BEGAN + size * SECOND, "counted": size}
                insert(connection, "logs", [head])
            copied = reader.rows(settings.database_url, "SELECT name FROM organizations")
            insert(connection, "organizations", [{"name": name, "created_at": 0} for (name,) in copied])
            columns = ("organization", "subject", "role", "created_at", "created_by")
            roles = reader.rows(settings.database_url, f"SELECT {', '.join(columns)} FROM role_bindings")
            insert(connection, "role_bindings", [dict(zip(columns, row, strict=True)) for row in roles])

    def migrate(self) -> dict[str, Any]:
        assert database.migrate(self.engine) == lading_migrations.HEAD
        return check_trees(self.settings.database_url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def old(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Old]:
    url = f"sqlite:///{settings.data / 'old.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    made = Old(settings, url)
    yield made
    made.engine.dispose()


def numbers(value: Any) -> Any:
    """The same, with every integer as the double that it is in JSON."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if type(value) is int else value


def test_events_of_the_first_revision_become_the_first_leaves(old: Old) -> None:
    trees = old.migrate()
    assert {name: tree.size for name, tree in trees.items()} == LOGS
    for name, rows in old.rows.items():
        query = f"SELECT entry, details FROM events WHERE organization = '{name}' ORDER BY \"index\""
        for before, (entry, details) in zip(rows, reader.rows(old.settings.database_url, query), strict=True):
            was, now = json.loads(before["details"]), json.loads(details)
            targets = [{"type": one, "id": other} for one, other in was.get("targets", [])]
            if not targets and before["target"]:
                targets = [{"type": before["target_type"], "id": before["target"]}]
            assert json.loads(bytes(entry))["targets"] == targets
            for key in ("data", "diff", "peer", "targets"):
                assert numbers(now.get(key)) == numbers(was.get(key))
            actor = {**was["actor"], "email": before["actor_email"]}
            assert now["actor"] == {key: value for key, value in actor.items() if value}
            for key in ("agent", "error", "reason", "request_id", "source"):
                assert now.get(key, "") == before[key]
            assert (now["changes"], now["count"]) == (before["changes"], before["count"])


def test_proofs_of_migrated_events_verify(old: Old) -> None:
    trees = old.migrate()
    with old.engine.connect() as connection:
        for name, size in LOGS.items():
            for index in {0, size // 3, 255, 256, size - 1}:
                if 0 <= index < size:
                    proof = tiles.inclusion(connection, name, tiles.Cache(), index, size)
                    merkle.verify_inclusion(trees[name].leaves[index], index, size, proof, trees[name].root)


async def test_new_events_follow_the_migrated_ones(old: Old) -> None:
    before = old.migrate()
    async with book(old.settings) as made:
        for name in ("acme", "globex", "quiet", "empty", "new"):
            await made.record(*(event(name) for _ in range(300)))
    after = check_trees(old.settings.database_url)
    for name, tree in before.items():
        assert after[name].leaves[: tree.size] == tree.leaves
    assert after["new"].size == 300


def test_migration_is_safe_to_repeat(old: Old) -> None:
    assert old.migrate() == old.migrate()


def test_log_with_a_hole_is_not_migrated(old: Old) -> None:
    with old.engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
        connection.exec_driver_sql("DELETE FROM events WHERE organization = 'acme' AND \"index\" = 1234")
    with pytest.raises(AssertionError, match="the log acme has no event 1234"):
        database.migrate(old.engine)
    with pytest.raises(database.WrongRevision, match="0001"):
        database.check_revision(old.engine)


async def test_commands_in_flight_end_honestly(old: Old) -> None:
    """What waited is over; what the agent has goes on, and its result settles it."""
    waiting, lost, known, done = (new_id() for _ in range(4))
    states = {waiting: State.PENDING, lost: State.DISPATCHED, known: State.ACKNOWLEDGED, done: State.SUCCEEDED}
    with old.engine.connect().execution_options(lading_writes=True) as connection, connection.begin():
        for number, (id, state) in enumerate(states.items()):
            insert(connection, "commands", [old_command(id, state, number)])
    old.migrate()

    def state_of(id: str) -> State:
        ((state,),) = reader.rows(old.settings.database_url, f"SELECT state FROM commands WHERE id = '{id}'")
        return State(state)

    async with running(old.settings) as server:
        await server.event(operation=waiting, stage=3)
        assert state_of(waiting) is State.EXPIRED
        agent = FakeAgent(server)
        await agent.connect([held(known)])
        await agent.finish(known)
        assert {id: state_of(id) for id in states} == {
            waiting: State.EXPIRED,
            lost: State.FAILED,
            known: State.SUCCEEDED,
            done: State.SUCCEEDED,
        }
        agent.vanish()
    check_trees(old.settings.database_url)


async def test_migrated_log_is_signed(old: Old) -> None:
    tree = old.migrate()["globex"]
    log_signer = signer.load(old.settings.data)
    log_signer.check("globex", tree.size, tree.root, lambda *_: ())
    checkpoint = note.open_checkpoint(log_signer.sign("globex", tree.size, tree.root), log_signer.key("globex"))
    assert (checkpoint.size, checkpoint.root) == (tree.size, tree.root)
