"""The invariants I1 to I7, held against four witnesses that know nothing of each other: what callers were told, what
the agent's journal has, what the engine says happened, and what is in the log."""

import pathlib
from collections import Counter
from dataclasses import dataclass

import grpc

from lading.v1 import commands_pb2
from tests.faults import journal
from tests.faults.reader import ABANDONED, COMPLETED, RECEIVED, STARTED, check_log, rows
from tests.faults.verbs import Asked
from tests.trees import check_trees

SUCCEEDED = commands_pb2.COMMAND_STATE_SUCCEEDED
UNKNOWN = commands_pb2.COMMAND_STATE_UNKNOWN
ENDS = tuple(range(SUCCEEDED, commands_pb2.COMMAND_STATE_EXPIRED + 1))


@dataclass(frozen=True)
class Stood:
    """How the database says that a command stands."""

    id: str
    agent: str
    container: str
    verb: int
    state: int
    epoch: int
    request_id: str
    settled_at: int | None
    evidence: str
    error: str

    @property
    def title(self) -> str:
        return commands_pb2.CommandState.Name(self.state).removeprefix("COMMAND_STATE_")


def commands(url: str) -> dict[str, Stood]:
    """All commands, by id."""
    columns = "id, agent, container, verb, state, epoch, request_id, settled_at, evidence, error"
    return {row[0]: Stood(*row) for row in rows(url, f"SELECT {columns} FROM commands")}


def check_effects(url: str, asked: list[Asked], effects: dict[str, list[int]]) -> dict[str, Stood]:
    """I1, I2, and that no answer lies: by verb, the one command that each caller asked for, which may be UNKNOWN."""
    found = commands(url)
    by_request = Counter(command.request_id for command in found.values())
    intents = dict(rows(url, f"SELECT operation, recorded_at FROM events WHERE stage = {RECEIVED}"))
    stood = {}
    for one in asked:
        assert by_request[one.request_id] == 1, f"{one.verb}: {by_request[one.request_id]} commands for one request id"
        (command,) = (command for command in found.values() if command.request_id == one.request_id)
        assert one.command in ("", f"commands/{command.id}"), one
        times = effects[one.verb]
        assert len(times) <= 1, f"{one.verb}: I2, {len(times)} effects of {command.id}"
        if times:
            assert intents.get(command.id, times[0] + 1) <= times[0], f"{one.verb}: I1, an effect without its intent"
        if command.state == SUCCEEDED:
            assert times, f"{one.verb}: SUCCEEDED by {command.evidence!r}, and nothing happened"
        elif command.state != UNKNOWN:
            assert not times, f"{one.verb}: {command.title} {command.error!r}, and it happened"
        for answer in one.answers:
            if answer.code is grpc.StatusCode.OK:
                assert command.state == SUCCEEDED, one
        stood[one.verb] = command
    return stood


def check_settled(url: str, before: dict[str, Stood]) -> None:
    """I3: what had an end has the same one now; I5: what was UNKNOWN has one too, or its event shows it."""
    now = commands(url)
    for one in before.values():
        if one.state in ENDS:
            assert (now[one.id].state, now[one.id].settled_at) == (one.state, one.settled_at), f"I3: {one}"
    shown = {operation for (operation,) in rows(url, f"SELECT operation FROM events WHERE stage = {ABANDONED}")}
    for command in now.values():
        assert command.state in ENDS or command.id in shown, f"I5: {command}"


def check_journal(url: str, data: pathlib.Path, agent: str, *, one_clock: bool = True) -> None:
    """I1 and I4: the agent took nothing that is not in the log, knows no epoch that the server does not, and no command
    is of a later one. The agent must have ended. `one_clock`: its times are to be compared with the server's."""
    found = commands(url)
    taken = journal.taken(data)
    assert set(taken) <= set(found), "I1: the agent took commands that the database does not know"
    intents = dict(rows(url, f"SELECT operation, recorded_at FROM events WHERE stage = {RECEIVED}"))
    for command in taken.values():
        began = command.executing_at if one_clock else None
        assert began is None or began >= intents[command.id], f"I1: {command.id}"
    ((epoch,),) = rows(url, f"SELECT epoch FROM agent_sessions WHERE agent = '{agent}'")
    ((persisted,),) = journal.rows(data, "SELECT value FROM meta WHERE key = 'epoch'")
    assert persisted == epoch, "I4: the agent's epoch is not the last that was given"
    assert max((command.epoch for command in found.values() if command.agent == agent), default=0) <= epoch
    assert journal.refusals(data) == [], "an honest server was refused"


def check_whole(url: str) -> None:
    """I3 and I7, and that the logs are whole trees. The server must have ended."""
    events = check_log(url)
    check_trees(url)
    ends = Counter(event.operation for event in events if event.stage == COMPLETED)
    given_up = {event.operation for event in events if event.stage == ABANDONED}
    for event in events:
        if event.stage in (RECEIVED, STARTED):
            one = ends[event.operation] == 1 or (ends[event.operation] == 0 and event.operation in given_up)
            assert one, f"I7: {event.action} {event.operation} began and has {ends[event.operation]} ends"
    for command in commands(url).values():
        if command.state in ENDS:
            assert ends[command.id] == 1, f"I3: {command} has {ends[command.id]} ends"
