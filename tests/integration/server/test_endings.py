"""Every way a call can end × the four kinds of calls: each leaves exactly its events, which say what the caller saw."""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import h2.exceptions
import pytest
import sqlalchemy as sa
from grpc import StatusCode

from lading_server import errors
from lading_server.event import Outcome, Stage
from lading_server.interceptors import audit, flood
from lading_server.ledger import ledger as ledger_module
from lading_server.settings import Settings
from tests.integration.server.conftest import initialize, own_limits
from tests.integration.server.endings import KINDS, MANY, SERVICE, Do, Done, EndingsServer
from tests.integration.server.ledgers import busy, hang, locked, on_commit, prompt
from tests.integration.server.raw_http2 import Connection
from tests.integration.server.running import Metadata, Recorded, bearer, read_events, sign
from tests.postgres import Cluster

UNARY, STREAMS = ("Unary",), ("Lines", "Sum", "Talk")
ONE_REQUEST, MANY_REQUESTS = ("Unary", "Lines"), ("Sum", "Talk")
MANY_RESPONSES = ("Lines", "Talk")
STATUS = {code.value[0]: code for code in StatusCode}
OUTCOMES = {
    StatusCode.OK: Outcome.SUCCESS,
    StatusCode.CANCELLED: Outcome.CANCELLED,
    StatusCode.DEADLINE_EXCEEDED: Outcome.DEADLINE,
    StatusCode.UNAUTHENTICATED: Outcome.DENIED,
    StatusCode.PERMISSION_DENIED: Outcome.DENIED,
}


@dataclass
class Caller:
    """Calls one method of the service, and sees how it ends."""

    server: EndingsServer
    kind: str
    metadata: Metadata
    replies: int = 0
    message: str = ""
    operation: str = ""
    """As the answer names it."""

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.kind}"

    def call(self, request: Any, *, path: str = "", channel: grpc.aio.Channel | None = None, **options: Any) -> Any:
        """Begin a call. `request`: a message, or bytes that go out as they are. A stream of requests stays open."""
        requests, responses = KINDS[self.kind]
        channel = channel or self.server.channel
        make: Any = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }[requests, responses]
        stub = make(
            path or self.path,
            request_serializer=lambda one: one if isinstance(one, bytes) else one.SerializeToString(),
            response_deserializer=Done.FromString,
        )
        options = {"metadata": self.metadata, "timeout": 20, **options}
        return stub(self.once(request) if requests else request, **options)

    async def once(self, request: Any) -> AsyncIterator[Any]:
        yield request

    async def endless(self, request: Any) -> AsyncIterator[Any]:
        yield request
        await asyncio.Event().wait()

    async def end(self, call: Any) -> StatusCode:
        """Take every reply; what the call ended with."""
        try:
            if KINDS[self.kind][1]:
                async for _ in call:
                    self.replies += 1
            else:
                await call
                self.replies += 1
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        self.message = await call.details() or ""
        self.operation = dict(await call.trailing_metadata() or ()).get("lading-operation", "")
        code: StatusCode = await call.code()
        return code

    async def began(self) -> None:
        async with asyncio.timeout(30):
            await self.server.handlers.began.wait()


Act = Callable[[Caller], Awaitable[StatusCode]]


class Nobody:
    """Says of every caller that it may do nothing any more."""

    async def identify(self, call: Any, metadata: Any) -> None: ...

    def permissions(self, _call: Any) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True)
class Ending:
    """`act` makes a call end so, and returns what the caller saw. `before_start`: kinds of streams that are refused
    before they have begun. `recorded`: the code of the event, where it is not `seen`."""

    act: Act
    seen: StatusCode
    kinds: tuple[str, ...] = tuple(KINDS)
    before_start: tuple[str, ...] = ()
    recorded: StatusCode | None = None
    says: str = ""
    check: Callable[[Caller, Recorded], Any] = field(default=lambda caller, event: None)

    def stages(self, kind: str) -> list[tuple[Stage, Outcome, int]]:
        code = self.recorded or self.seen
        end = (Stage.COMPLETED, OUTCOMES.get(code, Outcome.FAILURE), code.value[0])
        if kind in UNARY or kind in self.before_start:
            return [end]
        return [(Stage.STARTED, Outcome.PENDING, 0), end]


