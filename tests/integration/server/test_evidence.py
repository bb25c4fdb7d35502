"""Who says what became of a command: signed results, operators, and agents that say otherwise later."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import StatusCode

from lading.transparency import note
from lading.transparency.result import InvalidResult, Statement, verify_result
from lading.v1 import agent_link_pb2, agents_pb2, commands_pb2
from lading_server import allowance
from lading_server import dispatch as dispatch_module
from lading_server.clock import new_id
from lading_server.commands import State
from lading_server.errors import Code
from lading_server.event import ActorType, Outcome, Stage
from lading_server.settings import Settings
from tests.integration.server.commands import gone, refused, stages, start, state_of
from tests.integration.server.fake_agent import FakeAgent, connected, held, result_of
from tests.integration.server.running import Running, bearer, running, sign

SUCCEEDED, FAILED = commands_pb2.COMMAND_STATE_SUCCEEDED, commands_pb2.COMMAND_STATE_FAILED
CANCELLED, UNKNOWN = commands_pb2.COMMAND_STATE_CANCELLED, commands_pb2.COMMAND_STATE_UNKNOWN


@pytest.fixture
async def server(any_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 0.02)
    async with running(any_settings) as made:
        yield made


# -- signed results


class Signer:
    """An agent's key as a witness."""

    def __init__(self, name: str = "acme/dock-1") -> None:
        self.private = Ed25519PrivateKey.generate()
        raw = self.private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.key = note.Key(name, note.COSIGNATURE, raw)

    def result(self, command: str, **fields: Any) -> agent_link_pb2.Result:
        result = result_of(command, **fields)
        ran = result.exec if result.HasField("exec") else None
        statement = Statement(
            "acme",
            "dock-1",
            command,
            State(result.state).name,
            result.code,
            result.error,
            result.evidence,
            result.container_id,
            *((None if ran.still_runs else ran.exit_code, ran.output_sha256, ran.output_bytes) if ran else ()),
        )
        result.signature = self.private.sign(statement.text())
        return result

    @property
    def hello(self) -> dict[str, Any]:
        return {"witness_key": str(self.key), "capabilities": ["signed-results"]}


async def test_signature_of_a_result_is_kept_and_can_be_checked_again(server: Running) -> None:
    signer = Signer()
    async with connected_signing(server, signer) as agent:
        command = await start(server)
        await agent.dispatched()
        ran = agent_link_pb2.ExecSummary(exit_code=3, output_bytes=5, output_sha256=b"\1" * 32, output_head=b"hello")
        await agent.send(result=signer.result(command, state=FAILED, code=2, error="exit 3\0", exec=ran))
        await agent.receipt(command)
    event = server.events(operation=command, stage=Stage.COMPLETED)[0]
    kept = event.details["agent_signature"]
    said = kept["signed"]
    if "output_sha256" in said:
        said["output_sha256"] = base64.b64decode(said["output_sha256"])
    verify_result(Statement(**said), base64.b64decode(kept["signature"]), note.parse_key(kept["key"]))
    with pytest.raises(InvalidResult):
        verify_result(
            Statement(**{**said, "state": "SUCCEEDED"}),
            base64.b64decode(kept["signature"]),
            note.parse_key(kept["key"]),
        )
    assert event.details["data"]["exec"] == {
        "exit_code": 3,
        "input_bytes": 0,
        "output_bytes": 5,
        "output_sha256": "01" * 32,
        "output_head": "hello",
    }
    get = commands_pb2.GetCommandRequest(name=f"commands/{command}")
    assert (await server.stubs.commands.GetCommand(get, metadata=server.me)).exit_code == 3


async def test_program_that_still_runs_has_no_exit_code(server: Running) -> None:
    signer = Signer()
    async with connected_signing(server, signer) as agent:
        command = await start(server)
        await agent.dispatched()
        ran = agent_link_pb2.ExecSummary(still_runs=True, output_bytes=5, output_sha256=b"\1" * 32)
        await agent.send(result=signer.result(command, state=FAILED, code=4, error="it still runs", exec=ran))
        await agent.receipt(command)
    event = server.events(operation=command, stage=Stage.COMPLETED)[0]
    assert event.details["data"]["exec"] == {"input_bytes": 0, "output_bytes": 5, "output_sha256": "01" * 32}
    assert "exit_code" not in event.details["agent_signature"]["signed"]
    assert "exit_code" not in event.details["data"]


