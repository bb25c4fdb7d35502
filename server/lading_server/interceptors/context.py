"""What handlers get instead of grpc's context."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from grpc.aio import EOF

from lading_server import call as calls
from lading_server import errors
from lading_server.errors import Code
from lading_server.interceptors import validation
from lading_server.interceptors.methods import Method

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""Below core's own limit, so that what is too large is refused here, and recorded with its true status."""
HEADERS_SECONDS = 1.0
"""A caller whose connection takes no headers for this long gets no status either."""
GRACE_SECONDS = 0.005
"""read() reports a cancel, a deadline and a lost connection as a clean end, and write() as a failure of its own; the
cancellation follows within this."""


class Ending(Exception):
    """A handler ended its own call with `context.abort`."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Context:
    """What handlers get instead of grpc's context: whatever ends the call goes through the log first."""

    __slots__ = ("_messages_in", "_messages_out", "_method", "_opened", "_parse", "_real", "_serialize", "size")

    def __init__(self, real: Any, method: Method, handler: Any) -> None:
        self._real, self._method = real, method
        self._parse, self._serialize = handler.request_deserializer, handler.response_serializer
        self._messages_in = self._messages_out = self.size = 0
        self._opened = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)  # peer, time_remaining, invocation_metadata, set_code, code, …

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status."""
        if code is grpc.StatusCode.OK:
            raise ValueError("abort is for failures: grpc would leave the caller waiting")
        raise Ending(Code(code.value[0]), details)

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF. Raises MessageTooLarge, MalformedRequest."""
        raw = await self._real.read()
        if raw is EOF:
            await asyncio.sleep(GRACE_SECONDS)
            return EOF
        self._messages_in += 1
        self.size = len(raw)
        if self.size > MESSAGE_BYTES_MAX:
            raise errors.MessageTooLarge(
                f"the message has {self.size} bytes, the server takes {MESSAGE_BYTES_MAX}: send less at a time"
            )
        try:
            return self._parse(raw)
        except Exception as failure:
            raise errors.MalformedRequest from failure

    async def open(self) -> Any:
        """The first message of a stream, noted and checked as a unary call's request is. Raises InvalidArgument."""
        message = await self.read()
        if message is EOF:
            raise errors.MissingRequest
        self._method.describe(calls.current(), message, self.size)
        validation.check(self._method.checks, message)
        return message

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Send the headers, also when the call is cancelled meanwhile. Raises CallerGone.

        grpc takes headers whose sending was cancelled for not sent, sends them again with the status, and core refuses
        both: the call would never end.
        """
        sending = asyncio.ensure_future(self._real.send_initial_metadata(metadata))
        sending.add_done_callback(lambda done: None if done.cancelled() else done.exception())  # if nobody waits for it
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait((sending,), timeout=HEADERS_SECONDS)
            raise
        except Exception as failure:
            await asyncio.sleep(GRACE_SECONDS)
            raise errors.CallerGone from failure
        self._opened = True

    async def write(self, message: Any) -> None:
        """Send a message; waits while the peer does not read. Raises CallerGone."""
        raw = self._serialize(message)
        if not self._opened:
            await self.send_initial_metadata(())
        try:
            await self._real.write(raw)
        except Exception as failure:
            await asyncio.sleep(GRACE_SECONDS)
            raise errors.CallerGone from failure
        self._messages_out += 1

    async def messages(self) -> AsyncIterator[Any]:
        """The messages as they come."""
        while (message := await self.read()) is not EOF:
            yield message

    def count(self, answered: bool) -> tuple[int, int]:
        """Messages in and out."""
        return self._messages_in, self._messages_out + answered
