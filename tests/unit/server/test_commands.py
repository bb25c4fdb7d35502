"""The life of a command: any order of moves leaves at most one end."""

from hypothesis import given
from hypothesis import strategies as st

from lading.v1 import commands_pb2
from lading_server.commands import BEFORE, ENDS, IN_FLIGHT, State, outcome_of
from lading_server.errors import Code
from lading_server.event import Outcome


def test_states_are_those_of_the_contract() -> None:
    named = {name.removeprefix("COMMAND_STATE_"): number for name, number in commands_pb2.CommandState.items()}
    assert {state.name: state.value for state in State} == {k: v for k, v in named.items() if v}


def test_every_state_but_the_first_can_be_reached_and_every_one_but_an_end_can_be_left() -> None:
    assert set(BEFORE) == set(State) - {State.PENDING}
    assert {before for befores in BEFORE.values() for before in befores} == set(State) - ENDS


@given(st.lists(st.sampled_from(list(BEFORE))))
def test_ranks_only_rise_and_nothing_leaves_an_end(moves: list[State]) -> None:
    state = State.PENDING
    ends = 0
    for wanted in moves:
        if state in BEFORE[wanted]:
            assert wanted > state
            assert state not in ENDS
            state = wanted
            ends += state in ENDS
    assert ends <= 1


def test_what_was_never_sent_cannot_have_been_done() -> None:
    for end in (State.SUCCEEDED, State.FAILED, State.REJECTED, State.UNKNOWN):
        assert State.PENDING not in BEFORE[end]


def test_what_was_sent_cannot_expire() -> None:
    assert BEFORE[State.EXPIRED] == {State.PENDING}


def test_outcome_is_honest_about_what_is_not_known() -> None:
    assert outcome_of(State.UNKNOWN, Code.UNKNOWN) is Outcome.UNKNOWN
    assert {outcome_of(state, Code.OK) for state in IN_FLIGHT - {State.UNKNOWN}} == {Outcome.PENDING}
    assert outcome_of(State.SUCCEEDED, Code.OK) is Outcome.SUCCESS
    assert outcome_of(State.FAILED, Code.NOT_FOUND) is Outcome.FAILURE
    assert outcome_of(State.REJECTED, Code.FAILED_PRECONDITION) is Outcome.FAILURE
    assert outcome_of(State.FAILED, Code.DEADLINE_EXCEEDED) is Outcome.DEADLINE
    assert outcome_of(State.EXPIRED, Code.DEADLINE_EXCEEDED) is Outcome.DEADLINE
    assert outcome_of(State.CANCELLED, Code.CANCELLED) is Outcome.CANCELLED
