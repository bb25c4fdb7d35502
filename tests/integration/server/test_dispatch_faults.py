"""Commands while the database fails, hangs, or commits without saying so."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from grpc import StatusCode
from grpc.aio import AioRpcError

from lading_server import arrears, errors, waiters
from lading_server import dispatch as dispatch_module
from lading_server.commands import State
from lading_server.ends import record_end, record_withdrawal
from lading_server.event import Outcome, Stage
from lading_server.ledger import ledger as ledger_module
from lading_server.sessions import WINDOW
from lading_server.settings import Settings
from lading_server.store import commands as commands_store
from tests.integration.server.commands import ask, gone, refused, start, state_of
from tests.integration.server.fake_agent import FakeAgent, connected
from tests.integration.server.ledgers import busy, hang, locked, on_commit
from tests.integration.server.running import Running, info, running


@pytest.fixture
async def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(dispatch_module, "SWEEP_SECONDS", 0.02)
    async with running(settings) as made:
        yield made


@pytest.fixture
async def agent(server: Running) -> AsyncIterator[FakeAgent]:
    async with connected(server) as made:
        yield made


async def test_nothing_is_sent_while_the_log_cannot_be_written(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 0.2)
    with locked(server.settings) as release:
        assert (await refused(ask(server))).code() is StatusCode.UNAVAILABLE
        assert (await refused(ask(server, detach=True))).code() is StatusCode.UNAVAILABLE
        release()
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    reply = None
    async with asyncio.timeout(30):
        while reply is None:
            with contextlib.suppress(AioRpcError):
                reply = await ask(server, detach=True)
    assert await agent.dispatched() == reply.name.removeprefix("commands/")
    await agent.sync()
    assert len(server.rows("SELECT id FROM commands")) == 1


async def test_result_waits_for_the_log_and_the_session_goes_on(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ask(server)
    command = await agent.dispatched()
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("lading_server.services.agent_link.LEDGER_RETRY_SECONDS", 0.02)
    with locked(server.settings) as release:
        finishing = asyncio.ensure_future(agent.finish(command))
        await asyncio.sleep(0.5)
        assert not finishing.done()
        release()
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    await finishing
    assert (await call).state == State.SUCCEEDED


class Hang:
    """Holds the COMMIT of the batch in which a function of the store is called next."""

    def __init__(self, server: Running, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
        self.leave, self.reached = threading.Event(), threading.Event()
        self._hang = hang(self.leave, monkeypatch)
        original = getattr(commands_store, function)

        def arm(*args: Any) -> Any:
            monkeypatch.setattr(commands_store, function, original)
            on_commit(server, self.commit)
            return original(*args)

        monkeypatch.setattr(commands_store, function, arm)

    def commit(self, commit: Any) -> None:
        self.reached.set()
        self._hang(commit)


async def test_command_that_was_recorded_after_its_caller_was_told_it_was_not_is_never_sent(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = Hang(server, monkeypatch, "insert")
    assert (await refused(ask(server))).code() is StatusCode.UNAVAILABLE
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    hang.leave.set()
    end = await server.event(action="container.start", stage=Stage.COMPLETED, outcome=Outcome.CANCELLED)
    assert server.rows(f"SELECT state FROM commands WHERE id = '{end.operation}'") == [(State.CANCELLED,)]
    await agent.sync()


@pytest.mark.parametrize("how", ["waits", "is silent", "is another session's"])
async def test_withdrawal_that_fails_is_made_good_and_nothing_is_sent_before(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    dispatcher = server.server._agent_link._dispatcher
    failing, failed = threading.Event(), threading.Event()
    failing.set()

    def fail(*args: Any) -> Any:
        if failing.is_set():
            failed.set()
            raise errors.LedgerUnavailable
        return record_withdrawal(*args)

    monkeypatch.setattr(dispatch_module, "record_withdrawal", fail)
    monkeypatch.setattr(arrears, "RETRY_SECONDS", 0.01)
    if how == "waits":
        await agent.leave()
    hang = Hang(server, monkeypatch, "insert")
    assert (await refused(ask(server, detach=True))).code() is StatusCode.UNAVAILABLE
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    hang.leave.set()
    assert await asyncio.to_thread(failed.wait, 20)
    if how == "is silent":
        monkeypatch.setattr(dispatch_module, "RESEND_MICROSECONDS", 0)
        await dispatcher._sweep()
        monkeypatch.setattr(dispatch_module, "RESEND_MICROSECONDS", 3600 * 1_000_000)
    else:
        if how != "waits":
            await gone(server, agent)
        await agent.connect()
        async with asyncio.timeout(20):
            while len(dispatcher._withdrawals._due) < 2:  # noqa: ASYNC110 - it was about to be sent
                await asyncio.sleep(0.01)
    await agent.sync()
    failing.clear()
    end = await server.event(action="container.start", stage=Stage.COMPLETED, outcome=Outcome.CANCELLED)
    assert end.error == "its caller was told UNAVAILABLE"
    assert state_of(server, end.operation) is State.CANCELLED
    call = ask(server)
    await agent.finish(await agent.dispatched())
    assert (await call).state == State.SUCCEEDED
    (session,) = server.server._agent_link._sessions.all()
    assert session.credit == WINDOW


async def test_server_that_stops_leaves_a_withdrawal_that_fails(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise errors.LedgerUnavailable

    monkeypatch.setattr(dispatch_module, "record_withdrawal", fail)
    async with running(settings) as server, connected(server):
        hang = Hang(server, monkeypatch, "insert")
        assert (await refused(ask(server))).code() is StatusCode.UNAVAILABLE
        monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
        hang.leave.set()
        await server.event(action="container.start", stage=Stage.RECEIVED)
    (command,) = server.events(action="container.start", stage=Stage.RECEIVED)
    assert state_of(server, command.operation) is State.DISPATCHED


async def test_command_that_was_withdrawn_too_late_is_cancelled_where_it_is(server: Running, agent: FakeAgent) -> None:
    """Another process took it meanwhile, so it is in its agent's hands."""
    command = await start(server)
    await agent.dispatched()
    ledger, reader = server.server._ledger, server.server._reader
    row = await reader.read(commands_store.get, "acme", command)
    assert row is not None
    server.write("UPDATE commands SET epoch = epoch + 1")
    assert await ledger.commit(("acme",), lambda transaction: record_withdrawal(transaction, row)) is None
    assert (await agent.take("cancel")).command == command
    assert state_of(server, command) is State.DISPATCHED


