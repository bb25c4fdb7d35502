import random

from lading_agent.backoff import CEILING, FLOOR, Backoff


def test_waits_are_spread_below_a_bound_that_doubles_to_its_ceiling() -> None:
    backoff = Backoff(random.Random(7))
    for failures in range(200):
        assert 0 <= backoff.next() <= min(CEILING, FLOOR * 2**failures)


def test_waits_reach_the_ceiling() -> None:
    backoff = Backoff(random.Random(7), failures=50)
    assert max(backoff.next() for _ in range(200)) > CEILING * 0.9


def test_reset_begins_again_at_the_floor() -> None:
    backoff = Backoff(random.Random(7), failures=50)
    backoff.reset()
    assert backoff.next() <= FLOOR


def test_slow_waits_are_never_short() -> None:
    backoff = Backoff(random.Random(7))
    assert min(backoff.slow() for _ in range(200)) >= CEILING / 2
