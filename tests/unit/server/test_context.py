"""What handlers get instead of grpc's context."""

import asyncio
from typing import Any

import grpc
import pytest

from lading_server import errors
from lading_server.errors import Code
from lading_server.interceptors import methods
from lading_server.interceptors.audit import NO_HANDLER
from lading_server.interceptors.context import Context, Ending


class Broken:
    """grpc's context of a call whose connection has broken: the cancellation of its task follows."""

    def __init__(self, task: "asyncio.Task[Any] | None" = None) -> None:
        self.task = task

    async def send_initial_metadata(self, _metadata: Any) -> None:
        pass

    async def write(self, _raw: bytes) -> None:
        if self.task is not None:
            asyncio.get_running_loop().call_soon(self.task.cancel)
        raise RuntimeError("Failed grpc_call_start_batch")


def context(real: Any) -> Context:
    made = Context(real, methods.UNKNOWN, NO_HANDLER)
    made._serialize = lambda message: message
    return made


async def test_write_to_a_caller_that_is_gone_is_the_cancellation_of_the_call() -> None:
    with pytest.raises(asyncio.CancelledError):
        await context(Broken(asyncio.current_task())).write(b"")
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


async def test_write_from_another_task_says_that_the_caller_is_gone() -> None:
    with pytest.raises(errors.CallerGone) as failure:
        await context(Broken()).write(b"")
    assert failure.value.code is Code.CANCELLED


async def test_abort_ends_the_call_with_its_status_and_never_with_ok() -> None:
    with pytest.raises(Ending) as ending:
        await context(None).abort(grpc.StatusCode.ABORTED, "somebody was faster")
    assert (ending.value.code, ending.value.message) == (Code.ABORTED, "somebody was faster")
    with pytest.raises(ValueError, match="for failures"):
        await context(None).abort(grpc.StatusCode.OK)
