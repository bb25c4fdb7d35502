"""How a failure is told to the caller: google.rpc.Status with details, and never the text of an unknown exception."""

import re
from typing import Any

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lading_server import errors

DETAILS_KEY = "grpc-status-details-bin"
NO_RETRY = ("grpc-retry-pushback-ms", "-1")
"""Tells the channel of the caller not to send it again by itself (gRFC A6)."""


def status_of(failure: BaseException, operation: str) -> status_pb2.Status:
    """The status that a failure is answered with. `operation`: the id under which to look for it in the log."""
    if not isinstance(failure, errors.Error):
        return status_pb2.Status(
            code=code_pb2.INTERNAL, message=f"internal error; the server's log has it under operation {operation}"
        )
    status = status_pb2.Status(code=int(failure.code), message=failure.message)
    reason = failure.reason or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(failure).__name__).upper()
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=reason, domain="lading", metadata={**failure.metadata, "operation": operation}
        )
    ]
    if failure.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=field, description=sentence)
                    for field, sentence in failure.violations.items()
                ]
            )
        )
    if failure.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(failure.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        status.details.add().Pack(detail)
    return status
