"""Where a reader of a log stands: cut anywhere, what was handed on is the log."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.v1 import containers_pb2
from lading_client import errors
from lading_client.log_reader import PATIENCE, LogReader
from lading_client.resumption import SERVED

Piece = containers_pb2.StreamContainerLogsResponse
LOST = errors.Unavailable("connection reset")


def asked(**what: object) -> containers_pb2.StreamContainerLogsRequest:
    return containers_pb2.StreamContainerLogsRequest(name="agents/a/containers/web", **what)  # type: ignore[arg-type]


def serve(log: list[tuple[bytes, bool]], request: containers_pb2.StreamContainerLogsRequest) -> Iterator[Piece]:
    """As a server does: pieces behind a position, of which some have one."""
    for number, (data, positioned) in enumerate(log[int(request.after or 0) :], int(request.after or 0) + 1):
        yield Piece(data=data, position=str(number) if positioned else "")


@given(
    log=st.lists(st.tuples(st.binary(min_size=1, max_size=5), st.booleans()), min_size=1, max_size=20),
    cuts=st.lists(st.integers(min_value=1, max_value=10), max_size=10),
)
def test_a_log_read_over_many_connections_is_the_log(log: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    reader, got = LogReader(asked(follow=True)), b""
    for pieces in (*cuts, len(log)):
        for _, answer in zip(range(pieces), serve(log, reader.request()), strict=False):
            if (piece := reader.take(answer)) is not None:
                assert piece.offset == len(got)
                got += piece.data
        assert reader.delay(LOST) >= 0
    assert got == b"".join(data for data, _ in log)


def test_a_first_call_that_fails_is_the_callers_to_know() -> None:
    reader = LogReader(asked(follow=True))
    reader.request()
    with pytest.raises(errors.Unavailable):
        reader.delay(LOST)


@pytest.mark.parametrize(
    ("failure", "seconds"), [(errors.Unavailable(reason="STOPPING"), 0.0), (LOST, SERVED)], ids=["stopping", "lost"]
)
@pytest.mark.parametrize("follow", [True, False])
def test_a_followed_log_that_is_empty_so_far_goes_on_from_its_start(
    failure: errors.LadingError, seconds: float, follow: bool
) -> None:
    times = iter([100.0, 100.0 + seconds, 200.0])
    reader = LogReader(asked(follow=follow, tail=3), clock=lambda: next(times))
    first = reader.request()
    if not follow:
        with pytest.raises(errors.Unavailable):
            reader.delay(failure)
        return
    assert reader.delay(failure) <= 0.4
    assert reader.request() == first
    assert reader.delay(LOST) <= 0.8, "the server is still away"
    assert reader.take(Piece(data=b"one", position="1")) == Piece(data=b"one", position="1")


def test_what_cannot_pass_by_itself_is_not_tried_again() -> None:
    reader = LogReader(asked(follow=True))
    reader.take(Piece(data=b"one", position="1"))
    with pytest.raises(errors.OutOfRange):
        reader.delay(errors.OutOfRange("rotated"))


def test_last_lines_without_a_position_are_not_asked_for_again() -> None:
    reader = LogReader(asked(follow=True, tail=3))
    reader.take(Piece(data=b"one"))
    with pytest.raises(errors.Unavailable):
        reader.delay(LOST)


@pytest.mark.parametrize("follow", [True, False])
def test_only_a_log_that_is_followed_is_tried_for_ever(follow: bool) -> None:
    times = iter([0.0, 0.0, PATIENCE + 1])
    reader = LogReader(asked(follow=follow), clock=lambda: next(times), chance=random.Random(1))
    reader.take(Piece(data=b"one", position="1"))
    assert reader.delay(LOST) <= 0.4
    if follow:
        assert reader.delay(LOST) <= 10
    else:
        with pytest.raises(errors.Unavailable):
            reader.delay(LOST)
