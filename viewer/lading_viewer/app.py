"""The page, as Streamlit runs it: anew for each click of each person. `web.py` serves it."""

from datetime import UTC, datetime
from importlib import resources

import streamlit as st

from lading_viewer import account, audit_log, components, failures, integrity_page, session
from lading_viewer.moments import clock

st.set_page_config(layout="wide", menu_items={"Get help": None, "Report a bug": None, "About": None})
st.html(f"<style>{resources.files('lading_viewer').joinpath('page.css').read_text(encoding='utf-8')}</style>")

zones = clock(st.session_state.get("tz") == "Local", st.context.timezone)
signed_in = session.current()


def show_log() -> None:
    if signed_in:
        audit_log.show(signed_in)


def show_integrity() -> None:
    if signed_in:
        integrity_page.show(signed_in)


# The paths are known to web.py too.
page = st.navigation(
    [
        st.Page(show_log, title="Audit log – Lading", default=True),
        st.Page(show_integrity, title="Integrity – Lading", url_path="integrity"),
    ],
    position="hidden",
)
# The shell of the page is only served to those who are signed in (web.py); this gate is for what connects without it.
if signed_in is None or signed_in.ended(datetime.now(UTC)):
    ended = failures.ended(signed_in.expires_at, zones) if signed_in else ""
    components.notice(failures.signed_out(ended), "gate", on_act=lambda: None)
else:
    components.session_clock(account.clock_data(signed_in, zones), "session_clock")
    page.run()