async def test_command_that_cannot_be_settled_holds_up_no_other(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in its page of the sweep nor in those that follow."""
    await agent.leave()
    monkeypatch.setattr(dispatch_module, "SWEEP_MAX", 1)
    bad, *others = [await start(server) for _ in range(5)]

    def fail(transaction: Any, organization: str, command: str, *args: Any, **more: Any) -> Any:
        if command == bad:
            raise errors.Error
        return record_end(transaction, organization, command, *args, **more)

    monkeypatch.setattr(dispatch_module, "record_end", fail)
    server.write("UPDATE commands SET deliver_by = 1")
    for command in others:
        await server.event(operation=command, outcome=Outcome.DEADLINE)
    assert state_of(server, bad) is State.PENDING
    monkeypatch.setattr(dispatch_module, "record_end", record_end)
    await server.event(operation=bad, outcome=Outcome.DEADLINE)


async def test_agents_with_full_windows_do_not_hide_one_for_which_work_waits(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when their commands came by another process, which wakes nobody here."""
    monkeypatch.setattr(dispatch_module, "SWEEP_MAX", 1)
    async with connected(server, "dock-0"):
        full = server.server._agent_link._sessions.get("acme", "dock-0")
        assert full is not None
        full.credit = 0
        await start(server, name="agents/dock-0/containers/web")
        monkeypatch.setattr(dispatch_module.Dispatcher, "_hand_over", lambda *_, **__: False)
        session = server.server._agent_link._sessions.get("acme", "dock-1")
        assert session is not None
        session.queued += 1  # so that it is not sent at once
        command = await start(server)
        session.queued -= 1
        assert await agent.dispatched() == command


async def test_command_that_goes_on_is_not_withdrawn_by_a_repetition_that_came_too_late(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await ask(server, detach=True, request_id="once")
    command = await agent.dispatched()
    hang = Hang(server, monkeypatch, "get_by_request")
    assert (await refused(ask(server, detach=True, request_id="once"))).code() is StatusCode.UNAVAILABLE
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    hang.leave.set()
    await agent.sync()
    await agent.finish(command)
    assert first.name == f"commands/{command}"
    assert server.events(operation=command)[-1].summary == (Stage.COMPLETED, Outcome.SUCCESS, 0)


async def test_command_whose_taking_was_committed_without_an_answer_is_sent_all_the_same(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that wait are marked DISPATCHED, and the answer of that COMMIT is lost."""
    await agent.leave()
    reply = await ask(server, detach=True)
    monkeypatch.setattr(dispatch_module, "RESEND_MICROSECONDS", 100_000)
    take = commands_store.take_pending

    def take_and_lose(*args: Any) -> Any:
        taken = take(*args)
        if taken:
            monkeypatch.setattr(commands_store, "take_pending", take)
            on_commit(server, lose)
        return taken

    def lose(commit: Any) -> None:
        commit()
        raise sa.exc.OperationalError("COMMIT", None, Exception("the connection is gone"))

    monkeypatch.setattr(commands_store, "take_pending", take_and_lose)
    await agent.connect()
    command = await agent.dispatched()
    assert reply.name == f"commands/{command}"
    await agent.finish(command)


async def test_commands_whose_taking_was_committed_too_late_are_sent_and_hold_up_nothing(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.leave()
    reply = await ask(server, detach=True)
    hang = Hang(server, monkeypatch, "take_pending")
    await agent.connect()
    assert await asyncio.to_thread(hang.reached.wait, 30)
    session = server.server._agent_link._sessions.get("acme", "dock-1")
    assert session is not None
    async with asyncio.timeout(30):
        while session.flushing:  # noqa: ASYNC110 - until it is told that the database does not answer
            await asyncio.sleep(0.01)
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    hang.leave.set()
    command = await agent.dispatched()
    assert reply.name == f"commands/{command}"
    await agent.finish(command)
    call = ask(server)
    await agent.finish(await agent.dispatched())
    assert (await call).state == State.SUCCEEDED


async def test_growth_of_the_log_that_was_committed_too_late_holds_up_no_command(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = threading.Event()
    session = server.server._agent_link._sessions.get("acme", "dock-1")
    assert session is not None
    on_commit(server, hang(leave, monkeypatch))
    with pytest.raises(errors.LedgerUnavailable):
        await server.server._agent_link._dispatcher.show_growth(session)
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    leave.set()
    call = ask(server)
    await agent.finish(await agent.dispatched())
    assert (await call).state == State.SUCCEEDED


async def test_growth_of_the_log_that_nobody_waits_for_holds_up_no_command(server: Running, agent: FakeAgent) -> None:
    link = server.server._agent_link
    session = link._sessions.get("acme", "dock-1")
    assert session is not None
    async with busy(server.server._ledger):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link._dispatcher.show_growth(session)
    call = ask(server)
    await agent.finish(await agent.dispatched())
    assert (await call).state == State.SUCCEEDED


@pytest.mark.parametrize("failure", [errors.StoreUnavailable, errors.Overloaded])
async def test_caller_learns_the_name_of_its_command_when_its_end_cannot_be_read(
    server: Running, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, failure: type[errors.Error]
) -> None:
    async def fail(*_: Any) -> Any:
        raise failure

    call = ask(server)
    command = await agent.dispatched()
    with monkeypatch.context() as patched:
        patched.setattr(waiters, "POLL_SECONDS", 0.01)
        patched.setattr(server.server._agent_link._dispatcher._reader, "read", fail)
        other = await refused(ask(server))
    assert other.code() is StatusCode.UNAVAILABLE
    name = info(other).metadata["command"]
    assert name == f"commands/{await agent.dispatched()}" != f"commands/{command}"
    await agent.finish(command)
    with contextlib.suppress(AioRpcError):  # it may have looked in vain too
        await call
