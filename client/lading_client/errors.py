"""How a call can fail.

LadingError
├── InvalidArgument        the request is malformed
│   └── OutOfRange
├── NotFound
├── AlreadyExists
├── PermissionDenied
├── Unauthenticated
├── Unavailable            the server, the agent or the audit log cannot be reached
├── DeadlineExceeded       the time limit passed; a command may still finish
├── Conflict
│   ├── FailedPrecondition the thing is not in the state that the call needs
│   └── Aborted
├── ResourceExhausted
├── Cancelled
├── Unimplemented
├── Internal               the server failed
└── DataLoss

A code that has no class is a LadingError itself: UNKNOWN.

Each class has the gRPC code it stands for and the exit code of the command line. What the server says beyond its
message (google.rpc.Status with BadRequest, ErrorInfo and RetryInfo) is in the attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import grpc
    from google.rpc.status_pb2 import Status


@dataclass(eq=False)
class LadingError(Exception):
    """The call failed.

    `reason` and `metadata` are those of ErrorInfo, `retry_after` is in seconds, `fields` says what is wrong with
    which field of the request, `operation` is the id under which the audit log has the call.
    """

    code: ClassVar[str] = "UNKNOWN"
    exit_code: ClassVar[int] = 1

    message: str = ""
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    fields: tuple[tuple[str, str], ...] = ()
    operation: str = ""

    def __str__(self) -> str:
        return self.message or type(self).__doc__ or self.code

    @property
    def command(self) -> str:
        """`commands/{uuid}` of the command that the call became; empty when there is none."""
        return self.metadata.get("command", "")


class InvalidArgument(LadingError):
    """The request is malformed."""

    code = "INVALID_ARGUMENT"
    exit_code = 2


class OutOfRange(InvalidArgument):
    """There is nothing there."""

    code = "OUT_OF_RANGE"


class NotFound(LadingError):
    """There is no such thing."""

    code = "NOT_FOUND"
    exit_code = 4


class AlreadyExists(LadingError):
    """There is one already."""

    code = "ALREADY_EXISTS"
    exit_code = 9


class PermissionDenied(LadingError):
    """Your roles do not allow this."""

    code = "PERMISSION_DENIED"
    exit_code = 5


class Unauthenticated(LadingError):
    """The token is missing, wrong or expired."""

    code = "UNAUTHENTICATED"
    exit_code = 6


class Unavailable(LadingError):
    """The server cannot be reached."""

    code = "UNAVAILABLE"
    exit_code = 7


class DeadlineExceeded(LadingError):
    """The time limit passed; the command may still finish."""

    code = "DEADLINE_EXCEEDED"
    exit_code = 8


class Conflict(LadingError):
    """The state of things does not allow this."""

    exit_code = 9


class FailedPrecondition(Conflict):
    """It is not in the state that this needs."""

    code = "FAILED_PRECONDITION"


class Aborted(Conflict):
    """Something else happened at the same time."""

    code = "ABORTED"


class ResourceExhausted(LadingError):
    """A limit is reached."""

    code = "RESOURCE_EXHAUSTED"


class Cancelled(LadingError):
    """The call was cancelled."""

    code = "CANCELLED"


class Unimplemented(LadingError):
    """The server does not know this call: it is older than this client."""

    code = "UNIMPLEMENTED"


class Internal(LadingError):
    """The server failed."""

    code = "INTERNAL"


class DataLoss(LadingError):
    """What was stored is not whole."""

    code = "DATA_LOSS"
    exit_code = 10


BY_CODE: Mapping[str, type[LadingError]] = {
    error.code: error
    for error in (
        InvalidArgument,
        OutOfRange,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        Unauthenticated,
        Unavailable,
        DeadlineExceeded,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        Cancelled,
        Unimplemented,
        Internal,
        DataLoss,
    )
}

TLS_SIGNS = ("SSL", "TLS", "handshake", "certificate", "CERTIFICATE")


def from_code(code: str, message: str, **more: object) -> LadingError:
    """The error for the name of a gRPC code."""
    return BY_CODE.get(code, LadingError)(message, **more)  # type: ignore[arg-type]


def from_call(failure: grpc.RpcError) -> LadingError:
    """The error that a failed call stands for; blocking and asyncio calls alike."""
    call: grpc.Call = failure  # type: ignore[assignment]  # grpcio raises calls; typeshed does not say so
    code = call.code().name
    message = call.details() or ""
    trailing = {str(key): value for key, value in call.trailing_metadata() or ()}
    operation = str(trailing.get("lading-operation", ""))
    status = _status(trailing.get("grpc-status-details-bin"))
    if status is None:
        if code == "UNAVAILABLE" and any(sign in message for sign in TLS_SIGNS):
            message = f"{message} (is its certificate signed by the given CA? plaintext is spoken on loopback only)"
        return from_code(code, message, operation=operation)
    return _with_details(code, status, operation)


def _status(value: object) -> Status | None:
    if not isinstance(value, bytes):
        return None
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status

    try:
        return Status.FromString(value)
    except DecodeError:
        return None


def _with_details(code: str, status: Status, operation: str) -> LadingError:
    from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

    info, retry, bad = ErrorInfo(), RetryInfo(), BadRequest()
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return from_code(
        code,
        status.message,
        reason=info.reason,
        metadata=dict(info.metadata),
        retry_after=retry_after,
        fields=tuple((violation.field, violation.description) for violation in bad.field_violations),
        operation=operation,
    )
