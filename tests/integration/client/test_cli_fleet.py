"""Agents that do not do what they should, commands that a person settles, and what engines did by themselves."""

import uuid

import pytest

from lading.v1 import agents_pb2, audit_log_pb2, commands_pb2
from tests.integration.client.conftest import Lading
from tests.integration.client.fake_server import Fleet

ONLINE = agents_pb2.AGENT_STATE_ONLINE


def test_agents_ls_tells_connected_hearing_and_acting_apart(fleet: Fleet, lading: Lading) -> None:
    fleet.agents = [
        agents_pb2.Agent(name="agents/a", state=ONLINE, connected=True, hearing=True, acting=True),
        agents_pb2.Agent(name="agents/b", state=ONLINE, connected=True, acting=True),
        agents_pb2.Agent(name="agents/c", state=ONLINE, connected=True, hearing=True),
        agents_pb2.Agent(name="agents/d", state=agents_pb2.AGENT_STATE_OFFLINE, quarantined=True),
        agents_pb2.Agent(name="agents/e", state=agents_pb2.AGENT_STATE_OFFLINE),
    ]
    code, out, _ = lading("agents", "ls")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["online", "deaf", "stuck", "quarantined", "offline"]
    life = out.splitlines()[0]
    assert "LIFE" not in life
    wide = lading("agents", "ls", "-o", "wide")[1]
    assert "connected,hearing,acting" in wide
    assert "connected,acting" in wide


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_operator_settles_a_command(fleet: Fleet, lading: Lading, state: str) -> None:
    id = str(uuid.uuid4())
    unknown = commands_pb2.COMMAND_STATE_UNKNOWN
    fleet.commands[f"commands/{id}"] = commands_pb2.Command(name=f"commands/{id}", state=unknown)
    code, out, _ = lading("commands", "resolve", id, f"--{state}", "--reason", "I looked")
    assert code == 0
    assert state in out.lower()
    (asked,) = fleet.asked("ResolveCommand")
    assert (asked.reason, asked.name) == ("I looked", f"commands/{id}")
    assert asked.request_id


def test_resolve_wants_to_know_what_and_how(lading: Lading) -> None:
    id = str(uuid.uuid4())
    assert "--succeeded" in lading("commands", "resolve", id, "--reason", "x")[2]
    code, _, err = lading("commands", "resolve", id, "--failed")
    assert (code, "--reason" in err) == (2, True)


def test_events_are_what_the_engines_report(fleet: Fleet, lading: Lading) -> None:
    event = audit_log_pb2.Event(
        id=str(uuid.uuid4()),
        action="container.drift",
        targets=[audit_log_pb2.Target(type="container", id="dock-1/web")],
        agent="dock-1",
    )
    event.details.update({"action": "die", "attributes": {"exitCode": "137"}, "out_of_band": True})
    gap = audit_log_pb2.Event(
        id=str(uuid.uuid4()), index=1, action="container.drift", agent="dock-1", error="the runtime has forgotten"
    )
    gap.details.update({"action": "gap"})
    fleet.events = [event, gap]
    code, out, _ = lading("events", "web", "--agent", "dock-1")
    assert code == 0
    assert out.splitlines()[1].split()[1:] == ["dock-1/web", "die", "exitCode=137"]
    assert "gap" in out.splitlines()[2]
    (asked,) = fleet.asked("ListEvents")
    values = {(match.field, tuple(match.values)) for match in asked.filter.matches}
    assert (audit_log_pb2.FIELD_ACTION, ("container.drift",)) in values
    assert lading("events", "-f", "--since", "1d")[0] == 2
