"""The parts of the page that Streamlit has no widget for, as `st.components.v2` components in the real DOM.

Each is a JavaScript and a CSS file of its name beside this one; `elements.*`, what all of them share, goes before it.
They get plain data and put it on the page as text only, never as HTML: what the audit log holds was written by others.
"""

from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

import streamlit as st

if TYPE_CHECKING:
    from streamlit.components.v2.types import ComponentRenderer

Callback = Callable[[], None]


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


# Data goes in a list: of a dict Streamlit asks whether its values are tables, and loads pandas and numpy to find out.
def _component(name: str) -> "ComponentRenderer":
    return st.components.v2.component(
        f"lading_{name}",
        html="<div class='root'></div>",
        css=_file("elements.css") + _file(f"{name}.css"),
        js=_file("elements.js") + _file(f"{name}.js"),
    )


_audit_table = _component("audit_table")
_facets = _component("facets")
_overview = _component("overview")
_footer = _component("footer")
_event = _component("event")
_notice = _component("notice")
_session_clock = _component("session_clock")
_account = _component("account")
_badge = _component("badge")
_integrity = _component("integrity")


def audit_table(data: dict[str, Any], key: str, on_open: Callback) -> None:
    """The table of events. What was opened, picked or asked for is in `st.session_state[key]` when a callback runs."""
    _audit_table(data=[data], key=key, on_open_change=on_open)


def facets(data: dict[str, Any], key: str, on_pick: Callback) -> None:
    """Values of fields with their counts."""
    _facets(data=[data], key=key, on_pick_change=on_pick)


def overview(data: dict[str, Any], key: str, on_act: Callback) -> None:
    """Totals, chips of what limits the list, and the histogram with its brush."""
    _overview(data=[data], key=key, on_act_change=on_act)


def footer(data: dict[str, Any], key: str, on_turn: Callback) -> None:
    """Paging and export."""
    _footer(data=[data], key=key, on_turn_change=on_turn)


def event(data: dict[str, Any], key: str, on_act: Callback) -> None:
    """All that is known of one event."""
    _event(data=[data], key=key, on_act_change=on_act)


def notice(data: dict[str, Any], key: str, on_act: Callback) -> None:
    """A sentence in place of the table, with what can be done about it."""
    _notice(data=[data], key=key, on_act_change=on_act)


def session_clock(data: dict[str, Any], key: str) -> None:
    """Says, in the browser alone, that the session ends soon or has ended."""
    _session_clock(data=[data], key=key)


def account(data: dict[str, Any], key: str) -> None:
    """Who is signed in, and the way out."""
    _account(data=[data], key=key)


def badge(data: dict[str, Any], key: str) -> None:
    """What was checked of the log."""
    _badge(data=[data], key=key, width="content")


def integrity(data: dict[str, Any], key: str, on_act: Callback) -> None:
    """What was checked of the log, in full."""
    _integrity(data=[data], key=key, on_act_change=on_act)
