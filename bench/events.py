"""A log as a busy organization leaves it, in bulk: what list and summary are measured on."""

import math
import random
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import sqlalchemy as sa

from lading_server.errors import Code
from lading_server.event import ANONYMOUS, Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger import counts, rows
from lading_server.ledger.transaction import Transaction
from lading_server.ledger.trees import Trees
from lading_server.signer import Signer
from lading_server.store.database import migrate, open_engine
from lading_server.store.tiles import Cache

DAYS = 30
DAY = 86_400_000_000
CHUNK = 20_000

USERS = [
    Actor(ActorType.USER, f"user-{number}", email=f"{name}@example.com", credential=f"credential-{number}")
    for number, name in enumerate(
        ["ada", "alan", "barbara", "dennis", "donald", "edsger", "frances", "grace", "john", "ken", "leslie", "radia"]
    )
]
SERVICES = [Actor(ActorType.SERVICE, name, credential=name) for name in ("deployer", "scheduler", "tasks", "billing")]
AGENTS = [f"dock-{number}" for number in range(1, 201)]
CONTAINERS = [
    f"{agent}/{name}-{number}" for agent in AGENTS for number, name in enumerate(["web", "api", "worker", "cache"])
]
VERBS = ["start"] * 5 + ["stop"] * 4 + ["restart"] * 6 + ["create"] * 2 + ["remove"] * 2 + ["pull", "kill", "pause"]
READS = ["container.list"] * 5 + ["audit.list"] * 3 + ["agent.list", "container.get", "audit.summarize"]
REASONS = ["", "", "deploy 4711", "memory leak", "asked by support", "nightly window", "image of today"]
SOURCES = ["lading-cli/0.1.0 grpc-python-asyncio/1.83.2", "lading-viewer/0.1.0", "deployer/2.4 grpc-go/1.80"]
ERRORS = [
    (Outcome.FAILURE, Code.FAILED_PRECONDITION, "the container is not running"),
    (Outcome.FAILURE, Code.NOT_FOUND, "no such image: registry.example.com/web:42"),
    (Outcome.DEADLINE, Code.DEADLINE_EXCEEDED, "the time ran out"),
    (Outcome.UNKNOWN, Code.UNAVAILABLE, "the agent went away"),
    (Outcome.CANCELLED, Code.CANCELLED, "the caller gave up"),
]


class Scene:
    """Makes one operation after the other; the same seed makes the same ones."""

    def __init__(self, organization: str, seed: int) -> None:
        self.organization = organization
        self.random = random.Random(seed)

    def id(self, at: int) -> str:
        """A UUIDv7 of that time."""
        tail = f"{self.random.getrandbits(74):019x}"
        head = f"{at // 1000:012x}"
        return f"{head[:8]}-{head[8:]}-7{tail[:3]}-8{tail[3:6]}-{tail[6:18]}"

    def event(self, at: int, actor: Actor, action: str, **others: Any) -> Event:
        address = f"10.0.{self.random.randrange(4)}.{self.random.randrange(250)}"
        details = others.pop("details", {}) | {"peer": f"ipv4:{address}:{self.random.randrange(32768, 61000)}"}
        values: dict[str, Any] = {
            "operation": self.id(at),
            "stage": Stage.COMPLETED,
            "outcome": Outcome.SUCCESS,
        } | others
        return Event(
            id=self.id(at),
            organization=self.organization,
            occurred_at=at,
            actor=actor,
            action=action,
            source=self.random.choice(SOURCES),
            details=details,
            **values,
        )

    def operation(self, at: int, index: int) -> list[Event]:
        """The events of one operation that begins at `at`; the first one gets `index`."""
        kind = self.random.random()
        if kind < 0.50:
            return [self.event(at, self.random.choice(USERS), self.random.choice(READS), details=self.call())]
        if kind < 0.75:
            return self.command(at, index)
        if kind < 0.93:
            return [self.domain_event(at)]
        if kind < 0.98:
            return self.session(at, index)
        return [self.refused(at)]

    def call(self, **request: Any) -> dict[str, Any]:
        duration = self.random.randrange(300, 9000)
        return {"duration_us": duration, "messages_in": 1, "messages_out": 1, "request": {"page_size": 100, **request}}

    def command(self, at: int, index: int) -> list[Event]:
        """A lifecycle RPC and the three stages of its command."""
        target = self.random.choice(CONTAINERS)
        actor = self.random.choice(USERS if self.random.random() < 0.6 else SERVICES)
        action = f"container.{self.random.choice(VERBS)}"
        reason = self.random.choice(REASONS)
        parent, command = self.id(at), self.id(at)
        outcome, code, error = Outcome.SUCCESS, Code.OK, ""
        if self.random.random() < 0.06:
            outcome, code, error = self.random.choice(ERRORS)
        end: dict[str, Any] = {"outcome": outcome, "code": int(code), "error": error}
        agent = target.partition("/")[0]
        of_all: dict[str, Any] = {"changes": True, "targets": (("container", target),), "agent": agent}
        of_command = of_all | {"operation": command, "parent": parent, "reason": reason}
        pending: dict[str, Any] = {"outcome": Outcome.PENDING}
        call = self.call(container=f"agents/{agent}/containers/web", reason=reason)
        return [
            self.event(at, actor, action, **of_command, **pending, stage=Stage.RECEIVED, superseded_by=index + 1),
            self.event(at, actor, action, **of_command, **pending, stage=Stage.STARTED, superseded_by=index + 2),
            self.event(at, actor, action, **of_command, **end),
            self.event(
                at, actor, action, **of_all, **end, operation=parent, reason=reason, superseded_by=index, details=call
            ),
        ]

    def domain_event(self, at: int) -> Event:
        task = self.random.randrange(5_000)
        diff = [{"op": "replace", "path": "/state", "value": "done", "was": "running"}]
        return self.event(
            at,
            self.random.choice(SERVICES),
            self.random.choice(["task.update", "task.update", "task.create", "project.create"]),
            changes=True,
            targets=(("task", f"task-{task}"),),
            request_id=f"request-{self.random.getrandbits(48):x}",
            details={"diff": diff, "data": {"task": task, "queue": "default"}},
        )

    def session(self, at: int, index: int) -> list[Event]:
        """A stream of an agent: its begin and its end."""
        name = self.random.choice(AGENTS)
        actor = Actor(ActorType.AGENT, name, credential=name)
        both: dict[str, Any] = {"operation": self.id(at), "targets": (("agent", name),), "agent": name}
        begin = both | {"stage": Stage.STARTED, "outcome": Outcome.PENDING, "superseded_by": index + 1}
        return [self.event(at, actor, "agent.connect", **begin), self.event(at, actor, "agent.connect", **both)]

    def refused(self, at: int) -> Event:
        if self.random.random() < 0.5:
            actor, code = ANONYMOUS, Code.UNAUTHENTICATED
        else:
            actor, code = self.random.choice(USERS), Code.PERMISSION_DENIED
        target = self.random.choice(CONTAINERS)
        return self.event(
            at,
            actor,
            "container.stop",
            changes=True,
            targets=(("container", target),),
            agent=target.partition("/")[0],
            outcome=Outcome.DENIED,
            code=int(code),
            error="Your roles do not allow this.",
        )


