"""Live: while it is on, the page is drawn anew when the log has grown by an event that belongs to it.

One tail of the log for each page says that it has grown; only then is the log read again. (Asking every two seconds
would put a read into the log every two seconds.)
"""

import threading
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import streamlit as st

from lading.v1.audit_log_pb2 import ListEventsResponse, TailEventsResponse
from lading_client.errors import LadingError
from lading_viewer.moments import moment
from lading_viewer.reading import PAGE_SIZE, Reader
from lading_viewer.view import View

EVERY_S = 2
RETRY = timedelta(seconds=10)
IDLE_MAX = timedelta(minutes=30)


class Growth:
    """Whether a tail brought anything, and whether it has ended. Written by the thread that reads the tail."""

    def __init__(self) -> None:
        # What came while the tail was being opened is found by looking once.
        self.seen = True
        self.ended = False

    def follow(self, answers: Iterator[TailEventsResponse]) -> None:
        try:
            for answer in answers:
                self.seen = self.seen or bool(answer.events)
        except LadingError:
            pass
        finally:
            self.ended = True


class Tail:
    """A tail for one page. It ends when nobody has it any more: with Live, or with the session in the browser."""

    def __init__(self, reader: Reader, view: View) -> None:
        self.asked = view.tail_filter().SerializeToString(deterministic=True)
        self.growth = Growth()
        answers = reader.tail(view)
        weakref.finalize(self, answers.cancel)
        # The thread knows the growth, not the tail: it keeps nothing alive.
        threading.Thread(target=self.growth.follow, args=(answers,), name="tail", daemon=True).start()

    def fits(self, view: View) -> bool:
        return self.asked == view.tail_filter().SerializeToString(deterministic=True)


def begin_run(now: datetime) -> None:
    """At the start of a run, before the switch is drawn: a run that no person asked for does not count as use."""
    state = st.session_state
    if not state.pop("live_run", False):
        state["used_at"] = now
    if state.pop("live_idle", False):
        state["live"] = False
    state["live_began"] = False


def watch(reader: Reader, view: View, shown: ListEventsResponse) -> None:
    """Look out for newer events while Live is on; not while an event is open."""
    state = st.session_state
    if not state.get("live"):
        state.pop("live_tail", None)
    if not view.cursor or not state.get("live"):
        state["newest_left_at"] = view.now
    if (tail := state.get("live_tail")) and view.cursor:
        tail.growth.seen = True
    if state.get("live") and not view.event and view.open_ended:
        newest_page = shown.events and not view.cursor
        known = moment(shown.events[0].recorded_at) if newest_page else state["newest_left_at"]
        st.fragment(_look, run_every=EVERY_S)(reader, view, known)


def _look(reader: Reader, view: View, known: datetime) -> None:
    """`known`: when the last event that the person knows of was recorded."""
    state, now = st.session_state, datetime.now(UTC)
    if not state["live_began"]:
        # The run that draws the page: what there is was read a moment ago.
        state["live_began"] = True
        return
    if now - state["used_at"] > IDLE_MAX:
        state["live_idle"] = True
        st.rerun()
    count = 0
    if now >= state.get("live_retry_at", now):
        try:
            count = _count(reader, view, known)
            state.pop("live_retry_at", None)
        except LadingError:
            state["live_retry_at"] = now + RETRY
    if "live_retry_at" in state:
        wait = (state["live_retry_at"] - now).total_seconds()
        st.text(f"Live paused: the server did not answer. Retrying in {wait:.0f} s.")
    elif count and not view.cursor:
        state["live_run"] = True
        st.rerun()
    elif count:
        label = f"{count}{'+' if count == PAGE_SIZE else ''} new {'event' if count == 1 else 'events'}"
        if st.button(label, key="newest"):
            st.query_params.pop("cur", None)
            st.rerun()


def _count(reader: Reader, view: View, known: datetime) -> int:
    """New events since `known`; the log is read only when it has grown."""
    state = st.session_state
    tail = state.get("live_tail")
    if tail is None or not tail.fits(view):
        tail = state["live_tail"] = Tail(reader, view)
    if tail.growth.ended:
        del state["live_tail"]
    elif not tail.growth.seen:
        return int(state.get("live_count", 0))
    tail.growth.seen = False
    count = state["live_count"] = reader.newer_than(view, known)
    return count
