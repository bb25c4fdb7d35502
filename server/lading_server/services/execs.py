"""Exec sessions: a command whose bytes flow to its caller while it runs."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from grpc.aio import EOF

from lading.v1 import commands_pb2, containers_pb2
from lading_server import call as calls
from lading_server import errors, fingerprints, names
from lading_server.call import Call
from lading_server.clock import new_id
from lading_server.commands import State
from lading_server.dispatch import Dispatcher
from lading_server.errors import Code
from lading_server.orders import Order
from lading_server.relay import Relay, first_of
from lading_server.services.openings import Openings, piece_of
from lading_server.services.resources import within
from lading_server.store.commands import Row

DELIVER_SECONDS = 60
EXECUTE_SECONDS = 3600
EXECUTE_SECONDS_MAX = 86_400
INPUT_BYTES_MAX = 64 * 1024
SIZE_MAX = 10_000
RETRY_SECONDS = 0.5
LAST_PIECES_SECONDS = 10.0
"""Its end is known, and its last bytes may still be on their way."""

Response = containers_pb2.ExecContainerResponse


class Execs:
    """Serves ExecContainer. `record_bytes`: so much of what a program writes goes into the record."""

    def __init__(self, dispatcher: Dispatcher, openings: Openings, record_bytes: int = 0) -> None:
        self._dispatcher, self._openings, self._record_bytes = dispatcher, openings, record_bytes
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, context: Any) -> AsyncGenerator[Response, None]:
        """One session, from its first message to its exit code."""
        call = calls.current()
        first = await context.open()
        if first.WhichOneof("frame") != "start":
            raise errors.InvalidArgument("start: must be the first message", violations={"start": "must be set"})
        start = first.start
        target, agent = names.target_of("container", start.name)
        call.targets, call.agent, call.reason = (target,), agent, start.reason
        call.details["request"] = call.details["request"].get("start", call.details["request"])
        order = order_of(start, self._record_bytes)
        name = names.command_name(order.id)
        async with self._openings.session(call, agent, order.id) as relay:
            ended = False
            feeding: asyncio.Task[None] | None = None
            try:
                row = await self._dispatcher.create(call, order)
                if row.id != order.id:
                    known = names.command_name(row.id)
                    raise errors.AlreadyExists(
                        f"{known} began under this request_id: what it writes is not given twice",
                        metadata={"command": known},
                    )
                yield Response(command=name)
                feeding = asyncio.create_task(self._feed(relay, context))
                settling = asyncio.create_task(self._end_of(call.organization, order.id))
                try:
                    async with contextlib.aclosing(self._follow(relay, settling, name)) as pieces:
                        async for piece in pieces:
                            yield Response(output=containers_pb2.StreamContainerLogsResponse(**piece_of(piece)))
                    row = await settling
                    ended = True
                finally:
                    settling.cancel()
                yield Response(exit_code=exit_code_of(row))
            finally:
                if feeding is not None:
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)
                if not ended:
                    self._call_off(call, order.id, relay)

    async def _end_of(self, organization: str, command: str) -> Row:
        """The command at its end. A database that does not answer ends no session."""
        while True:
            try:
                return await self._dispatcher.wait(organization, command, None)
            except (errors.StoreUnavailable, errors.Overloaded):
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, relay: Relay, settling: "asyncio.Task[Row]", name: str) -> AsyncGenerator[Any, None]:
        """What the program writes, until its agent says that nothing more comes, or the command has ended without."""
        try:
            while not settling.done():
                taking = asyncio.ensure_future(relay.take())
                if await first_of(taking, asyncio.shield(settling)) == 0:
                    if (piece := taking.result()) is None:
                        return
                    yield piece
            if relay.attached.is_set():
                with contextlib.suppress(TimeoutError):
                    while (piece := await _take(relay, LAST_PIECES_SECONDS)) is not None:
                        yield piece
        except errors.Error as failure:
            if settling.done():
                return  # the command's own end says it better
            failure.metadata = {**failure.metadata, "command": name}
            raise

    async def _feed(self, relay: Relay, context: Any) -> None:
        """Bring what the caller sends to the agent; a message that is wrong ends the session."""
        try:
            while (message := await context.read()) is not EOF:
                await pass_on(message, relay)
            relay.end_input()
        except errors.Error as failure:
            relay.finish(failure)

    def _call_off(self, call: Call, command: str, relay: Relay) -> None:
        """Its caller is gone. An agent that has it open is told by its stream; else the command is cancelled."""
        if not relay.attached.is_set():
            task = asyncio.get_running_loop().create_task(self._cancel(call, command))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _cancel(self, call: Call, command: str) -> None:
        with contextlib.suppress(errors.Error):
            await self._dispatcher.cancel(call, command)


async def _take(relay: Relay, seconds: float) -> Any:
    """The next piece of a relay. Raises TimeoutError. Not by `wait_for`, which in Python 3.11 loses a cancellation."""
    async with asyncio.timeout(seconds):
        return await relay.take()


async def pass_on(message: Any, relay: Relay) -> None:
    """One message of the caller. Raises InvalidArgument."""
    kind = message.WhichOneof("frame")
    if kind == "input":
        if len(message.input) > INPUT_BYTES_MAX:
            words = f"must have at most {INPUT_BYTES_MAX} bytes"
            raise errors.InvalidArgument(f"input: {words}", violations={"input": words})
        await relay.give(message.input)
    elif kind == "input_end":
        relay.end_input()
    elif kind == "resize":
        if not (0 <= message.resize.rows <= SIZE_MAX and 0 <= message.resize.columns <= SIZE_MAX):
            words = f"must be 0 to {SIZE_MAX} lines and columns"
            raise errors.InvalidArgument(f"resize: {words}", violations={"resize": words})
        relay.resize(message.resize)
    elif kind == "start":
        raise errors.InvalidArgument("start: is for the first message only", violations={"start": "was set before"})


def order_of(start: containers_pb2.ExecStart, record_bytes: int) -> Order:
    """What the first message asks for. Raises InvalidArgument."""
    agent, container = names.container_of(start.name)
    arguments, shown = commands_pb2.Arguments(exec=start.spec), commands_pb2.Arguments(exec=start.spec)
    arguments.exec.record_bytes = record_bytes
    for key in start.spec.env:
        shown.exec.env[key] = "[redacted]"
    shown.exec.record_bytes = record_bytes
    return Order(
        agent=agent,
        container=container,
        verb=commands_pb2.VERB_EXEC,
        action="container.exec",
        arguments=arguments.SerializeToString(deterministic=True),
        arguments_shown=shown.SerializeToString(deterministic=True),
        precondition=start.precondition.SerializeToString(deterministic=True),
        deliver_within=DELIVER_SECONDS * 1_000_000,
        execute_within=within(start, "execute_within", EXECUTE_SECONDS, EXECUTE_SECONDS_MAX),
        reason=start.reason,
        request_id=start.request_id,
        detach=False,
        fields=fingerprints.fields_of(start, without=("name", "request_id")),
        id=new_id(),
    )


def exit_code_of(row: Row) -> int:
    """The exit code of a session that went to its end. Raises CommandFailed."""
    if row.state == State.SUCCEEDED:
        return row.exit_code or 0
    metadata = {"command": names.command_name(row.id)}
    if row.exit_code:
        metadata["exit_code"] = str(row.exit_code)
    code = Code(row.code) if row.code else Code.UNKNOWN
    raise errors.CommandFailed(row.error or State(row.state).name, code=code, metadata=metadata)