def connected_signing(server: Running, signer: Signer) -> Any:
    """An agent that signs; it reports no containers, which `connected` does with an unsigned result."""
    return Signing(server, signer)


class Signing:
    def __init__(self, server: Running, signer: Signer) -> None:
        self.agent, self.signer = FakeAgent(server), signer

    async def __aenter__(self) -> FakeAgent:
        await self.agent.connect(**self.signer.hello)
        return self.agent

    async def __aexit__(self, *_: object) -> None:
        self.agent.vanish()


@pytest.mark.parametrize("forged", ["unsigned", "of another key", "changed"])
async def test_result_whose_signature_does_not_hold_is_not_taken(server: Running, forged: str) -> None:
    signer = Signer()
    async with connected_signing(server, signer) as agent:
        command = await start(server)
        await agent.dispatched()
        result = signer.result(command, state=FAILED, code=2, error="no")
        if forged == "unsigned":
            result.signature = b""
        elif forged == "of another key":
            result = Signer().result(command, state=FAILED, code=2, error="no")
        else:
            result.state = SUCCEEDED
        await agent.send(result=result)
        code, message = await agent.ended()
        assert code is StatusCode.INVALID_ARGUMENT
        assert "is not signed by acme/dock-1" in message
        assert state_of(server, command) is State.DISPATCHED
        ended = await server.event(action="agent.connect", stage=Stage.COMPLETED)
        assert "is not signed by" in ended.error
        agent.open()
        await agent.send(
            hello=agent_link_pb2.Hello(
                journal_id="journal-1",
                epoch=agent.epoch,
                held=[agent_link_pb2.HeldCommand(command=command, result=result)],
                **signer.hello,
            )
        )
        assert (await agent.ended())[0] is StatusCode.INVALID_ARGUMENT
        assert state_of(server, command) is State.DISPATCHED


async def test_agent_that_signs_and_shows_no_key_is_not_believed(server: Running) -> None:
    agent = FakeAgent(server)
    await agent.connect(capabilities=["signed-results"])
    command = await start(server)
    await agent.dispatched()
    await agent.send(result=Signer().result(command))
    assert (await agent.ended())[0] is StatusCode.INVALID_ARGUMENT


# -- operators


async def unknown(server: Running, agent: FakeAgent) -> str:
    """A command that nobody knows the end of."""
    command = await start(server)
    await agent.dispatched()
    await agent.acknowledge(command)
    await agent.sync()
    await gone(server, agent)
    await agent.connect(journal="journal-2")
    assert state_of(server, command) is State.UNKNOWN
    return command


def resolve(server: Running, command: str, state: Any = SUCCEEDED, **fields: Any) -> Any:
    request = commands_pb2.ResolveCommandRequest(
        **{"name": f"commands/{command}", "state": state, "reason": "I looked", **fields}
    )
    return server.stubs.commands.ResolveCommand(request, metadata=server.me)


@pytest.mark.parametrize(
    ("state", "outcome", "code"),
    [(SUCCEEDED, Outcome.SUCCESS, 0), (FAILED, Outcome.FAILURE, 2), (CANCELLED, Outcome.CANCELLED, 1)],
)
async def test_operator_settles_what_is_unknown(server: Running, state: int, outcome: Outcome, code: int) -> None:
    async with connected(server) as agent:
        command = await unknown(server, agent)
        settled = await resolve(server, command, state)
        assert (settled.state, settled.evidence, settled.code) == (state, "operator", code)
        end = server.events(operation=command)[-1]
        assert (end.summary, end.actor, end.reason) == ((Stage.COMPLETED, outcome, code), "ada", "I looked")
        asked = server.events(action="command.resolve")[-1]
        assert (asked.target, asked.summary) == (command, (Stage.COMPLETED, Outcome.SUCCESS, 0))
        assert (await refused(resolve(server, command))).code() is StatusCode.FAILED_PRECONDITION
        assert state_of(server, command) == state


async def test_only_what_is_unknown_is_settled_by_an_operator(server: Running) -> None:
    async with connected(server) as agent:
        command = await start(server)
        await agent.dispatched()
        assert (await refused(resolve(server, command))).code() is StatusCode.FAILED_PRECONDITION
        await agent.finish(command)
        assert (await refused(resolve(server, command))).code() is StatusCode.FAILED_PRECONDITION
        lost = await unknown(server, agent)
        for state in (0, 1, 2, 3, 4, 7, 9):
            assert (await refused(resolve(server, lost, state))).code() is StatusCode.INVALID_ARGUMENT
        assert (await refused(resolve(server, lost, reason=""))).code() is StatusCode.INVALID_ARGUMENT
        globex = bearer(sign(server.settings, organization="globex"))
        request = commands_pb2.ResolveCommandRequest(name=f"commands/{lost}", state=SUCCEEDED, reason="x")
        failure = await refused(server.stubs.commands.ResolveCommand(request, metadata=globex))
        assert failure.code() is StatusCode.NOT_FOUND


