import pytest

from lading.v1 import audit_log_pb2
from lading_client import errors
from lading_client.tail import DELAY_MAX, Tail


def test_it_goes_on_behind_what_was_taken() -> None:
    tail = Tail(audit_log_pb2.EventFilter())
    assert not tail.request().HasField("from_index")
    tail.take(audit_log_pb2.TailEventsResponse(next_index=42))
    assert tail.request().from_index == 42


def test_it_waits_longer_after_each_failure_and_no_less_than_asked() -> None:
    tail = Tail(audit_log_pb2.EventFilter(), 0)
    for _ in range(50):
        assert 0 <= tail.delay(errors.Unavailable()) <= DELAY_MAX
    assert tail.delay(errors.ResourceExhausted(retry_after=60)) == 60
    tail.take(audit_log_pb2.TailEventsResponse(next_index=1))
    assert tail.delay(errors.Unavailable()) <= 0.4


@pytest.mark.parametrize("failure", [errors.PermissionDenied(), errors.Unauthenticated(), errors.InvalidArgument()])
def test_what_does_not_pass_is_raised(failure: errors.LadingError) -> None:
    with pytest.raises(type(failure)):
        Tail(audit_log_pb2.EventFilter(), 0).delay(failure)


def test_a_tail_that_never_began_does_not_wait() -> None:
    with pytest.raises(errors.Unavailable):
        Tail(audit_log_pb2.EventFilter()).delay(errors.Unavailable())
