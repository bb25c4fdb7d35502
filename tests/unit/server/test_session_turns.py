"""Frames leave whole and in their order: those with proofs in that of their turns, whoever comes first."""

import asyncio
from typing import Any

import pytest

from lading.v1 import agent_link_pb2
from lading_server import errors
from lading_server.sessions import Session


class Stream:
    """Keeps what is written; `full` until it is read."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.room = asyncio.Event()
        self.room.set()

    async def write(self, frame: agent_link_pb2.ConnectResponse) -> None:
        await self.room.wait()
        if frame.cancel.command == "broken":
            raise errors.CallerGone
        self.written.append(frame.cancel.command)


def session_on(stream: Stream) -> Session:
    task = asyncio.current_task()
    assert task is not None
    return Session("acme", "dock-1", 1, stream.write, task)


def show(session: Session, name: str | None, turn: int) -> "asyncio.Task[None]":
    return asyncio.ensure_future(session.show(None if name is None else frame_of(name), turn))


def frame_of(name: str) -> Any:
    return agent_link_pb2.ConnectResponse(cancel=agent_link_pb2.Cancel(command=name))


async def test_frames_wait_for_their_turns() -> None:
    stream = Stream()
    session = session_on(stream)
    late = [show(session, f"{turn}", turn) for turn in (3, 1, 2)]
    await asyncio.sleep(0)
    assert stream.written == []
    await asyncio.gather(show(session, "0", 0), *late)
    assert stream.written == ["0", "1", "2", "3"]


async def test_turn_without_a_frame_is_passed_on() -> None:
    stream = Stream()
    session = session_on(stream)
    await asyncio.gather(show(session, "2", 2), show(session, None, 1), show(session, "0", 0))
    assert stream.written == ["0", "2"]


async def test_next_turn_begins_when_the_frame_before_has_left() -> None:
    stream = Stream()
    session = session_on(stream)
    stream.room.clear()
    both = [show(session, "0", 0), show(session, "1", 1)]
    await asyncio.sleep(0)
    assert session.turn == 0
    stream.room.set()
    await asyncio.gather(*both)
    assert stream.written == ["0", "1"]


async def test_frame_that_cannot_be_written_keeps_nobody_waiting() -> None:
    stream = Stream()
    session = session_on(stream)
    following = show(session, "1", 1)
    with pytest.raises(errors.AgentOffline):
        await show(session, "broken", 0)
    await following
    assert stream.written == ["1"]


async def test_nobody_waits_for_a_turn_once_the_stream_is_over() -> None:
    stream = Stream()
    session = session_on(stream)
    waiting = show(session, "1", 1)  # turn 0 was given to a frame that nobody sends any more
    await asyncio.sleep(0)
    session.close()
    for late in (waiting, show(session, "2", 2)):
        with pytest.raises(errors.AgentOffline):
            await late
    assert (stream.written, session.turns) == ([], {})


async def test_frame_whose_sender_stops_waiting_is_sent_all_the_same() -> None:
    """One that was cut off left its number out, and its agent took the session for broken."""
    stream = Stream()
    session = session_on(stream)
    stream.room.clear()
    posting = asyncio.ensure_future(session.post(frame_of("0")))
    await asyncio.sleep(0)
    following = asyncio.ensure_future(session.send(frame_of("1")))
    await asyncio.sleep(0)
    posting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await posting
    stream.room.set()
    await following
    assert stream.written == ["0", "1"]
