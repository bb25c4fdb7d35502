"""Program: `lading`, which comes to a stand at one point of a command's way, for the test to kill it there.

`python -m tests.faults.crashing POINT MARKS ARGUMENT…` runs `lading ARGUMENT…`. Each arrival at the point is a line in
the file MARKS; from then on what arrived waits for ever. Nothing else of the program is changed.
"""

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any


class Marks:
    """Who arrived."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, what: str) -> None:
        os.write(self._file, f"{what}\n".encode())


def replace(owner: Any, name: str, by: Any) -> None:
    """What is done under this name from here on; there must be something of that name."""
    getattr(owner, name)
    setattr(owner, name, by)


def stand(
    marks: Marks, owner: Any, name: str, *, after: bool = False, only: Callable[..., object] | None = None
) -> None:
    """Whoever calls this method stands still before it, or `after` it was done; `only` those calls."""
    real = getattr(owner, name)

    @functools.wraps(real)
    async def standing(*args: Any, **kwargs: Any) -> Any:
        if only is not None and not only(*args):
            return await real(*args, **kwargs)
        if after:
            await real(*args, **kwargs)
        marks.add("here")
        return await asyncio.Event().wait()

    replace(owner, name, standing)


# -- points of the agent


def not_journalled(marks: Marks) -> None:
    from lading_agent.journal import Journal

    stand(marks, Journal, "receive")


def journalled(marks: Marks) -> None:
    from lading_agent.journal import Journal
    from lading_agent.worker import Worker

    async def nothing_ahead(*_: Any) -> None:
        """As with commands in hand: then receiving and beginning are two writes."""

    replace(Worker, "_look_ahead", nothing_ahead)
    stand(marks, Journal, "begin")


def begun(marks: Marks) -> None:
    from lading_agent.runtimes.docker import DockerRuntime
    from lading_agent.worker import Worker

    stand(marks, Worker, "_perform")
    stand(marks, DockerRuntime, "start_program")


def done(marks: Marks) -> None:
    from lading_agent.journal import Journal

    stand(marks, Journal, "end")


def end_journalled(marks: Marks) -> None:
    from lading_agent.journal import Journal

    stand(marks, Journal, "end", after=True)


def end_sent(marks: Marks) -> None:
    from lading_agent.journal import Journal

    def forget(_journal: Journal, command: str) -> None:
        marks.add(command)

    replace(Journal, "receipt", forget)


# -- points of the server


def not_committed(marks: Marks) -> None:
    from lading_server import dispatch, orders

    real, create = orders.record_order, dispatch.Dispatcher.create

    def record(*args: Any) -> Any:
        real(*args)
        marks.add("here")
        threading.Event().wait()  # its statements are done, in a transaction that nobody commits

    async def ask(dispatcher: Any, call: Any, order: Any) -> Any:
        marks.add(order.request_id)
        return await create(dispatcher, call, order)

    replace(dispatch, "record_order", record)
    replace(dispatch.Dispatcher, "create", ask)


def not_sent(marks: Marks) -> None:
    from lading_server.sessions import Session

    stand(marks, Session, "show", only=lambda _session, frame, _turn: frame is not None and frame.HasField("dispatch"))


def acknowledged(marks: Marks) -> None:
    from lading_server.dispatch import Dispatcher

    stand(marks, Dispatcher, "acknowledge")


def result_come(marks: Marks) -> None:
    from lading_server.dispatch import Dispatcher

    stand(marks, Dispatcher, "settle")


def not_receipted(marks: Marks) -> None:
    from lading_server.sessions import Session

    real = Session.send

    async def send(session: Session, frame: Any) -> None:
        if frame.HasField("result_receipt"):
            marks.add(frame.result_receipt.command)
        else:
            await real(session, frame)

    replace(Session, "send", send)


POINTS = {
    point.__name__: point
    for point in (
        *(not_journalled, journalled, begun, done, end_journalled, end_sent),
        *(not_committed, not_sent, acknowledged, result_come, not_receipted),
    )
}


def main(point: str, marks: str, *arguments: str) -> None:
    from lading_client.cli import main as lading

    POINTS[point](Marks(marks))
    sys.argv = ["lading", *arguments]
    lading()


if __name__ == "__main__":
    main(*sys.argv[1:])