def times(count: int, ends_at: int) -> Iterator[int]:
    """Times over the days before `ends_at`, denser by day than by night."""
    step = DAYS * DAY / count
    for number in range(count):
        at = number * step
        yield int(ends_at - DAYS * DAY + at + math.sin(at / DAY * 2 * math.pi) * DAY / 8)


def fill(engine: sa.Engine, organization: str, count: int, seed: int = 1, ends_at: int | None = None) -> None:
    """Append `count` events over the 30 days before `ends_at` (microseconds; absent: now), counted in the roll-ups.

    The log must be new, or end before those 30 days.
    """
    scene = Scene(organization, seed)
    writer = rows.Writer(engine.dialect.name)
    trees = Trees(cast(Signer, None), Cache())  # it signs nothing
    moments = sorted(times(count, ends_at or time.time_ns() // 1000))
    with engine.connect().execution_options(lading_writes=True) as connection:
        with connection.begin():
            rows.create_heads(connection, [organization])
            head = writer.lock_heads(connection, [organization])[organization]
        first, end = head.size, head.size + count
        while head.size < end:
            encoded: list[rows.Row] = []
            while head.size + len(encoded) < end and len(encoded) < CHUNK:
                index = head.size + len(encoded)
                events = scene.operation(moments[index - first], index)
                if index + len(events) > end:
                    continue  # it would not end within the log: another one
                for offset, event in enumerate(events):
                    at = moments[index - first + offset]
                    encoded.append(rows.encode(event, index + offset, at, "bench", index + offset + 1))
            with connection.begin():
                writer.insert(connection, encoded)
                head.size_before, head.size = head.size, head.size + len(encoded)
                transaction = Transaction(connection, {organization: head}, "bench", 0)
                transaction.rows = encoded
                trees.grow(connection, transaction, {organization: head})
                writer.move_heads(connection, {organization: head}, moments[head.size - first - 1])
        behind = True
        while behind:
            with connection.begin():
                behind = counts.count(connection, organization, CHUNK)
        if engine.dialect.name == "postgresql":
            with connection.begin():  # as autovacuum would have done long before a log is that large
                connection.exec_driver_sql("ANALYZE events")
                connection.exec_driver_sql("ANALYZE event_counts")


def main(url: str, organization: str, count: str) -> None:
    """`python -m bench.events URL ORGANIZATION COUNT`"""
    engine = open_engine(url)
    migrate(engine)
    fill(engine, organization, int(count))
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
