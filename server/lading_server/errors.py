"""What can go wrong, as callers see it. The docstring is the message, the class attribute the status code."""

from collections.abc import Mapping
from enum import IntEnum


class Code(IntEnum):
    """gRPC status codes (the numbers of google.rpc.Code), for files that must not import grpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Error(Exception):
    """The server failed."""

    code = Code.INTERNAL
    reason = ""
    """For ErrorInfo.reason; empty: the class name in UPPER_SNAKE."""

    def __init__(
        self,
        message: str = "",
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        code: Code | None = None,
    ) -> None:
        """`metadata` goes into ErrorInfo, `violations` (field to sentence) into BadRequest, `retry_after` (seconds)
        into RetryInfo."""
        self.message = message or (type(self).__doc__ or "").splitlines()[0]
        super().__init__(self.message)
        self.metadata = dict(metadata or {})
        self.violations = dict(violations or {})
        self.retry_after = retry_after
        if code is not None:
            self.code = code


class InvalidArgument(Error):
    """The request is not valid."""

    code = Code.INVALID_ARGUMENT


class MalformedRequest(InvalidArgument):
    """The request cannot be parsed: send it as the protos of lading.v1 say."""


class MissingRequest(InvalidArgument):
    """The call ended without a request message: send one."""


class InvalidPageToken(InvalidArgument):
    """The page token is not one that this method gave for this filter: start again without it."""


class NotFound(Error):
    """There is no such thing in your organization."""

    code = Code.NOT_FOUND


class OutOfRange(Error):
    """The log does not go that far."""

    code = Code.OUT_OF_RANGE


class UnknownMethod(Error):
    """The server has no such method: check the client's version against the server's."""

    code = Code.UNIMPLEMENTED


class AlreadyExists(Error):
    """It exists already."""

    code = Code.ALREADY_EXISTS


class Unauthenticated(Error):
    """No valid token: send `authorization: Bearer TOKEN`, made with `lading token create`."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(Error):
    """Your roles do not allow this."""

    code = Code.PERMISSION_DENIED


class FailedPrecondition(Error):
    """The state does not allow this."""

    code = Code.FAILED_PRECONDITION


class NotRunning(FailedPrecondition):
    """The rollout does not run."""


class Aborted(Error):
    """Somebody else was faster: read again and repeat."""

    code = Code.ABORTED


class Superseded(Aborted):
    """A newer session of this agent took over."""


class MessageTooLarge(Error):
    """The message is larger than the server accepts."""

    code = Code.RESOURCE_EXHAUSTED


class Overloaded(Error):
    """The server has more to do than it can take: try again."""

    code = Code.RESOURCE_EXHAUSTED


class LedgerOverloaded(Overloaded):
    """Too many calls wait for the audit log: try again."""

    reason = "OVERLOADED"


class LedgerUnavailable(Error):
    """The audit log cannot be written now, so nothing was done: try again."""

    code = Code.UNAVAILABLE


class StoreUnavailable(Error):
    """The database cannot be read now: try again."""

    code = Code.UNAVAILABLE


class Damaged(Error):
    """What is stored is damaged: `lading audit verify` says where."""

    code = Code.DATA_LOSS


class AgentOffline(Error):
    """The agent is not connected."""

    code = Code.UNAVAILABLE


class Stopping(Error):
    """The server is stopping: connect again."""

    code = Code.UNAVAILABLE


class ConnectsShed(Error):
    """More agents connect at once than the server takes: come again when told."""

    code = Code.RESOURCE_EXHAUSTED


class AgentCloned(FailedPrecondition):
    """Two processes use this agent's name at once: its sessions are refused until an operator lifts this."""


class CallerGone(Error):
    """The caller has gone away."""

    code = Code.CANCELLED


class DeadlineExceeded(Error):
    """The time ran out; the command goes on."""

    code = Code.DEADLINE_EXCEEDED


class CommandFailed(Error):
    """The command failed."""


def already_used(request_id: str, by: str, differing: list[str], **metadata: str) -> AlreadyExists:
    """The error for other content under an idempotency key that was used, `by` a command or an operation."""
    return AlreadyExists(
        f"request_id {request_id} was used for another call, {by}; what differs: {', '.join(differing)}. "
        "Choose a new one",
        metadata={**metadata, "differs": ",".join(differing)},
    )
