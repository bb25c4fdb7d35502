"""The tail behind Live."""

from datetime import datetime

import grpc

from lading_viewer.live import Tail
from lading_viewer.moments import clock
from lading_viewer.reading import Reader
from lading_viewer.view import View
from tests.process import wait_until
from tests.unit.viewer import audit_server
from tests.unit.viewer.audit_server import Log, event


def open_tail(log: Log, now: datetime) -> Tail:
    view = View(now, clock(False, None), text="target:dock-1/web")
    tail = Tail(Reader(audit_server.token()), view)
    wait_until(lambda: ("TailEvents" in [name for name, _ in log.calls]) or tail.growth.ended, "the tail is open")
    return tail


def test_tail_sees_what_belongs_to_the_view(log: Log, now: datetime) -> None:
    tail = open_tail(log, now)
    assert tail.growth.seen  # what came while it was opened is looked for once
    tail.growth.seen = False
    log.append(event(1, now, target="dock-2/other"))
    log.append(event(2, now, "container.list"))
    log.append(event(3, now))
    wait_until(lambda: tail.growth.seen, "the event is seen")
    assert not tail.growth.ended


def test_tail_fits_the_view_at_another_time_but_no_other_search(log: Log, now: datetime) -> None:
    tail = open_tail(log, now)
    assert tail.fits(View(now.replace(year=2031), clock(False, None), text="target:dock-1/web", span="7d"))
    assert not tail.fits(View(now, clock(False, None), text="target:dock-1/api"))


def test_tail_ends_when_nobody_has_it_any_more(log: Log, now: datetime) -> None:
    tail = open_tail(log, now)
    growth = tail.growth
    assert not growth.ended
    del tail
    wait_until(lambda: growth.ended, "the tail has ended")


def test_tail_that_the_server_refuses_has_ended(log: Log, now: datetime) -> None:
    log.fails["TailEvents"] = grpc.StatusCode.UNAVAILABLE
    tail = open_tail(log, now)
    wait_until(lambda: tail.growth.ended, "the tail has ended")
