"""The bucket of connects, and the slots of a drain: nobody comes sooner than the server takes them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lading_server.admission import LATE_SECONDS, LATER_SECONDS, SPREAD_SECONDS_MAX, Bucket, slot
from lading_server.sessions import HEARTBEATS_PER_SECOND, heartbeat_of


class Hand:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def take_all(bucket: Bucket, count: int, prefix: str = "agent") -> list[float | None]:
    return [bucket.take(f"{prefix}-{number}") for number in range(count)]


def test_burst_is_let_in_and_the_rest_is_given_turns_one_after_another() -> None:
    bucket = Bucket(100.0, 10, Hand())
    assert take_all(bucket, 10, "first") == [None] * 10
    turns = take_all(bucket, 300)
    assert turns[0] is not None
    assert LATER_SECONDS <= turns[0] <= LATER_SECONDS + 0.01
    gaps = {round(after - before, 6) for before, after in pairwise(turns)}  # type: ignore[operator]
    assert gaps == {0.01}


def test_those_who_keep_their_turn_are_let_in_whoever_comes_in_between() -> None:
    hand = Hand()
    bucket = Bucket(50.0, 5, hand)
    take_all(bucket, 5, "first")
    turns = {f"agent-{number}": hand.now + (bucket.take(f"agent-{number}") or 0.0) for number in range(200)}
    for number, (agent, turn) in enumerate(turns.items()):
        hand.now = turn
        assert bucket.take(f"stranger-{number}") is not None
        assert bucket.take(agent) is None


def test_who_asks_again_too_soon_keeps_its_turn_and_moves_nobody() -> None:
    hand = Hand()
    bucket = Bucket(10.0, 1, hand)
    take_all(bucket, 1, "first")
    turn = hand.now + (bucket.take("eager") or 0.0)
    other = hand.now + (bucket.take("patient") or 0.0)
    for _ in range(50):
        wait = bucket.take("eager")
        assert wait is not None
        assert hand.now + wait >= turn
    assert other - turn < 0.11
    hand.now = other
    assert bucket.take("patient") is None


def test_turn_that_is_not_used_is_lost_and_its_agent_given_another() -> None:
    hand = Hand()
    bucket = Bucket(10.0, 1, hand)
    take_all(bucket, 1, "first")
    turns = take_all(bucket, 30)
    hand.now += (turns[-1] or 0.0) + LATE_SECONDS + 0.01
    again = take_all(bucket, 30)
    assert again.count(None) == 1, "a burst of one: those who are late do not come all at once"
    assert not [wait for wait in again if wait is not None and wait < LATER_SECONDS]


def test_nobody_is_told_to_come_later_than_so_long() -> None:
    bucket = Bucket(1.0, 1, Hand())
    turns = take_all(bucket, 2 * int(SPREAD_SECONDS_MAX))
    assert max(turn or 0.0 for turn in turns) == SPREAD_SECONDS_MAX
    assert len(bucket._turns) <= SPREAD_SECONDS_MAX


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30)), max_size=200))
def test_no_span_of_time_sees_more_than_burst_and_rate(comings: list[tuple[float, int]]) -> None:
    hand = Hand()
    bucket = Bucket(20.0, 8, hand)
    began, admitted = hand.now, 0
    for wait, agent in comings:
        hand.now += wait
        after = bucket.take(str(agent))
        admitted += after is None
        assert after is None or LATER_SECONDS <= after <= SPREAD_SECONDS_MAX
        assert admitted <= 8 + 20.0 * (hand.now - began) + 1


@given(st.integers(0, 3_000), st.integers(0, 2**32))
def test_storm_is_in_within_its_size_by_the_rate(agents: int, seed: int) -> None:
    """Each comes when told, and others come all the while: all are in as soon as the rate allows."""
    hand = Hand()
    bucket = Bucket(200.0, 400, hand)
    began = hand.now
    told = sorted((hand.now + wait, agent) for agent, wait in enumerate(take_all(bucket, agents)) if wait is not None)
    for number, (at, agent) in enumerate(told):
        hand.now = max(hand.now, at + (seed >> number % 32 & 1) * 0.004)
        bucket.take(f"stranger-{number}")
        assert bucket.take(f"agent-{agent}") is None
    assert hand.now - began <= max(0.0, agents - 400) / 200.0 + LATER_SECONDS + 0.01


def test_slots_of_a_drain_spread_a_fleet() -> None:
    slots = [slot(rank, 200.0) for rank in range(10_000)]
    assert slots == sorted(slots)
    assert max(sum(1 for one in slots if second <= one < second + 1) for second in range(60)) <= 201
    assert slots[-1] < 60


@given(st.integers(0, 200_000))
def test_heartbeats_of_a_process_stay_below_their_rate(agents: int) -> None:
    assert agents / heartbeat_of(agents) <= HEARTBEATS_PER_SECOND * 1.0001
