"""What evidence decides, verb by verb."""

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.v1 import commands_pb2 as c
from lading.v1.agent_link_pb2 import Envelope
from lading.v1.commands_pb2 import Verb
from lading.v1.containers_pb2 import Container
from lading_agent.evidence import weigh
from lading_agent.runtimes import COMMAND_LABEL

COMMAND = str(uuid.uuid4())


def container(
    state: str = "exited", *, id: str = "a", started: int = 0, finished: int = 0, made_by: str = ""
) -> Container:
    found = Container(name="web", id=id, state=state, labels={COMMAND_LABEL: made_by} if made_by else {})
    if started:
        found.started_at.FromSeconds(started)
    if finished:
        found.finished_at.FromSeconds(finished)
    return found


STOPPED = container("exited", started=1, finished=2)
RUNNING = container("running", started=1)
PAUSED = container("paused", started=1)
OTHER = container("running", id="b", started=9)


@pytest.mark.parametrize(
    ("verb", "before", "now", "actions", "state", "code"),
    [
        ("CREATE", None, container(made_by=COMMAND), "", "SUCCEEDED", "OK"),
        ("CREATE", None, container(made_by="another"), "", "FAILED", "ALREADY_EXISTS"),
        ("CREATE", None, container(made_by="another"), "create destroy create", "UNKNOWN", "UNKNOWN"),
        ("CREATE", None, None, "", "UNKNOWN", "UNKNOWN"),
        ("START", STOPPED, container("running", started=3, finished=2), "", "SUCCEEDED", "OK"),
        ("START", STOPPED, container("exited", started=3, finished=4), "", "SUCCEEDED", "OK"),
        ("START", STOPPED, STOPPED, "", "FAILED", "ABORTED"),
        ("START", STOPPED, None, "", "UNKNOWN", "UNKNOWN"),
        ("START", STOPPED, None, "start destroy", "SUCCEEDED", "OK"),
        ("START", STOPPED, OTHER, "", "UNKNOWN", "UNKNOWN"),
        ("RESTART", RUNNING, container("running", started=3, finished=2), "", "SUCCEEDED", "OK"),
        ("RESTART", RUNNING, container("exited", started=1, finished=2), "", "FAILED", "ABORTED"),
        ("RESTART", RUNNING, RUNNING, "", "FAILED", "ABORTED"),
        ("STOP", RUNNING, STOPPED, "", "SUCCEEDED", "OK"),
        ("STOP", RUNNING, container("running", started=3, finished=2), "", "UNKNOWN", "UNKNOWN"),
        ("STOP", RUNNING, container("running", started=3, finished=2), "kill die stop", "SUCCEEDED", "OK"),
        ("STOP", RUNNING, RUNNING, "", "FAILED", "ABORTED"),
        ("STOP", STOPPED, STOPPED, "", "FAILED", "FAILED_PRECONDITION"),
        ("STOP", RUNNING, None, "die destroy", "SUCCEEDED", "OK"),
        ("KILL", RUNNING, STOPPED, "", "SUCCEEDED", "OK"),
        ("KILL", RUNNING, RUNNING, "kill", "SUCCEEDED", "OK"),
        ("KILL", RUNNING, RUNNING, "", "FAILED", "ABORTED"),
        ("KILL", RUNNING, container("running", started=3, finished=2), "", "UNKNOWN", "UNKNOWN"),
        ("PAUSE", RUNNING, PAUSED, "", "SUCCEEDED", "OK"),
        ("PAUSE", RUNNING, RUNNING, "", "FAILED", "ABORTED"),
        ("PAUSE", PAUSED, PAUSED, "", "FAILED", "FAILED_PRECONDITION"),
        ("PAUSE", RUNNING, RUNNING, "pause unpause", "SUCCEEDED", "OK"),
        ("PAUSE", PAUSED, RUNNING, "unpause", "FAILED", "FAILED_PRECONDITION"),
        ("UNPAUSE", PAUSED, RUNNING, "", "SUCCEEDED", "OK"),
        ("UNPAUSE", PAUSED, STOPPED, "unpause die", "SUCCEEDED", "OK"),
        ("UNPAUSE", PAUSED, PAUSED, "", "FAILED", "ABORTED"),
        ("REMOVE", STOPPED, None, "destroy", "SUCCEEDED", "OK"),
        ("REMOVE", STOPPED, None, "", "UNKNOWN", "UNKNOWN"),
        ("REMOVE", STOPPED, STOPPED, "", "FAILED", "ABORTED"),
        ("REMOVE", STOPPED, container("removing", started=1, finished=2), "", "UNKNOWN", "UNKNOWN"),
        ("REMOVE", STOPPED, OTHER, "destroy", "SUCCEEDED", "OK"),
        ("PULL", None, None, "", "UNKNOWN", "UNKNOWN"),
    ],
)
def test_evidence_decides(
    verb: str, before: Container | None, now: Container | None, actions: str, state: str, code: str
) -> None:
    envelope = Envelope(command=COMMAND, container="web", verb=Verb.Value(f"VERB_{verb}"))
    verdict = weigh(envelope, before, now, frozenset(actions.split()))
    assert (c.CommandState.Name(verdict.state), verdict.code.name) == (f"COMMAND_STATE_{state}", code)
    assert verdict.words


