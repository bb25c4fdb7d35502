"""The audit interceptor, outermost: every call of every kind leaves its record before its reply leaves the server.

It serves each method through a handler of raw bytes, so that it is entered before any message is read, and owns
parsing, status and the moment of the reply. Handlers cannot skip it; they may only add to the Call.

What it cannot see: what core refuses before any handler runs (a malformed path, failed TLS, a full pending queue). And
SUCCESS means committed and handed to the transport, not received: a caller that goes away while the record of its
reply is being committed has one record, of what the server did.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, NoReturn, Protocol

import grpc
from grpc.aio import EOF, AbortError

from lading_server import call as calls
from lading_server import errors
from lading_server.admission import Bucket
from lading_server.arrears import Arrears
from lading_server.call import Call, Change
from lading_server.clock import Clock, new_id, now
from lading_server.errors import Code
from lading_server.event import ActorType, Event, Outcome, Stage
from lading_server.interceptors import access, methods, repeats, status, validation
from lading_server.interceptors.context import Context, Ending
from lading_server.interceptors.flood import Flood
from lading_server.interceptors.methods import Method
from lading_server.interceptors.records import OUTCOMES, append_missing, event_of
from lading_server.interceptors.repeats import Once, apply_change
from lading_server.ledger.ledger import Ledger

log = logging.getLogger(__name__)

DEADLINE_SLACK_SECONDS = 0.05
"""The caller's reset can be faster than our timer: 3 ms were seen."""
WATCH_SECONDS = 1.0
OPERATION_KEY = "lading-operation"
CONNECT = "/lading.v1.AgentLink/Connect"
CUT_OFF = "the server stopped before the call had ended"
UNWRITABLE = (errors.LedgerUnavailable, errors.LedgerOverloaded)
"""Then the log takes no record of the failure either."""

NO_HANDLER: Any = grpc.unary_unary_rpc_method_handler(lambda *_: None)
CODES = {code.value[0]: code for code in grpc.StatusCode}


def code_of(code: Any) -> Code:
    """The code that a handler set, as grpc gives it back: a number or a StatusCode."""
    return Code(code if isinstance(code, int) else code.value[0])


class Identifier(Protocol):
    """Finds out who calls, and never refuses."""

    async def identify(self, call: Call, metadata: Sequence[tuple[str, str | bytes]]) -> None: ...

    def permissions(self, call: Call) -> frozenset[str]:
        """What the caller of an open stream may do by now."""
        ...


