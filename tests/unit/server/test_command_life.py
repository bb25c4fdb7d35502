"""The life of a command as machines that hypothesis drives: the pure rules, and the statements that keep them."""

import json
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lading_server.clock import new_id
from lading_server.commands import BEFORE, ENDS, State
from lading_server.store import agents, commands
from lading_server.store.schema import metadata

RANK = {
    State.PENDING: 0,
    State.DISPATCHED: 1,
    State.ACKNOWLEDGED: 2,
    State.UNKNOWN: 3,
    **dict.fromkeys(ENDS, 4),
}
AGENT_MAY_SAY = (*(State.ACKNOWLEDGED, State.UNKNOWN, State.SUCCEEDED, State.FAILED, State.REJECTED, State.CANCELLED),)


def after(state: State) -> set[State]:
    """States that can follow directly."""
    return {to for to, befores in BEFORE.items() if state in befores}


def test_every_path_ends() -> None:
    """Each step raises the rank, and only an end has no step: so every path is finite, and ends in an end."""
    for state in State:
        assert all(RANK[to] > RANK[state] for to in after(state))
        assert (after(state) == set()) == (state in ENDS)
        assert state in ENDS or after(state) & ENDS, "and an end is one step away"


class Life(RuleBasedStateMachine):
    """One command, moved at random; what is forbidden is tried too."""

    def __init__(self) -> None:
        super().__init__()
        self.states = [State.PENDING]

    @rule(to=st.sampled_from(list(State)))
    def move(self, to: State) -> None:
        if self.states[-1] in BEFORE.get(to, ()):
            self.states.append(to)

    @invariant()
    def ranks_only_rise(self) -> None:
        ranks = [RANK[state] for state in self.states]
        assert ranks == sorted(set(ranks))

    @invariant()
    def there_is_at_most_one_end_and_it_is_the_last(self) -> None:
        assert not ENDS.intersection(self.states[:-1])


class Fenced(RuleBasedStateMachine):
    """One command in a database, one agent that connects again and again, and frames of all its epochs."""

    @initialize()
    def begin(self) -> None:
        self.engine = sa.create_engine("sqlite://")
        metadata.create_all(self.engine)
        self.connection = self.engine.connect()
        self.id = new_id()
        self.epochs: list[int] = []
        self.history: list[tuple[State, int]] = [(State.PENDING, 0)]
        texts = ("action", "reason", "actor", "actor_email", "source", "correlation", "request_id", "parent")
        numbers = ("verb", "actor_type", "created_at", "execute_within", "code", "event_index", "epoch")
        values: dict[str, Any] = {
            **dict.fromkeys(texts, ""),
            **dict.fromkeys(numbers, 0),
            **dict.fromkeys(("error", "evidence", "container_id"), ""),
            **dict.fromkeys(("envelope", "arguments_shown", "fingerprint", "precondition"), b"secret"),
            **dict.fromkeys(("dispatched_at", "acknowledged_at", "settled_at"), None),
        }
        where = {"id": self.id, "organization": "acme", "agent": "dock-1", "container": "web"}
        commands.insert(self.connection, {**values, **where, "state": int(State.PENDING), "deliver_by": 1_000})
        self.connect(0, False)

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()
            self.engine.dispose()

    def row(self) -> Any:
        return commands.get(self.connection, "acme", self.id)

    def note(self) -> None:
        found = (State(self.row().state), self.row().epoch)
        if found != self.history[-1]:
            self.history.append(found)

    @rule(seen=st.integers(0, 30), forgot=st.booleans())
    def connect(self, seen: int, forgot: bool) -> None:
        """A new session. The agent may have seen a higher epoch than this database, which was restored, has."""
        epoch, _ = agents.connect(
            self.connection,
            "acme",
            "dock-1",
            at=1,
            version="",
            runtime="",
            labels=json.loads("{}"),
            replica="r",
            boot_id="b",
            journal_id="j",
            seen_epoch=0 if forgot else seen,
            lease_until=10,
        )
        assert all(epoch > before for before in self.epochs), "which fences all that came before"
        self.epochs.append(epoch)

    @rule(data=st.data(), at=st.sampled_from([1, 2_000]))
    def take(self, data: st.DataObject, at: int) -> None:
        """A session sends what waits: only the newest one may, and only in time."""
        epoch = data.draw(st.sampled_from(self.epochs))
        was = State(self.row().state)
        taken = commands.take_pending(self.connection, "acme", "dock-1", epoch, 10, at)
        may = was is State.PENDING and epoch == self.epochs[-1] and at < 1_000
        assert bool(taken) == may
        self.note()

    @precondition(lambda self: State(self.row().state) in (State.DISPATCHED, State.ACKNOWLEDGED, State.UNKNOWN))
    @rule()
    def renew(self) -> None:
        """The newest session's Hello holds it."""
        commands.renew(self.connection, self.id, self.epochs[-1])
        self.note()

    @rule(data=st.data(), to=st.sampled_from(AGENT_MAY_SAY))
    def hear(self, data: st.DataObject, to: State) -> None:
        """A frame of one of the sessions says how it stands."""
        epoch = data.draw(st.sampled_from(self.epochs))
        before = self.row()
        ends = {"settled_at": 5} if to in ENDS else {}
        moved = commands.move(self.connection, "acme", self.id, to, epoch=epoch, agent="dock-1", **ends)
        may = State(before.state) in BEFORE[to] and before.epoch <= epoch
        assert (moved is not None) == may, "a frame of an epoch before the command's changes nothing"
        self.note()

    @rule(to=st.sampled_from(list(BEFORE)), agent=st.sampled_from(["dock-2", ""]))
    def hear_another_agent(self, to: State, agent: str) -> None:
        assert commands.move(self.connection, "acme", self.id, to, epoch=99, agent=agent) is None
        assert commands.move(self.connection, "globex", self.id, to) is None

    @rule(to=st.sampled_from([State.CANCELLED, State.EXPIRED, State.UNKNOWN]))
    def decide(self, to: State) -> None:
        """The server, or a person, moves it."""
        before = State(self.row().state)
        ends = {"settled_at": 5} if to in ENDS else {}
        moved = commands.move(self.connection, "acme", self.id, to, **ends)
        assert (moved is not None) == (before in BEFORE[to])
        self.note()

    @invariant()
    def ranks_and_epochs_only_rise(self) -> None:
        history = getattr(self, "history", [])
        for (state, epoch), (later, later_epoch) in pairwise(history):
            assert RANK[later] > RANK[state] or (later is state and later not in ENDS)
            assert later_epoch >= epoch

    @invariant()
    def what_has_ended_keeps_no_secret(self) -> None:
        if hasattr(self, "connection"):
            row = self.row()
            assert (row.envelope == b"") == (State(row.state) in ENDS)
            assert (row.settled_at is not None) == (State(row.state) in ENDS)


Life.TestCase.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
Fenced.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestLife = Life.TestCase
TestFenced = Fenced.TestCase
