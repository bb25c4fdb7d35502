"""How failures are told to callers."""

from typing import Any

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lading_server import errors
from lading_server.interceptors.status import status_of

OPERATION = "01990000-0000-7000-8000-000000000001"


def detail(status: status_pb2.Status, kind: Any) -> Any:
    found = kind()
    assert any(one.Unpack(found) for one in status.details), f"no {kind.__name__}"
    return found


def every_error(of: type[errors.Error] = errors.Error) -> list[type[errors.Error]]:
    return [of, *(deeper for kind in of.__subclasses__() for deeper in every_error(kind))]


def test_unknown_exception_is_internal_and_its_text_stays_here() -> None:
    status = status_of(RuntimeError("password=hunter2 at line 3"), OPERATION)
    assert status.code == code_pb2.INTERNAL
    assert "hunter2" not in str(status)
    assert OPERATION in status.message


def test_details_say_reason_metadata_fields_and_when_to_try_again() -> None:
    failure = errors.Overloaded("busy", metadata={"a": "b"}, violations={"size": "must be less"}, retry_after=1.5)
    status = status_of(failure, OPERATION)
    assert (status.code, status.message) == (code_pb2.RESOURCE_EXHAUSTED, "busy")
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("lading", "OVERLOADED")
    assert dict(info.metadata) == {"a": "b", "operation": OPERATION}
    (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == ("size", "must be less")
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_a_sentence_and_a_reason(kind: type[errors.Error]) -> None:
    status = status_of(kind(), OPERATION)
    assert status.code == kind.code != code_pb2.OK
    assert status.message
    reason = detail(status, error_details_pb2.ErrorInfo).reason
    assert reason.isupper()
    assert reason.replace("_", "").isalpha()


def test_codes_are_those_of_google_rpc() -> None:
    assert {code.name: code.value for code in errors.Code} == dict(code_pb2.Code.items())