@pytest.mark.parametrize("by", ["result", "hello"])
async def test_agent_that_says_otherwise_later_changes_nothing_and_is_recorded_once(server: Running, by: str) -> None:
    async with connected(server) as agent:
        command = await unknown(server, agent)
        await resolve(server, command, FAILED)
        before = stages(server, command)
        for _ in range(2):
            if by == "result":
                await agent.finish(command, evidence="inspected")
            else:
                await gone(server, agent)
                await agent.connect(held=[held(command, evidence="inspected")], journal="journal-2")
                await agent.receipt(command)
        await agent.sync()
        assert stages(server, command) == before
        assert state_of(server, command) is State.FAILED
        (said,) = server.events(action="command.evidence")
        assert (said.parent, said.actor, said.target) == (command, "dock-1", command)
        assert said.details["data"] == {
            "state": "SUCCEEDED",
            "code": 0,
            "evidence": "inspected",
            "settled_as": "FAILED",
            "agrees": False,
        }


@pytest.mark.parametrize("by", ["result", "hello"])
async def test_agent_that_cannot_say_either_is_recorded_once(server: Running, by: str) -> None:
    signer, said = Signer(), {"state": UNKNOWN, "code": 2, "error": "no trace of it", "evidence": "inspected"}
    async with connected(server) as agent:
        command = await unknown(server, agent)
        await gone(server, agent)
        await agent.connect(journal="journal-2", **signer.hello)
        before = stages(server, command)
        for _ in range(2):
            result = signer.result(command, **said)
            if by == "result":
                await agent.send(result=result)
            else:
                await gone(server, agent)
                told = agent_link_pb2.HeldCommand(command=command, result=result)
                await agent.connect(held=[told], journal="journal-2", **signer.hello)
            await agent.receipt(command)
        assert (stages(server, command), state_of(server, command)) == (before, State.UNKNOWN)
        (event,) = server.events(action="command.evidence")
        assert (event.parent, event.actor, event.target) == (command, "dock-1", command)
        assert event.details["data"] == {**said, "state": "UNKNOWN"}
        assert event.details["agent_signature"]["signed"]["state"] == "UNKNOWN"
        await agent.send(result=signer.result(command))
        await agent.receipt(command)
        assert state_of(server, command) is State.SUCCEEDED


async def test_agent_that_says_unknown_again_is_no_news(server: Running) -> None:
    async with connected(server) as agent:
        command = await start(server)
        await agent.dispatched()
        for _ in range(2):
            await agent.finish(command, state=UNKNOWN, code=2, error="no trace of it", evidence="inspected")
        assert state_of(server, command) is State.UNKNOWN
        assert server.events(action="command.evidence") == []


async def test_late_result_of_a_command_that_its_agent_settled_is_no_news(server: Running) -> None:
    async with connected(server) as agent:
        command = await start(server)
        await agent.dispatched()
        await agent.finish(command)
        await agent.finish(command, state=FAILED, code=2)
        assert server.events(action="command.evidence") == []


async def test_other_content_under_an_id_that_the_agent_has_is_recorded_and_ends_nothing(server: Running) -> None:
    async with connected(server) as agent:
        command = await start(server)
        await agent.dispatched()
        rejected = commands_pb2.COMMAND_STATE_REJECTED
        await agent.send(result=result_of(command, state=rejected, code=6, error="another command under this id"))
        await agent.finish(command)
        assert state_of(server, command) is State.SUCCEEDED
        (conflict,) = server.events(action="command.conflict")
        assert (conflict.parent, conflict.actor, conflict.code) == (command, "dock-1", 6)


# -- what happened without a command


def drift(**frame: Any) -> agent_link_pb2.Drift:
    return agent_link_pb2.Drift(**frame)


def change(number: int, **fields: Any) -> agent_link_pb2.Change:
    values = {
        "id": f"00000000-0000-4000-8000-{number:012}",
        "container": "web",
        "container_id": "id-web",
        "action": "die",
        "happened_at": {"seconds": 1_700_000_000 + number},
        "attributes": {"exitCode": "137"},
    }
    return agent_link_pb2.Change(**{**values, **fields})


