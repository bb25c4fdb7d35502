"""Changes that are sent again under their request_id: done once, answered alike, recorded each time."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import StatusCode

from lading.v1 import access_pb2, agents_pb2, audit_log_pb2, commands_pb2
from lading_server.clock import now
from lading_server.event import Outcome, Stage
from lading_server.interceptors import repeats
from lading_server.settings import Settings
from lading_server.store import requests
from tests.integration.server.commands import WEB, ask, refused
from tests.integration.server.fake_agent import FakeAgent, connected
from tests.integration.server.running import Recorded, Running, bearer, info, running, sign

OPERATOR = access_pb2.ROLE_OPERATOR
DAYS = 24 * 3600 * 1_000_000


@pytest.fixture
async def server(any_settings: Settings) -> AsyncIterator[Running]:
    async with running(any_settings) as made:
        yield made


@pytest.fixture
async def agent(server: Running) -> AsyncIterator[FakeAgent]:
    async with connected(server) as made:
        yield made


def assign(server: Running, subject: str = "bob", role: Any = OPERATOR, **fields: Any) -> Any:
    request = access_pb2.AssignRoleRequest(**{"subject": subject, "role": role, "request_id": "once", **fields})
    return server.stubs.access.AssignRole(request, metadata=server.me)


def remove(server: Running, **fields: Any) -> Any:
    request = access_pb2.RemoveRoleRequest(**{"subject": "bob", "role": OPERATOR, "request_id": "twice", **fields})
    return server.stubs.access.RemoveRole(request, metadata=server.me)


def assigned(server: Running) -> list[Recorded]:
    """Events of AssignRole; the first one is of `lading server init`."""
    return server.events(action="rbac.role.assign")[1:]


async def test_repeated_change_is_done_once_and_answered_alike(server: Running) -> None:
    first = await assign(server)
    removed = await remove(server)
    assert await assign(server) == first
    # Done anew it would be NOT_FOUND, and the role would be there again.
    assert await remove(server) == removed
    assert server.rows("SELECT subject FROM role_bindings WHERE subject = 'bob'") == []
    began, again = assigned(server)
    assert again.details["data"] == {"repeats": began.operation}
    assert ("diff" in began.details, "diff" in again.details) == (True, False)
    assert [event.summary for event in (began, again)] == [(Stage.COMPLETED, Outcome.SUCCESS, 0)] * 2


async def test_call_that_is_done_after_all_does_not_say_that_it_repeats(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is done again without the call that was first under this key."""
    await assign(server)
    await remove(server)
    apply = repeats.Once.apply

    def apply_again(self: Any, *arguments: Any) -> bytes:
        mine, self._request_id = self._request_id, "once"
        apply(self, *arguments)
        self._request_id = mine
        return apply(self, *arguments)

    monkeypatch.setattr(repeats.Once, "apply", apply_again)
    await assign(server, request_id="again")
    _, done = assigned(server)
    assert "diff" in done.details
    assert "data" not in done.details


async def test_other_content_under_the_same_id_is_refused_with_what_differs(server: Running) -> None:
    await assign(server, reason="because")
    (first,) = assigned(server)
    failure = await refused(assign(server, "eve", reason="why not"))
    assert failure.code() is StatusCode.ALREADY_EXISTS
    assert "what differs: reason, subject" in (failure.details() or "")
    assert dict(info(failure).metadata)["differs"] == "reason,subject"
    assert dict(info(failure).metadata)["first"] == first.operation
    failure = await refused(remove(server, request_id="once"))
    assert dict(info(failure).metadata)["differs"] == "method"
    assert assigned(server)[-1].summary == (Stage.COMPLETED, Outcome.FAILURE, 6)
    assert server.rows("SELECT subject FROM role_bindings WHERE subject = 'eve'") == []


async def test_request_id_belongs_to_its_actor(server: Running) -> None:
    await assign(server)
    await assign(server, "eve", access_pb2.ROLE_ADMIN, request_id="")
    eve = bearer(sign(server.settings, "eve"))
    request = access_pb2.AssignRoleRequest(subject="mallory", role=OPERATOR, request_id="once")
    assert (await server.stubs.access.AssignRole(request, metadata=eve)).subject == "mallory"


async def test_failed_call_is_tried_anew(server: Running) -> None:
    assert (await refused(remove(server))).code() is StatusCode.NOT_FOUND
    await assign(server)
    assert (await remove(server)).subject == "bob"