def told(how: str, **options: Any) -> Act:
    """The handler ends as it is told."""

    async def act(caller: Caller) -> StatusCode:
        return await caller.end(caller.call(Do(how=how), **options))

    return act


def sent(request: Any) -> Act:
    async def act(caller: Caller) -> StatusCode:
        return await caller.end(caller.call(request))

    return act


def cancelled(how: str) -> Act:
    """The caller cancels once the handler is at work."""

    async def act(caller: Caller) -> StatusCode:
        call = caller.call(Do(how=how))
        ending = asyncio.ensure_future(caller.end(call))
        await caller.began()
        call.cancel()
        return await ending

    return act


def hung_up(how: str) -> Act:
    """The connection goes away once the handler is at work."""

    async def act(caller: Caller) -> StatusCode:
        async with Connection(caller.server.port) as connection:
            stream = await connection.begin(caller.path, caller.metadata)
            await connection.send(stream, Do(how=how).SerializeToString(), last=not KINDS[caller.kind][0])
            await caller.began()
        return StatusCode.CANCELLED

    return act


async def close_without_message(caller: Caller) -> StatusCode:
    async with Connection(caller.server.port) as connection:
        stream = await connection.begin(caller.path, caller.metadata)
        await connection.half_close(stream)
        code, caller.message = await connection.status(stream)
    return STATUS[code]


async def send_after_error(caller: Caller) -> StatusCode:
    """The caller goes on sending to a stream that has failed."""
    async with Connection(caller.server.port) as connection:
        stream = await connection.begin(caller.path, caller.metadata)
        for how in ("refuse", "more"):
            await connection.send(stream, Do(how=how).SerializeToString())
        code, caller.message = await connection.status(stream)
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            await connection.send(stream, Do(how="more").SerializeToString())
    return STATUS[code]


def called(path: str) -> Act:
    async def act(caller: Caller) -> StatusCode:
        return await caller.end(caller.call(Do(how="ok"), path=path))

    return act


def as_nobody(caller: Caller) -> Awaitable[StatusCode]:
    return told("ok", metadata=())(caller)


def as_somebody_without_roles(caller: Caller) -> Awaitable[StatusCode]:
    return told("ok", metadata=bearer(sign(caller.server.settings, "eve")))(caller)


def counts(messages_in: int, messages_out: int) -> Callable[[Caller, Recorded], None]:
    def check(caller: Caller, event: Recorded) -> None:
        assert caller.replies == messages_out
        assert (event.details["messages_in"], event.details["messages_out"]) == (messages_in, messages_out)

    return check


def keeps_its_secret(caller: Caller, event: Recorded) -> None:
    assert "hunter2" not in caller.message
    assert "hunter2" not in str(event)
    assert event.operation in caller.message, "the operator must find it in the server's own log"


def is_in_the_log_of_the_system(caller: Caller, event: Recorded) -> None:
    assert event.actor == ""
    assert event in read_events(caller.server.settings, "system")


LARGE = Do(how="ok", filler=b"x" * 100_000)


def says_size_and_digest(caller: Caller, event: Recorded) -> None:
    if caller.kind in ONE_REQUEST:
        digest = hashlib.sha256(LARGE.SerializeToString()).hexdigest()
        assert event.details["request"] == {"bytes": LARGE.ByteSize(), "sha256": digest}


