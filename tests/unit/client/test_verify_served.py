"""What else a server can give that is not its log: other tiles, erasures that nobody made, events it cannot read."""

from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.v1 import audit_log_pb2 as pb
from lading_client.errors import DataLoss, OutOfRange, Unavailable
from lading_client.verify.broken import Broken
from lading_client.verify.served_log import Result, read_tiles, verify_log
from lading_client.verify.served_tiles import TileCheck
from lading_server.tree import hash_leaf
from tests.unit.client.made_log import MadeLog, erase

LARGE = MadeLog(700)


def check(log: MadeLog, first: int = 0) -> Result:
    return verify_log(log.client, None, organization="acme", first=first)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 255, 256, 257, 512, 700]), st.integers(0, 699), st.data())
def test_tile_with_another_hash_is_named(size: int, first: int, data: st.DataObject) -> None:
    first %= size
    log = MadeLog()
    log.events = LARGE.events[:size]
    log.build()
    level, number = data.draw(st.sampled_from(sorted(log.tiles)))
    at = data.draw(st.integers(0, len(log.tiles[level, number]) - 1))
    hashes = log.tiles[level, number]
    hashes[at] = bytes([hashes[at][0] ^ 1]) + hashes[at][1:]
    found = TileCheck(partial(read_tiles, log.client), size, first)
    for event in log.events[first:]:
        found.take(hash_leaf(event.entry))
    found.finish()
    index = (number * 256 + at) << 8 * level
    if index < -(-first // 256) * 256:
        assert found.broken is None, "what begins before the first event is not read"
    else:
        assert found.broken is not None
        assert (found.broken.index, f"tile/{level}/" in found.broken.what) == (index, True)


def test_tiles_that_are_those_of_the_events_pass() -> None:
    for first in (0, 1, 256, 300, 600):
        assert check(LARGE, first).check.size == 700


class WithoutTile(MadeLog):
    """Does not have what it should."""

    def ReadTiles(self, request: pb.ReadTilesRequest) -> Iterator[pb.ReadTilesResponse]:
        for answer in super().ReadTiles(request):
            if (answer.tile.level, answer.tile.index) == (0, 1):
                raise OutOfRange("tile 1 of level 0 does not have 256 hashes yet")
            yield answer


def test_tile_that_is_missing_is_named() -> None:
    with pytest.raises(Broken, match="tile/0/001 does not hold") as found:
        check(WithoutTile(700))
    assert found.value.index == 256


class Unreadable(MadeLog):
    """Cannot read one event, and with it none of those it would have sent together."""

    damaged = 0

    def ExportEvents(self, request: pb.ExportEventsRequest) -> Iterator[pb.ExportEventsResponse]:
        for answer in super().ExportEvents(request):
            if any(event.index == self.damaged for event in answer.events):
                raise DataLoss("it is damaged")
            yield answer


@pytest.mark.parametrize("damaged", [0, 1, 199, 255, 650, 699])
def test_event_that_the_server_cannot_read_is_named(damaged: int) -> None:
    log = Unreadable(700)
    log.damaged = damaged
    with pytest.raises(Broken, match="cannot read it") as found:
        check(log)
    assert found.value.index == damaged


def test_erasure_that_the_log_has_no_event_of_is_named() -> None:
    log = MadeLog(20)
    erase(log.events[7])
    with pytest.raises(Broken, match="no event of their erasure") as found:
        check(log)
    assert (found.value.index, found.value.event) == (7, log.events[7].id)


def test_erasure_of_more_events_than_were_recorded_is_named() -> None:
    log = MadeLog(20)
    log.erase(3, 4)
    assert check(log).check.erased == 2
    erase(log.events[9])
    log.events[9].erasure.CopyFrom(log.events[3].erasure)
    with pytest.raises(Broken, match="no event of their erasure"):
        check(log)


def test_erasure_with_another_reason_actor_or_time_is_named() -> None:
    for field, value in (("actor", "eve"), ("reason", "because")):
        log = MadeLog(20)
        log.erase(3)
        setattr(log.events[3].erasure, field, value)
        with pytest.raises(Broken, match="no event of their erasure"):
            check(log)
    log.events[3].erasure.erased_at.nanos += 1000
    with pytest.raises(Broken, match="no event of their erasure"):
        check(log)


def test_erasure_that_was_erased_itself_still_explains() -> None:
    log = MadeLog(20)
    record = log.erase(3)
    log.erase(record.index)
    assert check(log).check.erased == 2


class Meanwhile(MadeLog):
    """Erases an event while its log is read."""

    def GetCheckpoint(self, request: pb.GetCheckpointRequest) -> pb.GetCheckpointResponse:
        answer = super().GetCheckpoint(request)
        if not any(event.HasField("erasure") for event in self.events):
            self.erase(3)
        return answer


def test_what_is_erased_while_it_is_verified_breaks_nothing() -> None:
    result = check(Meanwhile(300))
    assert (result.checkpoint.size, result.check.size, result.check.erased) == (300, 301, 1)


def test_details_of_an_event_that_was_erased_are_not_believed() -> None:
    for field, value in (("reason", "x"), ("error", "x"), ("peer", "x"), ("method", "/m"), ("messages_in", 4)):
        log = MadeLog(5)
        log.erase(2)
        setattr(log.events[2], field, value)
        with pytest.raises(Broken, match=f"`{field}`") as found:
            check(log)
        assert found.value.index == 2


class WentBack(MadeLog):
    """Refuses its own log."""

    def GetCheckpoint(self, request: pb.GetCheckpointRequest) -> pb.GetCheckpointResponse:
        raise Unavailable("the log of acme has 3 entries and does not extend the 5 that were signed", "ROLLED_BACK")


def test_log_that_the_server_itself_refuses_is_broken() -> None:
    with pytest.raises(Broken, match="does not extend the 5") as found:
        check(WentBack(3))
    assert found.value.part == "checkpoint"
