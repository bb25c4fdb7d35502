"""The audit log: search, time, counts, the table, and the drawer of one event.

The script runs anew at each click. It reads and draws the table first, then what is counted, then the rest.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from lading.v1.audit_log_pb2 import ListEventsResponse, SummarizeEventsResponse
from lading_client import labels
from lading_client.errors import LadingError, PermissionDenied
from lading_viewer import (
    account,
    badge,
    components,
    connection,
    event_drawer,
    export,
    facets,
    failures,
    histogram,
    live,
    words,
)
from lading_viewer.moments import SPANS, Clock, Window, clock, moment
from lading_viewer.reading import Reader
from lading_viewer.session import Session
from lading_viewer.view import DEFAULT_SPAN, View

PATIENCE_S = 0.3
SKELETON_HEIGHT = 8 * 29  # pixels: eight rows
READERS = ThreadPoolExecutor(16, "reader")
COLUMNS = ["Timestamp", "User", "Action", "Target", "Reason", "Status"]
PLACEHOLDER = "user:ana*  action:container.stop  -status:SUCCESS  target:dock-fra*  INC-527"
LONGER = {"1h": "Search 1 hour", "24h": "Search 24 hours", "7d": "Search 7 days", "30d": "Search 30 days"}


@dataclass(frozen=True)
class Page:
    """What one run of the script draws."""

    session: Session
    reader: Reader
    view: View

    def act(self, what: Any) -> None:
        """What a person asked of the page: a chip, a button of a notice, a zoom. Anything else is ignored."""
        match what:
            case {"chip": str(name)} | str(name):
                act(name, self.view)
            case {
                "begin": str(begin),
                "end": str(end),
                "from": int() | float() as first,
                "to": int() | float() as last,
            }:
                drawn = Window(datetime.fromisoformat(begin), datetime.fromisoformat(end))
                go(win=str(drawn.part(first, last)))


def go(**parameters: str) -> None:
    """To another URL: the parameters are set, or removed when empty. The page of a cursor is left."""
    for name, value in ({"cur": ""} | parameters).items():
        if value:
            st.query_params[name] = value
        else:
            st.query_params.pop(name, None)


def act(name: str, view: View) -> None:
    """Buttons that change what is shown, by their names."""
    match name:
        case "reads":
            go(reads="" if view.reads else "1")
        case "window":
            go(win="")
        case "newest":
            go()
        case "clear":
            st.session_state["q"] = ""
            go(win="")
        case "wider":
            st.session_state["range"] = view.wider()
            go(win="")


def show(session: Session) -> None:
    """Draw the page for a person whose session has not ended."""
    live.begin_run(datetime.now(UTC))
    integrity, corner = _header()
    controls = st.empty()
    with controls.container():
        view = _search()
    page = Page(session, Reader(session.token), view)
    overview, results = st.container(), st.container()
    try:
        with results:
            events = _read(page)
        if view.cursor and not events.previous_page_token:
            # Back at the newest page: from here on it is that one, with all that came meanwhile.
            st.query_params.pop("cur", None)
            page = replace(page, view=(view := replace(view, cursor="")))
            events = page.reader.page(view)
    except LadingError as failure:
        if isinstance(failure, PermissionDenied):
            controls.empty()
        with results:
            _failed(page, failure)
        badge.show_failed(integrity, session, failure)
        _sidebar(page, None)
        account.show(corner, session, None)
        return
    st.session_state.pop("failures", None)
    st.session_state["answered_at"] = view.now
    with results:
        _table(page, events)
    summary, trouble = _summary(page)
    with overview:
        _overview(page, summary, trouble)
    who = account.who(page.reader)
    with results:
        _footer(page, events, summary, exports=who is not None and "audit.export" in who.permissions)
        live.watch(page.reader, view, events)
    _sidebar(page, summary if events.events else None)
    account.show(corner, session, who)
    if view.event:
        event_drawer.show(page.reader, session, view, events.events)
    # Last of all: nothing waits for it.
    badge.show(integrity, session, events.events)


def _read(page: Page) -> ListEventsResponse:
    """The events. A first page that takes long shows where they will be; a later one keeps those before it."""
    if "answered_at" in st.session_state:
        return page.reader.page(page.view)
    reading = READERS.submit(page.reader.page, page.view)
    try:
        return reading.result(PATIENCE_S)
    except TimeoutError:
        slot = st.empty()
        slot.skeleton(height=SKELETON_HEIGHT)
        try:
            return reading.result()
        finally:
            slot.empty()


def _header() -> tuple[Any, Any]:
    """Title, Live, time zone; the containers for the integrity badge and the account."""
    with st.container(horizontal=True, vertical_alignment="center", key="header"):
        st.title("Audit log", anchor=False, width="stretch")
        integrity = st.container(width="content")
        st.toggle("Live", key="live", bind="query-params")
        st.segmented_control(
            "Time zone",
            ("UTC", "Local"),
            default="UTC",
            required=True,
            key="tz",
            bind="query-params",
            label_visibility="collapsed",
        )
        return integrity, st.container(width="content")


def _search() -> View:
    zones = clock(st.session_state.get("tz") == "Local", st.context.timezone)
    with st.container(horizontal=True, vertical_alignment="center", key="search"):
        st.text_input(
            "Search",
            key="q",
            live=True,
            bind="query-params",
            placeholder=PLACEHOLDER,
            label_visibility="collapsed",
            icon=":material/search:",
            on_change=go,
        )
        st.segmented_control(
            "Time range",
            tuple(SPANS),
            default=DEFAULT_SPAN,
            required=True,
            key="range",
            bind="query-params",
            label_visibility="collapsed",
            on_change=go,
            kwargs={"win": ""},
        )
        parameters = st.query_params.to_dict() | {name: st.session_state.get(name) or "" for name in ("q", "range")}
        view = View.parse(parameters, datetime.now(UTC), zones)
        _custom_range(view)
    for warning in view.query.warnings:
        st.text(f"⚠ {warning}")
    return view


def _custom_range(view: View) -> None:
    zone = view.clock.zone

    def apply() -> None:
        begins, ends = (st.session_state[name].replace(tzinfo=zone) for name in ("from_time", "to_time"))
        if begins < ends:
            go(win=str(Window(begins, ends)))

    named = "UTC" if zone is UTC else str(zone)
    with st.popover("Custom"), st.form("custom", border=False):
        for label, name, time in (
            (f"From ({named})", "from_time", view.shown.begins),
            (f"To ({named})", "to_time", view.shown.ends),
        ):
            st.datetime_input(label, time.astimezone(zone).replace(tzinfo=None), key=name, step=60, format="YYYY-MM-DD")
        st.form_submit_button("Show", on_click=apply, type="primary")


def _failed(page: Page, failure: LadingError) -> None:
    state = st.session_state
    attempt = state["failures"] = state.get("failures", -1) + 1
    answered_at = page.view.clock.full(state["answered_at"]) if "answered_at" in state else ""
    address = connection.clients().connection.address
    data = failures.notice(failure, address, page.session.organization, attempt, answered_at)
    components.notice(data, "failure", on_act=lambda: page.act(st.session_state["failure"].act))


def _table(page: Page, found: ListEventsResponse) -> None:
    if not found.events:
        _empty(page)
        return
    data = {
        "label": "Audit events",
        "columns": COLUMNS,
        "rows": [row(event, page.view.clock) for event in found.events],
        "open": page.view.event,
        "live": bool(st.session_state.get("live")),
    }

    def open_event() -> None:
        st.query_params["event"] = st.session_state["events"].open

    components.audit_table(data, "events", on_open=open_event)


def row(event: Any, zones: Clock) -> dict[str, Any]:
    """One row of `components.audit_table`."""
    time = moment(event.recorded_at)
    look, status, code = words.action(event.action), words.status(event.outcome), words.code(event)
    user, target = words.user(event.actor), labels.target(event)
    return {
        "id": event.id,
        "day": zones.date(time),
        "time": zones.time(time),
        "other_time": zones.other(time),
        "user": words.user_data(event.actor),
        "action": look.as_data(),
        "target": target,
        "reason": event.reason,
        "status": status.as_data(),
        "code": code,
        "says": f"{user} {look.word} {target} {status.word} {zones.full(time)}",
    }


def _empty(page: Page) -> None:
    view = page.view
    limits = len(view.query.terms) + (view.window is not None)
    if not limits and page.reader.is_new():
        data = _nothing(
            "No events yet.", "Start a container: `lading start AGENT/CONTAINER`. Or look at `lading demo`.", []
        )
    else:
        actions = []
        if wider := view.wider():
            actions.append({"act": "wider", "label": LONGER[wider]})
        if limits:
            actions.append({"act": "clear", "label": f"Clear {limits} {'filter' if limits == 1 else 'filters'}"})
        if not view.reads:
            actions.append({"act": "reads", "label": "Show reads"})
        if view.cursor:
            actions = [{"act": "newest", "label": "Newest events"}]
        data = _nothing("No events match.", "", actions)
    components.notice(data, "empty", on_act=lambda: page.act(st.session_state["empty"].act))


def _nothing(title: str, text: str, actions: list[dict[str, str]]) -> dict[str, Any]:
    what = {"testid": "empty-state", "tone": "info", "icon": "funnel", "lines": [], "retry_in_s": 0, "sign_in": ""}
    return what | {"title": title, "text": text, "actions": actions}


def _summary(page: Page) -> tuple[SummarizeEventsResponse, str]:
    """Counts, and a sentence when there are none because they could not be had: the rows are shown all the same."""
    try:
        return page.reader.summary(page.view), ""
    except LadingError:
        return SummarizeEventsResponse(), "Counts are unavailable."


def _overview(page: Page, summary: SummarizeEventsResponse, trouble: str) -> None:
    view = page.view
    chips = [{"act": "reads", "label": "Hide reads", "on": not view.reads, "title": "LIST, GET and other reads"}]
    if view.window:
        label = f"{view.clock.minute(view.window.begins)} – {view.clock.minute(view.window.ends)}"
        chips.append({"act": "window", "label": label, "on": True, "title": "Back to the time range"})
    if view.query.terms:
        chips.append({"act": "clear", "label": "Clear filters", "on": False, "title": "Remove search and window"})
    data = {
        "summary": trouble or (histogram.total(summary) if summary.total else ""),
        "failed": histogram.failed(summary),
        "chips": chips,
        "chart": histogram.data(summary, view.shown, view.clock),
    }
    components.overview(data, "overview", on_act=lambda: page.act(st.session_state["overview"].act))


def _footer(page: Page, found: ListEventsResponse, summary: SummarizeEventsResponse, *, exports: bool) -> None:
    if not found.events:
        return
    cursors = {"newer": found.previous_page_token, "older": found.next_page_token}
    shown = len(found.events)
    data = {
        "newer": bool(cursors["newer"] or page.view.cursor),
        "older": bool(cursors["older"]),
        "label": f"{shown} of {words.count(summary.total)}{'+' if summary.capped else ''} events"
        if summary.total >= shown
        else f"{shown} events",
        "exports": export.addresses(page.view) if exports else None,
        "why": export.WHAT if exports else "Your role does not allow exporting the audit log.",
        "link": page.view.link(),
    }

    def turn() -> None:
        go(cur=cursors[st.session_state["paging"].turn])

    components.footer(data, "paging", on_turn=turn)


def _sidebar(page: Page, summary: SummarizeEventsResponse | None) -> None:
    """The organization, and the facets when there is something to count."""

    def pick() -> None:
        picked = st.session_state["facets"].pick
        view = page.view.with_term(picked["field"], picked["value"], exclude=bool(picked["exclude"]))
        st.session_state["q"] = view.text
        go()

    try:
        groups = facets.data(page.view, page.reader.summaries(page.view, summary)) if summary else []
    except LadingError:
        groups = []
    with st.sidebar:
        data = {"organization": page.session.organization, "groups": groups}
        components.facets(data, "facets", on_pick=pick)