ENDINGS: dict[str, Ending] = {
    "ok": Ending(told("ok"), StatusCode.OK, check=counts(1, 1)),
    "error raised": Ending(told("refuse"), StatusCode.NOT_FOUND, says="there is no such thing"),
    "abort": Ending(told("abort"), StatusCode.ABORTED, says="somebody was faster"),
    "abort with OK": Ending(told("abort-ok"), StatusCode.INTERNAL),
    "abort that is swallowed": Ending(told("swallow"), StatusCode.OK),
    "code set": Ending(told("set-code"), StatusCode.DATA_LOSS, says="half of it is gone"),
    "code set, then exception": Ending(told("set-code-and-raise"), StatusCode.INTERNAL, check=keeps_its_secret),
    "exception": Ending(told("crash"), StatusCode.INTERNAL, check=keeps_its_secret),
    "handler raises CancelledError": Ending(told("cancelled"), StatusCode.INTERNAL),
    "handler returns a wrong type": Ending(told("wrong"), StatusCode.INTERNAL),
    "state changed": Ending(told("change"), StatusCode.OK, UNARY),
    "change of state refused": Ending(
        told("change-refused"), StatusCode.FAILED_PRECONDITION, UNARY, says="not in this state"
    ),
    "error after the first message": Ending(
        told("late"), StatusCode.NOT_FOUND, MANY_RESPONSES, check=counts(1, 1), says="there is no more"
    ),
    "30,000 replies": Ending(told("many"), StatusCode.OK, ("Lines",), check=counts(1, MANY)),
    "idle call cancelled": Ending(cancelled("idle"), StatusCode.CANCELLED),
    "busy call cancelled": Ending(cancelled("spin"), StatusCode.CANCELLED),
    "call cancelled while it writes": Ending(cancelled("flood"), StatusCode.CANCELLED, MANY_RESPONSES),
    "deadline": Ending(told("idle", timeout=2.0), StatusCode.DEADLINE_EXCEEDED),
    "deadline while it writes": Ending(told("flood", timeout=2.0), StatusCode.DEADLINE_EXCEEDED, MANY_RESPONSES),
    "connection lost": Ending(hung_up("idle"), StatusCode.CANCELLED),
    "connection lost while it reads": Ending(hung_up("drain"), StatusCode.CANCELLED, MANY_REQUESTS),
    "connection lost while it writes": Ending(hung_up("flood"), StatusCode.CANCELLED, MANY_RESPONSES),
    "half-close without a message": Ending(
        close_without_message,
        StatusCode.INVALID_ARGUMENT,
        ONE_REQUEST,
        before_start=("Lines",),
        says="without a request message",
    ),
    "sent after the end": Ending(send_after_error, StatusCode.NOT_FOUND, MANY_REQUESTS),
    "no token": Ending(as_nobody, StatusCode.UNAUTHENTICATED, before_start=STREAMS, check=is_in_the_log_of_the_system),
    "no permission": Ending(as_somebody_without_roles, StatusCode.PERMISSION_DENIED, before_start=STREAMS),
    "unknown method": Ending(called(f"/{SERVICE}/Nothing"), StatusCode.UNIMPLEMENTED, before_start=STREAMS),
    "unknown service": Ending(called("/nobody.Knows/It"), StatusCode.UNIMPLEMENTED, before_start=STREAMS),
    "path that is none": Ending(called("nonsense"), StatusCode.UNIMPLEMENTED, before_start=STREAMS),
    "bytes that do not parse": Ending(
        sent(b"\xff\xff\xff"), StatusCode.INVALID_ARGUMENT, before_start=("Lines",), says="cannot be parsed"
    ),
    "field that breaks its rule": Ending(
        sent(Do(how="not an id")), StatusCode.INVALID_ARGUMENT, ONE_REQUEST, before_start=("Lines",), says="how: must"
    ),
    "request over 64 KB": Ending(sent(LARGE), StatusCode.OK, check=says_size_and_digest),
    "request over 4 MB": Ending(
        sent(Do(how="ok", filler=b"x" * 4_200_000)),
        StatusCode.RESOURCE_EXHAUSTED,
        before_start=("Lines",),
        says="send less at a time",
    ),
    # Above the limit of grpc's core nothing is handed to us: the one status that is not what the caller saw.
    "request over 16 MB": Ending(
        sent(Do(how="ok", filler=b"x" * 17_000_000)),
        StatusCode.RESOURCE_EXHAUSTED,
        before_start=("Lines",),
        recorded=StatusCode.CANCELLED,
    ),
}


