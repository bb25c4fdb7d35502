"""What became of a command that began and whose answer is missing: decided from what can be seen, never by doing it
again. Pure: no clock, no I/O."""

from dataclasses import dataclass

from grpc import StatusCode

from lading.v1.agent_link_pb2 import Envelope
from lading.v1.commands_pb2 import (
    COMMAND_STATE_FAILED,
    COMMAND_STATE_SUCCEEDED,
    COMMAND_STATE_UNKNOWN,
    VERB_CREATE,
    VERB_KILL,
    VERB_PAUSE,
    VERB_REMOVE,
    VERB_RESTART,
    VERB_START,
    VERB_STOP,
    VERB_UNPAUSE,
    CommandState,
)
from lading.v1.containers_pb2 import Container
from lading_agent.runtimes import COMMAND_LABEL

ALIVE = frozenset({"running", "paused", "restarting"})
REMOVED = frozenset({"destroy", "remove"})
ENDING_SIGNALS = frozenset({"", "KILL", "9"})


@dataclass(frozen=True)
class Verdict:
    """How a command ended, and `words`: what was seen."""

    state: CommandState.ValueType
    code: StatusCode
    words: str


def weigh(envelope: Envelope, before: Container | None, now: Container | None, actions: frozenset[str]) -> Verdict:
    """The verdict on a command that had begun.

    `before` and `now` are the container as it was just before and as it is, None where there was none; `actions` are
    the runtime's events on it since. FAILED says that it had no effect so far; UNKNOWN that what is seen decides
    nothing.
    """
    verb = envelope.verb
    if verb == VERB_CREATE:
        return _weigh_create(envelope.command, now, actions)
    if before is None:
        return _unknown("what it acts on leaves no trace to inspect")
    if verb == VERB_REMOVE:
        return _weigh_remove(before, now, actions)
    if now is None or now.id != before.id:
        return _weigh_gone(envelope, actions)
    if verb in (VERB_START, VERB_RESTART):
        return _weigh_start(before, now)
    if verb == VERB_STOP:
        return _weigh_end(before, now, actions)
    if verb == VERB_KILL:
        return _weigh_kill(envelope, before, now, actions)
    if verb in (VERB_PAUSE, VERB_UNPAUSE):
        wanted, action = ("paused", "pause") if verb == VERB_PAUSE else ("running", "unpause")
        return _weigh_freeze(before, now, wanted, action in actions)
    return _unknown("this verb leaves no trace to inspect")


def _weigh_create(command: str, now: Container | None, actions: frozenset[str]) -> Verdict:
    if now is None:
        return _unknown("there is no container of that name: it was not made, or is gone again")
    if now.labels.get(COMMAND_LABEL) == command:
        return _succeeded(f"container {now.id[:12]} carries the label of this command")
    if actions & REMOVED:
        return _unknown(f"container {now.id[:12]} is another one, and one of that name was removed since")
    return Verdict(
        COMMAND_STATE_FAILED,
        StatusCode.ALREADY_EXISTS,
        f"the name belongs to container {now.id[:12]}, which this command did not make",
    )


def _weigh_remove(before: Container, now: Container | None, actions: frozenset[str]) -> Verdict:
    if now is not None and now.id == before.id:
        if now.state == "removing":
            return _unknown(f"container {now.id[:12]} is being removed")
        return _failed(f"container {now.id[:12]} is still there")
    if actions & REMOVED:
        return _succeeded("the container is gone, and the runtime reported its removal")
    return _unknown("the container is gone, but no event tells whether this command removed it")


def _weigh_gone(envelope: Envelope, actions: frozenset[str]) -> Verdict:
    traces = {
        VERB_START: {"start"},
        VERB_RESTART: {"restart"},
        VERB_STOP: {"stop", "die"},
        VERB_KILL: {"kill"},
        VERB_PAUSE: {"pause"},
        VERB_UNPAUSE: {"unpause"},
    }
    seen = actions & traces.get(envelope.verb, set())
    if seen:
        return _succeeded(f"the container is gone since, and the runtime reported: {', '.join(sorted(seen))}")
    return _unknown("the container is gone since, and no event tells what this command did")


def _weigh_start(before: Container, now: Container) -> Verdict:
    if now.started_at != before.started_at:
        return _succeeded(f"StartedAt is now {now.started_at.ToJsonString()}")
    if now.finished_at != before.finished_at:
        return _failed(f"it ended at {now.finished_at.ToJsonString()} and was not started again")
    return _failed("StartedAt has not changed")


def _weigh_end(before: Container, now: Container, actions: frozenset[str]) -> Verdict:
    if now.finished_at != before.finished_at:
        if now.state in ALIVE and "stop" not in actions:
            # As after a crash of the engine, which starts by its policy what it did not stop.
            ended = now.finished_at.ToJsonString()
            return _unknown(f"it ended at {ended} and is {now.state} again; no event tells whether it was stopped")
        return _succeeded(f"FinishedAt is now {now.finished_at.ToJsonString()}")
    if before.state not in ALIVE:
        return Verdict(COMMAND_STATE_FAILED, StatusCode.FAILED_PRECONDITION, f"it was {before.state} before")
    if now.state not in ALIVE:
        return _succeeded(f"it was {before.state} before and is {now.state}")
    return _failed(f"it is still {now.state}, and FinishedAt has not changed")


def _weigh_kill(envelope: Envelope, before: Container, now: Container, actions: frozenset[str]) -> Verdict:
    if "kill" in actions:
        return _succeeded("the runtime reported the signal")
    verdict = _weigh_end(before, now, actions)
    ends = envelope.arguments.signal.upper().removeprefix("SIG") in ENDING_SIGNALS
    if verdict.code == StatusCode.ABORTED and not ends:
        return _unknown(f"it is {now.state}; whether the signal reached it leaves no trace")
    return verdict


def _weigh_freeze(before: Container, now: Container, wanted: str, reported: bool) -> Verdict:
    if before.state == wanted:
        return Verdict(COMMAND_STATE_FAILED, StatusCode.FAILED_PRECONDITION, f"it was {wanted} before")
    if now.state == wanted:
        return _succeeded(f"it was {before.state} before and is {wanted}")
    if reported:
        return _succeeded(f"the runtime reported it; it is {now.state} since")
    return _failed(f"it is {now.state}")


def _succeeded(words: str) -> Verdict:
    return Verdict(COMMAND_STATE_SUCCEEDED, StatusCode.OK, words)


def _failed(words: str) -> Verdict:
    return Verdict(COMMAND_STATE_FAILED, StatusCode.ABORTED, words)


def _unknown(words: str) -> Verdict:
    return Verdict(COMMAND_STATE_UNKNOWN, StatusCode.UNKNOWN, words)