async def test_repeated_token_is_the_same_one_and_is_kept_nowhere(server: Running) -> None:
    request = access_pb2.IssueTokenRequest(type=audit_log_pb2.ACTOR_TYPE_SERVICE, subject="billing", request_id="once")
    first = await server.stubs.access.IssueToken(request, metadata=server.me)
    again = await server.stubs.access.IssueToken(request, metadata=server.me)
    assert first == again
    who = await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=bearer(again.secret))
    assert who.actor.credential == first.token.id
    assert server.rows("SELECT count(*) FROM tokens WHERE subject = 'billing'") == [(1,)]
    signature = first.secret.rpartition(".")[2]
    ((reply,),) = server.rows("SELECT reply FROM requests")
    assert signature.encode() not in bytes(reply)
    assert signature not in str(server.events())


async def test_repeated_ban_does_not_end_the_session_that_came_after_it(server: Running, agent: FakeAgent) -> None:
    def ban(**fields: Any) -> Any:
        return server.stubs.agents.BanAgent(
            agents_pb2.BanAgentRequest(name="agents/dock-1", **fields), metadata=server.me
        )

    await ban(request_id="once")
    assert (await agent.ended())[0] is StatusCode.PERMISSION_DENIED
    await ban(lift=True)
    await agent.connect()
    assert (await ban(request_id="once")).banned
    await agent.sync()


async def test_repeated_cancel_gives_the_first_answer(server: Running, agent: FakeAgent) -> None:
    command = (await ask(server, detach=True)).name
    await agent.dispatched()

    def cancel(**fields: Any) -> Any:
        request = commands_pb2.CancelCommandRequest(**{"name": command, "request_id": "once", **fields})
        return server.stubs.commands.CancelCommand(request, metadata=server.me)

    first = await cancel()
    await agent.take("cancel")
    await agent.finish(command.removeprefix("commands/"))
    assert await cancel() == first
    other = (await ask(server, detach=True)).name
    await agent.dispatched()
    assert (await refused(cancel(name=other))).code() is StatusCode.ALREADY_EXISTS
    await agent.sync()  # the refused cancel did not reach the agent


async def test_repeated_erasure_gives_the_first_answer(server: Running) -> None:
    await assign(server)
    (event,) = assigned(server)
    request = audit_log_pb2.EraseEventDetailsRequest(ids=[event.id], reason="asked to", request_id="erase")
    assert (await server.stubs.audit_log.EraseEventDetails(request, metadata=server.me)).erased == 1
    assert (await server.stubs.audit_log.EraseEventDetails(request, metadata=server.me)).erased == 1


async def test_lifecycle_call_with_other_content_names_what_differs(server: Running, agent: FakeAgent) -> None:
    await ask(server, request_id="once", detach=True, reason="one")
    await agent.dispatched()
    failure = await refused(ask(server, request_id="once", name=f"{WEB}2", reason="two"))
    assert failure.code() is StatusCode.ALREADY_EXISTS
    assert dict(info(failure).metadata)["differs"] == "name,reason"


async def test_one_id_is_not_for_a_lifecycle_call_and_another_one(server: Running, agent: FakeAgent) -> None:
    await assign(server, request_id="change")
    (first,) = assigned(server)
    failure = await refused(ask(server, request_id="change", detach=True))
    assert failure.code() is StatusCode.ALREADY_EXISTS
    found = dict(info(failure).metadata)
    assert (found["differs"], found["first"]) == ("method", first.operation)
    command = (await ask(server, request_id="command", detach=True)).name
    await agent.dispatched()
    failure = await refused(assign(server, "eve", request_id="command"))
    assert failure.code() is StatusCode.ALREADY_EXISTS
    found = dict(info(failure).metadata)
    assert (found["differs"], found["command"]) == ("method", command)
    assert server.rows("SELECT subject FROM role_bindings WHERE subject = 'eve'") == []
    await agent.sync()


async def test_old_request_ids_are_found_by_an_index(server: Running) -> None:
    if server.settings.database_url.startswith("sqlite"):
        plan = server.rows("EXPLAIN QUERY PLAN DELETE FROM requests WHERE recorded_at < 1")
        assert "requests_recorded" in str(plan)


async def test_request_ids_are_forgotten_after_a_week(server: Running) -> None:
    await assign(server)
    await assign(server, "eve", request_id="new")
    server.write(f"UPDATE requests SET recorded_at = {now() - 8 * DAYS} WHERE request_id = 'once'")

    def apply(transaction: Any) -> None:
        requests.forget(transaction.connection, transaction.recorded_at - repeats.KEEP_MICROSECONDS)

    await server.ledger.commit((), apply)
    assert server.rows("SELECT request_id FROM requests") == [("new",)]