@pytest.fixture
async def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EndingsServer]:
    # The server may see a call late, and so its deadline; calls that are cancelled have ten times as long.
    monkeypatch.setattr(audit, "DEADLINE_SLACK_SECONDS", 1.0)
    async with EndingsServer(settings) as running:
        yield running


@pytest.fixture
async def server_on_postgresql(settings_on_postgresql: Settings) -> AsyncIterator[EndingsServer]:
    async with EndingsServer(settings_on_postgresql) as running:
        yield running


async def check_ending(server: EndingsServer, ending: Ending) -> None:
    known = len(server.events())
    for kind in ending.kinds:
        server.handlers.began.clear()
        caller = Caller(server, kind, bearer(sign(server.settings)))
        seen = await ending.act(caller)
        assert seen is ending.seen, f"{kind}: {caller.message}"
        assert ending.says in caller.message, kind
        events = await events_since(server, known, len(ending.stages(kind)))
        assert [event.summary for event in events] == ending.stages(kind), kind
        assert len({event.operation for event in events}) == 1
        assert [event.superseded_by for event in events] == [event.index for event in events[1:]] + [None]
        assert events[-1].details["duration_us"] >= 0
        ending.check(caller, events[-1])
        if caller.operation:
            assert events[-1].operation == caller.operation
        known += len(events)


async def events_since(server: EndingsServer, known: int, count: int) -> list[Recorded]:
    """The events of one call, once all its tasks are done."""
    await eventually(lambda: len(server.events()) >= known + count)
    await server.settled()
    return server.events()[known:]


