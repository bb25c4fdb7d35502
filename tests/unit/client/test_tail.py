import pytest

from lading.v1 import agents_pb2, audit_log_pb2
from lading_client import errors
from lading_client.agent_watch import AgentWatch
from lading_client.resumption import DELAY_MAX, SERVED
from lading_client.tail import Tail


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


def test_it_tells_once_that_the_server_is_lost_and_once_that_it_answers() -> None:
    told: list[str] = []
    tail = Tail(
        audit_log_pb2.EventFilter(),
        begun=lambda: told.append("begun"),
        lost=lambda failure: told.append(failure.code),
    )
    for _ in range(2):
        tail.request()
        for index in range(3):
            tail.take(audit_log_pb2.TailEventsResponse(next_index=index))
        for _ in range(3):
            tail.delay(errors.Unavailable())
            tail.request()
    assert told == ["begun", "UNAVAILABLE", "begun", "UNAVAILABLE"]


@pytest.mark.parametrize("failure", [errors.PermissionDenied(), errors.Unauthenticated(), errors.InvalidArgument()])
def test_what_does_not_pass_is_raised(failure: errors.LadingError) -> None:
    with pytest.raises(type(failure)):
        Tail(audit_log_pb2.EventFilter(), 0).delay(failure)


def test_a_tail_that_never_began_does_not_wait() -> None:
    with pytest.raises(errors.Unavailable):
        Tail(audit_log_pb2.EventFilter()).delay(errors.Unavailable())


def test_a_watch_of_agents_hands_on_after_a_lost_connection_only_what_changed() -> None:
    watch = AgentWatch()
    a, b = agents_pb2.Agent(name="agents/a"), agents_pb2.Agent(name="agents/b")
    changed = agents_pb2.Agent(name="agents/b", connected=True)
    watch.request()
    assert [*watch.take(a), *watch.take(b)] == [a, b]
    assert watch.delay(errors.Unavailable()) <= 0.4
    watch.request()
    assert [*watch.take(a), *watch.take(changed)] == [changed]


@pytest.mark.parametrize(
    ("failure", "seconds"), [(errors.Unavailable(reason="STOPPING"), 0.0), (errors.Unavailable(), SERVED)]
)
def test_a_watch_that_was_served_and_had_nothing_to_show_goes_on(failure: errors.LadingError, seconds: float) -> None:
    times = iter([100.0, 100.0 + seconds, 200.0, 200.0])
    watch = AgentWatch(clock=lambda: next(times))
    watch.request()
    assert watch.delay(failure) <= 0.4
    watch.request()
    assert watch.delay(errors.Unavailable()) <= 0.8


def test_a_watch_whose_first_call_fails_is_the_callers_to_know() -> None:
    times = iter([100.0, 100.0 + SERVED / 2])
    watch = AgentWatch(clock=lambda: next(times))
    watch.request()
    with pytest.raises(errors.Unavailable):
        watch.delay(errors.Unavailable())
