"""The bucket of connects, and the slots of a drain: nobody comes sooner than the server takes them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lading_server.admission import LATER_SECONDS, SPREAD_SECONDS_MAX, Bucket, slot
from lading_server.sessions import HEARTBEATS_PER_SECOND, heartbeat_of


class Hand:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_burst_is_let_in_and_the_rest_is_given_turns_one_after_another() -> None:
    bucket = Bucket(100.0, 10, Hand())
    assert [bucket.take() for _ in range(10)] == [None] * 10
    turns = [bucket.take() for _ in range(300)]
    assert turns[0] == LATER_SECONDS
    gaps = {round(after - before, 6) for before, after in pairwise(turns)}  # type: ignore[operator]
    assert gaps == {0.01}


def test_those_who_keep_their_turn_are_let_in() -> None:
    hand = Hand()
    bucket = Bucket(50.0, 5, hand)
    for _ in range(5):
        bucket.take()
    turns = [hand.now + (bucket.take() or 0.0) for _ in range(200)]
    for turn in turns:
        hand.now = turn
        assert bucket.take() is None


@given(st.lists(st.floats(0, 3), max_size=200))
def test_no_span_of_time_sees_more_than_burst_and_rate(waits: list[float]) -> None:
    hand = Hand()
    bucket = Bucket(20.0, 8, hand)
    began, admitted = hand.now, 0
    for wait in waits:
        hand.now += wait
        after = bucket.take()
        admitted += after is None
        assert after is None or LATER_SECONDS <= after <= SPREAD_SECONDS_MAX + 1
        assert admitted <= 8 + 20.0 * (hand.now - began) + 1


def test_slots_of_a_drain_spread_a_fleet() -> None:
    slots = [slot(rank, 200.0) for rank in range(10_000)]
    assert slots == sorted(slots)
    assert max(sum(1 for one in slots if second <= one < second + 1) for second in range(60)) <= 201
    assert slots[-1] < 60


@given(st.integers(0, 200_000))
def test_heartbeats_of_a_process_stay_below_their_rate(agents: int) -> None:
    assert agents / heartbeat_of(agents) <= HEARTBEATS_PER_SECOND * 1.0001
