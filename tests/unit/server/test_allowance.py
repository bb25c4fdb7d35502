"""How much an agent may put into the log of its own accord."""

from lading_server.allowance import BURST, PER_SECOND, TELL_SECONDS, Allowance


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_was_missed_goes_in_at_once_and_then_so_much_a_second() -> None:
    clock = Clock()
    made = Allowance(clock)
    assert made.room(BURST + 7) == BURST
    made.spend("drift", BURST, 7)
    assert made.room(1) == 0
    clock.now += 2.0
    assert made.room(1_000) == 2 * PER_SECOND
    clock.now += 10 * BURST
    assert made.room(2 * BURST) == BURST, "it saves up no more than that"


def test_room_that_was_not_used_is_there_still() -> None:
    made = Allowance(Clock())
    assert made.room(5) == made.room(5) == 5, "the log could not be written: the frame is taken again"


def test_what_was_left_out_is_told_a_minute_after_the_first_of_it() -> None:
    clock = Clock()
    made = Allowance(clock)
    assert not made.due
    made.spend("drift", 0, 3)
    clock.now += TELL_SECONDS - 1
    made.spend("stale_frame", 0, 2)
    assert not made.due
    clock.now += 1
    assert made.due
    assert made.left_out == {"drift": 3, "stale_frame": 2}
    made.left_out.clear()
    assert not made.due