def test_a_signal_that_need_not_end_a_process_leaves_no_trace() -> None:
    envelope = Envelope(command=COMMAND, container="web", verb=c.VERB_KILL)
    envelope.arguments.signal = "SIGHUP"
    assert weigh(envelope, RUNNING, RUNNING, frozenset()).state == c.COMMAND_STATE_UNKNOWN


STATES = ("created", "running", "paused", "restarting", "exited", "dead")
CONTAINERS = st.none() | st.builds(
    container,
    st.sampled_from(STATES),
    id=st.sampled_from(["a", "b"]),
    started=st.integers(0, 3),
    finished=st.integers(0, 3),
    made_by=st.sampled_from(["", COMMAND, "another"]),
)
ACTIONS = st.frozensets(
    st.sampled_from(["create", "start", "restart", "stop", "die", "kill", "pause", "unpause", "destroy", "oom"])
)
ENVELOPES = st.builds(
    lambda verb, signal: Envelope(
        command=COMMAND, container="web", verb=verb, arguments=c.Arguments(signal=signal, force=True)
    ),
    st.sampled_from([verb for verb in Verb.values() if verb]),
    st.sampled_from(["", "KILL", "SIGKILL", "SIGTERM", "HUP", "9"]),
)


@given(ENVELOPES, CONTAINERS, CONTAINERS, ACTIONS)
@settings(max_examples=1000, deadline=None)
def test_whatever_is_seen_the_verdict_is_an_honest_one(
    envelope: Envelope, before: Container | None, now: Container | None, actions: frozenset[str]
) -> None:
    verdict = weigh(envelope, before, now, actions)
    assert verdict.state in (c.COMMAND_STATE_SUCCEEDED, c.COMMAND_STATE_FAILED, c.COMMAND_STATE_UNKNOWN)
    assert (verdict.state == c.COMMAND_STATE_SUCCEEDED) == (verdict.code.name == "OK")
    assert (verdict.state == c.COMMAND_STATE_UNKNOWN) == (verdict.code.name == "UNKNOWN")
    assert verdict.words
    if verdict.state == c.COMMAND_STATE_SUCCEEDED:
        # Success is claimed only by what this command does: a trace that is not there when nothing happened.
        assert (before, actions) != (now, frozenset()) or envelope.verb == c.VERB_CREATE
        if envelope.verb == c.VERB_CREATE:
            assert now is not None
            assert now.labels[COMMAND_LABEL] == COMMAND
        if envelope.verb == c.VERB_REMOVE:
            assert "destroy" in actions
            assert now is None or before is None or now.id != before.id


@given(ENVELOPES, CONTAINERS)
def test_nothing_that_changed_is_never_success(envelope: Envelope, before: Container | None) -> None:
    made = before is not None and before.labels.get(COMMAND_LABEL) == COMMAND
    verdict = weigh(envelope, before, before, frozenset())
    assert verdict.state != c.COMMAND_STATE_SUCCEEDED or (envelope.verb == c.VERB_CREATE and made)


@given(ENVELOPES, CONTAINERS, CONTAINERS, ACTIONS)
def test_more_events_never_turn_success_into_failure(
    envelope: Envelope, before: Container | None, now: Container | None, actions: frozenset[str]
) -> None:
    if weigh(envelope, before, now, frozenset()).state == c.COMMAND_STATE_SUCCEEDED:
        assert weigh(envelope, before, now, actions).state == c.COMMAND_STATE_SUCCEEDED
