"""How rollouts go on: a simulated fleet, and plans of every shape."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading_server.commands import State
from lading_server.rollouts import (
    Begin,
    InvalidWaves,
    Pace,
    Step,
    Tally,
    Wait,
    next_step,
    place_of,
    tally_of,
    wave_ends_of,
    wave_of,
)

WAVES = st.lists(st.integers(1, 100), max_size=5).map(lambda found: [f"{one}%" for one in sorted(found)])


@pytest.mark.parametrize(
    ("waves", "total", "ends"),
    [
        ((), 7, (7,)),
        (("1", "10%", "100%"), 1000, (1, 100, 1000)),
        (("1", "10%", "100%"), 5, (1, 5)),
        (("1", "50%"), 5, (1, 3, 5)),
        (("100%",), 1, (1,)),
        (("20",), 5, (5,)),
    ],
)
def test_waves_end_where_the_plan_says(waves: tuple[str, ...], total: int, ends: tuple[int, ...]) -> None:
    assert wave_ends_of(waves, total) == ends


@pytest.mark.parametrize("waves", [("0",), ("-1",), ("101%",), ("x",), ("1.5",), ("50%", "1"), ("",), ("1 %",)])
def test_other_waves_are_refused(waves: tuple[str, ...]) -> None:
    with pytest.raises(InvalidWaves):
        wave_ends_of(waves, 100)


@given(WAVES, st.integers(1, 500))
def test_waves_rise_to_all_targets(waves: list[str], total: int) -> None:
    ends = wave_ends_of(waves, total)
    assert list(ends) == sorted(set(ends))
    assert ends[-1] == total
    waves_of_all = [wave_of(number, ends) for number in range(total)]
    assert waves_of_all == sorted(waves_of_all)
    assert wave_of(total - 1, ends) == len(ends)


def test_each_state_of_a_command_has_its_place() -> None:
    assert {state.name: place_of(state) for state in State} == {
        "PENDING": "in_flight",
        "DISPATCHED": "in_flight",
        "ACKNOWLEDGED": "in_flight",
        "UNKNOWN": "unknown",
        "SUCCEEDED": "succeeded",
        "FAILED": "failed",
        "REJECTED": "failed",
        "CANCELLED": "failed",
        "EXPIRED": "failed",
    }
    assert (place_of(None), place_of(0)) == ("waiting", "waiting")
    assert tally_of([(5, False, 2), (5, True, 1), (6, False, 1), (7, True, 1), (4, True, 2), (0, False, 4)]) == Tally(
        4, 0, 3, 2, 2, 3
    )


@given(
    st.integers(1, 60),
    WAVES,
    st.integers(1, 10),
    st.integers(0, 60),
    st.sampled_from([0, 1000]),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_rollout_begins_each_target_once_within_its_limits(
    total: int,
    waves: list[str],
    concurrent: int,
    allowed: int,
    soak: int,
    luck: float,
    chance: random.Random,
) -> None:
    ends = wave_ends_of(waves, total)
    pace = Pace(concurrent, allowed, soak)
    states = [0] * total
    wave, wave_ended_at, now, ended = 1, None, 0, None
    for _ in range(20 * total + 100):
        tally = tally_of((state, False, 1) for state in states)
        step = next_step(tally, pace, wave, ends, wave_ended_at=wave_ended_at, now=now)
        if isinstance(step, Begin):
            assert 0 < step.count <= concurrent - tally.in_flight
            assert tally.begun + step.count <= ends[wave - 1], "no target of a later wave begins"
            assert tally.failures <= allowed, "nothing begins once the budget is spent"
            for number in range(tally.begun, tally.begun + step.count):
                states[number] = State.DISPATCHED
        elif isinstance(step, Wait):
            if step.until is not None:
                assert tally.in_flight == 0
                now = step.until
                continue
            flying = [number for number, state in enumerate(states) if state == State.DISPATCHED]
            assert flying, "a rollout that waits for nothing would wait for ever"
            bad = chance.choice([State.FAILED, State.UNKNOWN, State.EXPIRED])
            states[chance.choice(flying)] = State.SUCCEEDED if chance.random() >= luck else bad
        elif step is Step.END_WAVE:
            wave_ended_at = now
        elif step is Step.NEXT_WAVE:
            assert wave_ended_at is not None
            assert now >= wave_ended_at + soak
            wave, wave_ended_at = wave + 1, None
        else:
            ended = step
            break
    tally = tally_of((state, False, 1) for state in states)
    assert ended in (Step.BREACH, Step.SUCCEED)
    assert (ended is Step.BREACH) == (tally.failures > allowed)
    if ended is Step.SUCCEED:
        assert (tally.waiting, tally.in_flight, wave) == (0, 0, len(ends))


def test_failures_that_were_forgiven_are_no_breach() -> None:
    pace = Pace(10, 2)
    assert next_step(Tally(waiting=1, failed=3), pace, 1, (4,), wave_ended_at=None, now=0) is Step.BREACH
    seen = Tally(waiting=1, failed=3, forgiven=3)
    assert next_step(seen, pace, 1, (4,), wave_ended_at=None, now=0) == Begin(1)