async def test_change_behind_our_back_is_an_event_of_the_agent_once(server: Running) -> None:
    async with connected(server) as agent:
        await agent.send(drift=drift(changes=[change(1), change(2, action="start")]))
        await agent.send(drift=drift(changes=[change(2, action="start"), change(3)]))
        await agent.sync()
        assert agent.last.ack >= agent.seq - 1, "it is on disk before it is acknowledged"
        found = server.events(action="container.drift")
        assert [event.details["data"]["action"] for event in found] == ["die", "start", "die"]
        first = found[0]
        assert (first.actor, first.target, first.agent) == ("dock-1", "dock-1/web", "dock-1")
        assert first.details["data"] == {
            "action": "die",
            "container_id": "id-web",
            "attributes": {"exitCode": "137"},
            "out_of_band": True,
        }
        ((kind, occurred_at),) = server.rows(f"SELECT actor_type, occurred_at FROM events WHERE id = '{first.id}'")
        assert (kind, occurred_at) == (ActorType.AGENT, 1_700_000_001_000_000)


async def test_gap_in_what_the_agent_saw_is_an_event_too(server: Running) -> None:
    async with connected(server) as agent:
        gap = drift(gap_since={"seconds": 100}, seen_until={"seconds": 200})
        await agent.send(drift=gap)
        await agent.send(drift=gap)
        await agent.sync()
        (event,) = server.events(action="container.drift")
        assert (event.outcome, event.target) == (Outcome.UNKNOWN, "dock-1")
        assert event.details["data"]["action"] == "gap"


@pytest.mark.parametrize("bad", [{"id": "x"}, {"id": ""}])
async def test_change_without_an_id_is_refused(server: Running, bad: dict[str, Any]) -> None:
    async with connected(server) as agent:
        await agent.send(drift=drift(changes=[change(1), change(2, **bad)]))
        assert (await agent.ended())[0] is StatusCode.INVALID_ARGUMENT
        assert server.events(action="container.drift") == []


async def test_agent_that_tells_too_much_is_left_out_and_the_log_says_how_many(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "BURST", 4)
    monkeypatch.setattr(allowance, "PER_SECOND", 0.0)
    stale = agent_link_pb2.StaleFrame(epoch=1, seq=7, kind="growth")
    conflict = {"state": commands_pb2.COMMAND_STATE_REJECTED, "code": Code.ALREADY_EXISTS}
    async with connected(server) as agent:
        await agent.send(drift=drift(changes=[change(number) for number in range(3)]))
        for _ in range(4):
            await agent.send(stale_frame=stale)
        await agent.send(drift=drift(changes=[change(number) for number in range(3, 1_003)]))
        await agent.send(result=agent_link_pb2.Result(command=new_id(), **conflict))
        await agent.sync()
        assert len(server.events(action="container.drift")) == 3
        assert len(server.events(action="frame.refuse")) == 1
        assert server.events(action="command.conflict") == []
        assert server.events(action="agent.excess") == []
        monkeypatch.setattr(allowance, "TELL_SECONDS", 0.0)
        await agent.sync()
        (told,) = server.events(action="agent.excess")
        assert (told.outcome, told.actor, told.target) == (Outcome.DENIED, "dock-1", "dock-1")
        assert told.details["data"]["left_out"] == {"stale_frame": 3, "drift": 1_000, "conflict": 1}
        assert told.error.endswith("1004 events were left out")
        monkeypatch.setattr(allowance, "TELL_SECONDS", 60.0)
        await agent.send(stale_frame=stale)
        await agent.leave()
        await server.until(lambda: len(server.events(action="agent.excess")) == 2)


async def test_agent_is_shown_with_the_key_by_which_it_cosigned(server: Running) -> None:
    key = "acme/agents/dock-1+0a1b2c3d+BAUG"
    async with connected(server):
        request = agents_pb2.GetAgentRequest(name="agents/dock-1")
        assert (await server.stubs.agents.GetAgent(request, metadata=server.me)).witness_key == ""
        columns = "organization, agent, witness_key, size, root, signature, signed_at"
        server.write(f"INSERT INTO cosignatures ({columns}) VALUES ('acme', 'dock-1', '{key}', 1, '', '', 1)")
        assert (await server.stubs.agents.GetAgent(request, metadata=server.me)).witness_key == key