class Audit(grpc.aio.ServerInterceptor):
    """The one interceptor that grpc knows of: it runs access and validation inside itself, in this order."""

    def __init__(
        self,
        ledger: Ledger,
        identity: Identifier,
        known: dict[str, Method],
        clock: Clock = now,
        bucket: Bucket | None = None,
    ) -> None:
        """`bucket`: of the streams of agents that may begin."""
        self._bucket = bucket or Bucket()
        self._ledger, self._identity, self._methods, self._clock = ledger, identity, known, clock
        self._flood = Flood(ledger.record)
        self._arrears = Arrears(ledger, "ends of streams", append_missing, lambda _: None)
        self._served: dict[str, Any] = {}
        self._streams: dict[asyncio.Task[Any], tuple[Call, Method]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._active: set[asyncio.Task[Any]] = set()
        self._leaving = self._stopping = False

    def stop_in(self, seconds: float) -> None:
        """The server stops: what is cut off after so many seconds is so by us, not by its caller. What has no end of
        its own is cut off now."""

        def stop() -> None:
            self._stopping = True
            self._arrears.give_up()

        asyncio.get_running_loop().call_later(seconds, stop)
        self._leaving = True
        self._look()

    async def drained(self) -> None:
        """Wait until the calls that a stop cut off have left their records."""
        while waiting := self._active | self._background:
            await asyncio.wait(waiting)
        await self._flood.drained()
        await self._arrears.drained()

    async def watch(self) -> None:
        """For ever: end the open streams whose callers may not call any more: a token ended or revoked, a role lost."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._look()

    def _look(self) -> None:
        for task, (call, method) in list(self._streams.items()):
            needed = method.rule.permission
            if call.refused is not None:
                continue
            if needed and needed not in self._identity.permissions(call):
                call.refused = errors.Unauthenticated("the token ended or was revoked, or a role was taken away")
                task.cancel()
            elif call.endless and self._leaving:
                call.refused = errors.Stopping()
                task.cancel()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Serve the call through the log. Runs in the call's own task, which is how calls whose handler never gets to
        run (cut off first) are seen."""
        call = Call(new_id(), details.method, self._clock())
        calls.enter(call)
        task = asyncio.current_task()
        assert task is not None
        self._active.add(task)
        task.add_done_callback(functools.partial(self._ended, call))
        served = self._served.get(details.method)
        if served is not None:
            return served
        try:
            handler = await continuation(details)
        except Exception:
            log.exception("no handler for %s", details.method)
            handler = None
        method = self._methods.get(details.method)
        if handler is None or method is None:
            return grpc.stream_stream_rpc_method_handler(self._refuse_unknown)
        served = self._served[details.method] = self._wrap(handler, method)  # known methods only: bounded
        return served

    def _wrap(self, handler: Any, method: Method) -> Any:
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        streams = handler.request_streaming or handler.response_streaming

        async def serve(_messages: Any, real: Any) -> Any:
            if streams:
                return await self._serve_stream(behaviour, handler, method, real)
            return await self._serve_unary(behaviour, handler, method, real)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(serve)
        return grpc.stream_unary_rpc_method_handler(serve)

    async def _serve_unary(self, behaviour: Any, handler: Any, method: Method, real: Any) -> bytes:
        call = calls.current()
        context = Context(real, method, handler)
        try:
            await self._identify(call, real)
            request = await self._read_request(call, context, method)
            access.check(call, method)
            validation.check(method.checks, request)
            once = repeats.once_of(self._ledger, call, method, request)
            serving = behaviour(request, context)
            reply = await serving if once is None else await once.serve(serving)
            raw: bytes
            if isinstance(reply, Change):
                raw = await self._commit(call, method, context, handler, reply, once)
            else:
                raw = handler.response_serializer(reply)
                code = real.code()
                if code in (None, 0, grpc.StatusCode.OK):
                    await self._record(call, method, context, Code.OK, "", answered=True)
                else:
                    raise Ending(code_of(code), real.details())
            real.set_trailing_metadata(((OPERATION_KEY, call.operation),))
            return raw
        except BaseException as failure:
            await self._fail(call, method, context, failure)

    async def _serve_stream(self, behaviour: Any, handler: Any, method: Method, real: Any) -> Any:
        call = calls.current()
        context = Context(real, method, handler)
        reply = None
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._identify(call, real)
            request: Any = None
            if handler.request_streaming:
                access.check(call, method)
                self._admit(call, method)
                request = context.messages()
            else:
                request = await self._read_request(call, context, method)
                access.check(call, method)
                validation.check(method.checks, request)
            await self._begin(call, method, context)
            self._streams[task] = (call, method)
            try:
                if inspect.isasyncgenfunction(behaviour):
                    async with contextlib.aclosing(behaviour(request, context)) as replies:
                        async for message in replies:
                            await context.write(message)
                else:
                    reply = await behaviour(request, context)
            finally:
                self._streams.pop(task, None)  # it has ended: nobody cuts off its record and its answer
            raw = handler.response_serializer(reply) if reply is not None else b""
            code = real.code()
            if code not in (None, 0, grpc.StatusCode.OK):
                raise Ending(code_of(code), real.details())
            await self._record(call, method, context, Code.OK, "", answered=not handler.response_streaming)
            real.set_trailing_metadata(((OPERATION_KEY, call.operation),))
            return raw if not handler.response_streaming else None
        except BaseException as failure:
            if call.refused is not None and call.started and isinstance(failure, asyncio.CancelledError):
                task.uncancel()  # ended by `_look`, not by the caller
                failure = call.refused
            await self._fail(call, method, context, failure)

    async def _begin(self, call: Call, method: Method, context: Context) -> None:
        """Record that a stream has begun; what came to disk after its caller was refused has an end all the same."""

        def end(_indexes: list[int]) -> None:
            failure = errors.LedgerUnavailable()
            code, at = failure.code, self._clock()
            made = event_of(call, method, Stage.COMPLETED, Outcome.FAILURE, int(code), failure.message, at, (0, 0))
            self._arrears.add(made.organization, replace(made, follows=True))

        call.started = True  # also when the caller goes away while it is being committed
        began = event_of(call, method, Stage.STARTED, Outcome.PENDING, 0, "", self._clock())
        try:
            await self._ledger.record([began], late=end)
        except errors.Error:
            call.started = False
            raise

    def _admit(self, call: Call, method: Method) -> None:
        """Shed an agent's stream before it costs anything. Raises ConnectsShed, with the turn that it is given."""
        if method.path == CONNECT:
            wait = self._bucket.take(f"{call.organization}/{call.actor.id}")
            if wait is not None:
                raise errors.ConnectsShed(retry_after=wait)

    async def _refuse_unknown(self, _messages: Any, real: Any) -> None:
        call = calls.current()
        context = Context(real, methods.UNKNOWN, NO_HANDLER)
        try:
            await self._identify(call, real)
            raise errors.UnknownMethod
        except BaseException as failure:
            await self._fail(call, methods.UNKNOWN, context, failure)

    async def _identify(self, call: Call, real: Any) -> None:
        call.peer = real.peer()
        metadata = real.invocation_metadata()
        for key, value in metadata:
            if key == "user-agent":
                call.user_agent = str(value)[:256]
            elif key == "x-request-id":
                call.request_id = str(value)[:128]
            elif key == "traceparent":
                call.trace_id = str(value)[3:35]
            elif key == "x-forwarded-for":
                call.claimed_address = str(value)[:128]
        await self._identity.identify(call, metadata)

    async def _read_request(self, call: Call, context: Context, method: Method) -> Any:
        request = await context.read()
        if request is EOF:
            raise errors.MissingRequest
        method.describe(call, request, context.size)
        return request

    async def _commit(
        self, call: Call, method: Method, context: Context, handler: Any, change: Change[Any], once: Once | None
    ) -> bytes:
        serialize = handler.response_serializer

        def apply(transaction: Any) -> bytes:
            raw: bytes = (once.apply if once is not None else apply_change)(transaction, change, serialize)
            counts = context.count(True)
            transaction.append(event_of(call, method, Stage.COMPLETED, Outcome.SUCCESS, 0, "", self._clock(), counts))
            return raw

        then = change.then or (lambda: None)
        became: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        committing = self._ledger.commit(
            (call.organization, *change.organizations), apply, late=lambda _raw: then(), gone=became.set_result
        )
        committing.add_done_callback(lambda done: None if done.cancelled() or done.exception() else then())
        # Once it is with the ledger it may commit, even if the caller goes away: then that is its one record.
        call.recorded = True
        try:
            return await committing
        except BaseException:
            if committing.cancelled():
                self._spawn(self._follow(call, method, context, became, then))
            else:
                call.recorded = committing.exception() is None
            raise

    async def _follow(
        self,
        call: Call,
        method: Method,
        context: Context,
        became: "asyncio.Future[Exception | None]",
        then: Callable[[], None],
    ) -> None:
        """The caller of a change has gone away: do what is to follow, or record how the change failed, for its record
        went with it. Where the log cannot be written, nothing was done."""
        failure = await became
        if failure is None:
            then()
        elif not isinstance(failure, UNWRITABLE):
            code, message, _ = self._said(call, failure)
            await self._record(call, method, context, code, message)

    async def _fail(self, call: Call, method: Method, context: Context, failure: BaseException) -> NoReturn:
        """Record how the call really ended, then end it so."""
        if isinstance(failure, AbortError):
            raise failure
        if isinstance(failure, GeneratorExit | KeyboardInterrupt | SystemExit):
            raise failure
        if isinstance(failure, asyncio.CancelledError) and asyncio.current_task().cancelling():  # type: ignore[union-attr]
            # By grpc: the caller cancelled, its deadline passed, its connection is lost, or the server stops.
            left = context.time_remaining()
            if self._stopping:
                code, message = Code.UNAVAILABLE, CUT_OFF
            elif left is not None and left <= DEADLINE_SLACK_SECONDS:
                code, message = Code.DEADLINE_EXCEEDED, ""
            else:
                code, message = Code.CANCELLED, ""
            if not call.recorded:
                with contextlib.suppress(errors.Error):
                    await self._record(call, method, context, code, message)
            raise failure
        if isinstance(failure, Ending):
            code, message = failure.code, failure.message
            answer = None
        else:
            code, message, answer = self._said(call, failure)
        if not isinstance(failure, UNWRITABLE) or (call.started and not call.recorded):
            try:
                await self._record(call, method, context, code, message)
            except errors.Error as unrecorded:
                answer = status.status_of(unrecorded, call.operation)
                code = Code(answer.code)
        trailing: list[tuple[str, str | bytes]] = [(OPERATION_KEY, call.operation)]
        if answer is not None:
            message = answer.message
            trailing.append((status.DETAILS_KEY, answer.SerializeToString()))
        if isinstance(failure, errors.AgentOffline) or code == Code.CANCELLED:
            trailing.append(status.NO_RETRY)
        call.recorded = True
        await context._real.abort(CODES[int(code)], message, tuple(trailing))
        raise AssertionError("abort raises")

    def _said(self, call: Call, failure: BaseException) -> tuple[Code, str, Any]:
        """What is recorded of a failure, code and words, and what its caller is told."""
        answer = status.status_of(failure, call.operation)
        if isinstance(failure, errors.Error):
            return Code(answer.code), answer.message, answer
        log.error("%s failed, operation %s", call.method, call.operation, exc_info=failure)
        return Code(answer.code), f"{type(failure).__name__} (internal)", answer

    async def _record(
        self, call: Call, method: Method, context: Context, code: Code, error: str, *, answered: bool = False
    ) -> None:
        outcome, counts = OUTCOMES.get(code, Outcome.FAILURE), context.count(answered)
        event = event_of(call, method, Stage.COMPLETED, outcome, int(code), error, self._clock(), counts)
        call.recorded = True
        if call.started:
            await self._record_end(event)
        elif call.actor.type == ActorType.ANONYMOUS or outcome == Outcome.DENIED:
            address = call.peer.rpartition(":")[0] or call.peer
            await self._flood.record(f"{address} {call.actor.id}", event)
        elif code == Code.RESOURCE_EXHAUSTED:
            await self._flood.record(call.organization, event)
        else:
            await self._ledger.record([event])

    async def _record_end(self, event: Event) -> None:
        """Of a stream that began: each has an end of its own, as soon as the log can be written, also when its caller
        goes away meanwhile."""

        def look(failure: BaseException | None) -> None:
            if isinstance(failure, UNWRITABLE):
                self._arrears.add(event.organization, event)

        try:
            recording = asyncio.ensure_future(self._ledger.record([event], gone=look))
        except UNWRITABLE as failure:
            look(failure)
            raise
        recording.add_done_callback(lambda done: None if done.cancelled() else look(done.exception()))
        await recording

    def _ended(self, call: Call, task: asyncio.Task[Any]) -> None:
        """The net: a call whose task ended without a record leaves one all the same."""
        self._active.discard(task)
        if call.recorded:
            return
        method = self._methods.get(call.method, methods.UNKNOWN)
        context = Context(None, method, NO_HANDLER)
        code = Code.UNAVAILABLE if self._stopping else Code.CANCELLED
        self._spawn(self._record(call, method, context, code, "cut off before it was served"))

    def _spawn(self, recording: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(recording)
        self._background.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a call that was cut off could not be recorded: %s", task.exception())
