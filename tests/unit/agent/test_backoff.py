import random

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from lading_agent.backoff import CEILING, FLOOR, Backoff
from lading_agent.session import read_ending


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


@pytest.mark.parametrize(("seconds", "wait"), [(3, 3.0), (0, None), (-1, None)])
def test_a_server_that_asks_for_no_wait_leaves_it_to_the_agent(seconds: int, wait: float | None) -> None:
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=Duration(seconds=seconds)))
    status = Status(code=8, details=[detail]).SerializeToString()
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status))
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailing)
    assert read_ending(error, lived=False).wait == wait