async def eventually(condition: Callable[[], Any]) -> None:
    """Look until it is true: for what the server does by itself, after its caller has gone."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - another connection reads the database
            await asyncio.sleep(0.002)


async def served(caller: Caller) -> None:
    """Call until the database is back."""
    async with asyncio.timeout(20):
        while await caller.end(caller.call(Do(how="ok"))) is StatusCode.UNAVAILABLE:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
async def test_every_ending_of_every_kind_leaves_exactly_its_events(server: EndingsServer, ending: Ending) -> None:
    await check_ending(server, ending)


SOME = ("ok", "exception", "idle call cancelled", "call cancelled while it writes", "no token")


@pytest.mark.parametrize("ending", [ENDINGS[name] for name in SOME], ids=SOME)
async def test_endings_are_the_same_on_postgresql(server_on_postgresql: EndingsServer, ending: Ending) -> None:
    await check_ending(server_on_postgresql, ending)


async def leave(connection: Connection, stream: int, how: str) -> None:
    """Give the call up, by a frame or without a word."""
    if how == "reset":
        await connection.reset(stream)
    else:
        await connection.drop()


@pytest.mark.parametrize("how", ["reset", "drop"])
async def test_call_that_is_cut_off_before_its_first_message_leaves_one_end(server: EndingsServer, how: str) -> None:
    """Whether it is identified, or has begun, before it is cut off is a matter of luck."""
    rounds = 10
    for kind in KINDS:
        for _ in range(rounds):
            async with Connection(server.port) as connection:
                path = f"/{SERVICE}/{kind}"
                await leave(connection, await connection.begin(path, bearer(sign(server.settings))), how)

    def ended() -> list[Recorded]:
        return [event for event in server.events() if event.stage is Stage.COMPLETED]

    await eventually(lambda: len(ended()) >= rounds * len(KINDS))
    await server.settled()
    ends = ended()
    assert {event.summary for event in ends} == {(Stage.COMPLETED, Outcome.CANCELLED, StatusCode.CANCELLED.value[0])}
    assert len({event.operation for event in ends}) == len(ends) == rounds * len(KINDS)
    starts = [event for event in server.events() if event.stage is Stage.STARTED]
    assert {event.superseded_by for event in starts} <= {event.index for event in ends}
    assert {event.operation for event in starts} <= {event.operation for event in ends}


@pytest.mark.parametrize("kind", KINDS)
async def test_call_that_a_stop_cuts_off_leaves_its_end(server: EndingsServer, kind: str) -> None:
    caller = Caller(server, kind, bearer(sign(server.settings)))
    ending = asyncio.ensure_future(caller.end(caller.call(Do(how="idle"))))
    await caller.began()
    await server.stop(0)
    await server.settled()
    assert await ending is StatusCode.UNAVAILABLE
    assert server.events()[-1].summary == (Stage.COMPLETED, Outcome.FAILURE, StatusCode.UNAVAILABLE.value[0])


async def test_caller_that_goes_away_during_the_commit_has_one_record_of_what_was_done(server: EndingsServer) -> None:
    caller = Caller(server, "Unary", bearer(sign(server.settings)))
    for how in ("ok", "change"):
        async with busy(server.ledger):
            call = caller.call(Do(how=how))
            ending = asyncio.ensure_future(caller.end(call))
            await eventually(lambda: server.ledger._waiting)
            call.cancel()
            assert await ending is StatusCode.CANCELLED
        await server.settled()
    assert [event.summary for event in server.events()] == [(Stage.COMPLETED, Outcome.SUCCESS, 0)] * 2


async def test_change_whose_caller_goes_away_is_done_though_the_database_hangs(
    server: EndingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Caller(server, "Unary", bearer(sign(server.settings)))
    with contextlib.suppress(errors.LedgerUnavailable):  # of what keeps the ledger busy
        async with busy(server.ledger):
            call = caller.call(Do(how="change"))
            ending = asyncio.ensure_future(caller.end(call))
            await eventually(lambda: len(server.ledger._waiting) == 1)
            call.cancel()
            assert await ending is StatusCode.CANCELLED
            monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 0.3)
            waiting = caller.call(Do(how="ok"))
            assert await caller.end(waiting) is StatusCode.UNAVAILABLE
            monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    await server.settled()
    assert [event.summary for event in server.events()] == [(Stage.COMPLETED, Outcome.SUCCESS, 0)]


async def test_change_that_fails_after_its_caller_has_gone_away_leaves_its_record(server: EndingsServer) -> None:
    caller = Caller(server, "Unary", bearer(sign(server.settings)))
    async with busy(server.ledger):
        call = caller.call(Do(how="change-refused"))
        ending = asyncio.ensure_future(caller.end(call))
        await eventually(lambda: server.ledger._waiting)
        call.cancel()
        assert await ending is StatusCode.CANCELLED
    await server.settled()
    (event,) = server.events()
    assert (*event.summary, event.error) == (
        *(Stage.COMPLETED, Outcome.FAILURE, StatusCode.FAILED_PRECONDITION.value[0]),
        "not in this state",
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_call_fails_and_nothing_is_begun_while_the_database_hangs(
    server: EndingsServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    caller = Caller(server, kind, bearer(sign(server.settings)))
    await caller.end(caller.call(Do(how="ok")))
    known = server.events()
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 0.2)
    with locked(server.settings) as release:
        with prompt(2.0):
            call = caller.call(Do(how="flood" if kind in MANY_RESPONSES else "ok"))
            assert await caller.end(call) is StatusCode.UNAVAILABLE
        assert "nothing was done" in caller.message
        assert not server.handlers.began.is_set()
        monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
        release()
    await served(caller)
    ends = [event.summary for event in server.events()[len(known) :] if event.stage is Stage.COMPLETED]
    assert ends == [(Stage.COMPLETED, Outcome.SUCCESS, 0)], "only the last one, which was answered"


async def test_call_fails_while_postgresql_is_gone_and_is_served_when_it_is_back(
    own_postgres: Cluster, settings: Settings
) -> None:
    gone = await asyncio.to_thread(initialize, settings.data.with_name("gone"), own_postgres.fresh_database())
    async with EndingsServer(gone) as server:
        callers = [Caller(server, kind, bearer(sign(gone))) for kind in KINDS]
        for caller in callers:
            assert await caller.end(caller.call(Do(how="ok"))) is StatusCode.OK
        own_postgres.stop()
        for caller in callers:
            with own_limits(), prompt(2.0):
                assert await caller.end(caller.call(Do(how="ok"))) is StatusCode.UNAVAILABLE
        own_postgres.start()
        for caller in callers:
            await served(caller)
        ends = [event.action for event in server.events() if event.stage is Stage.COMPLETED]
        assert ends == [f"test.{kind.lower()}" for kind in KINDS] * 2


@pytest.mark.parametrize("kind", STREAMS)
async def test_stream_that_ends_while_the_log_cannot_be_written_has_its_end_later(
    server: EndingsServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    caller = Caller(server, kind, bearer(sign(server.settings)))
    call = caller.call(Do(how="idle"))
    await caller.began()
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 0.2)
    with locked(server.settings) as release:
        call.cancel()
        await eventually(lambda: server.audit._arrears._due)
        release()
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    await server.settled()
    ends = [event.summary for event in server.events()]
    assert ends == [(Stage.STARTED, Outcome.PENDING, 0), (Stage.COMPLETED, Outcome.CANCELLED, 1)]


@pytest.mark.parametrize("kind", ["Sum", "Talk"])
async def test_stream_whose_caller_goes_away_while_its_end_cannot_be_written_has_it_later(
    server: EndingsServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    caller, leave = Caller(server, kind, bearer(sign(server.settings))), asyncio.Event()

    async def requests(request: Any) -> AsyncIterator[Any]:
        yield request
        await leave.wait()

    monkeypatch.setattr(caller, "once", requests)
    call = caller.call(Do(how="drain"))
    await caller.began()
    lose, attempt = threading.Event(), server.ledger._attempt

    def lost(_batch: Any) -> Any:
        monkeypatch.setattr(server.ledger, "_attempt", attempt)
        assert lose.wait(30)
        raise sa.exc.OperationalError("COMMIT", None, Exception("the server closed the connection"))

    monkeypatch.setattr(server.ledger, "_attempt", lost)
    leave.set()
    await eventually(lambda: any(not unit.answer.done() for unit in server.ledger._batch))  # its end is on its way
    call.cancel()
    await eventually(lambda: not server.audit._active)
    lose.set()
    await eventually(lambda: not server.ledger._batch_began)
    await server.settled()
    ends = [event.summary for event in server.events()]
    assert ends == [(Stage.STARTED, Outcome.PENDING, 0), (Stage.COMPLETED, Outcome.SUCCESS, 0)]


@pytest.mark.parametrize("kind", STREAMS)
async def test_begin_of_a_stream_that_was_committed_too_late_has_an_end(
    server: EndingsServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    leave = threading.Event()
    caller = Caller(server, kind, bearer(sign(server.settings)))
    assert await caller.end(caller.call(Do(how="ok"))) is StatusCode.OK
    known = len(server.events())
    on_commit(server, hang(leave, monkeypatch))
    assert await caller.end(caller.call(Do(how="ok"))) is StatusCode.UNAVAILABLE
    monkeypatch.setattr(ledger_module, "ANSWER_SECONDS", 30.0)
    leave.set()
    await eventually(lambda: len(server.events()) > known + 1)
    began, end = server.events()[known:]
    assert began.stage is Stage.STARTED
    assert end.summary == (Stage.COMPLETED, Outcome.FAILURE, StatusCode.UNAVAILABLE.value[0])
    assert (began.operation, began.superseded_by) == (end.operation, end.index)


async def test_each_of_many_streams_that_are_cut_off_at_once_has_an_end_of_its_own(server: EndingsServer) -> None:
    """Those of refused calls share one, when they are many; these have begun."""
    many = 2 * flood.BURST
    caller = Caller(server, "Talk", bearer(sign(server.settings)))
    ends = [asyncio.ensure_future(caller.end(caller.call(Do(how="idle")))) for _ in range(many)]
    await eventually(lambda: len(server.audit._streams) == many)
    server.audit._identity = Nobody()
    server.audit._look()
    assert set(await asyncio.gather(*ends)) == {StatusCode.UNAUTHENTICATED}
    await server.settled()
    events = server.events()
    began = [event.operation for event in events if event.stage is Stage.STARTED]
    ended = [event.operation for event in events if event.stage is Stage.COMPLETED]
    assert (len(began), sorted(began)) == (many, sorted(ended))
