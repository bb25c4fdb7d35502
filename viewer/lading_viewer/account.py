"""Who is signed in, in the corner of every page."""

from typing import Any

import streamlit as st

from lading.v1.access_pb2 import Role, WhoAmIResponse
from lading_client.errors import LadingError
from lading_viewer import components, failures
from lading_viewer.moments import Clock
from lading_viewer.reading import Reader
from lading_viewer.session import Session


def who(reader: Reader) -> WhoAmIResponse | None:
    """None when the server does not say."""
    try:
        return reader.who()
    except LadingError:
        return None


def show(corner: Any, session: Session, known: WhoAmIResponse | None) -> None:
    """The menu with e-mail, organization, roles and Sign out."""
    roles = [Role.Name(role).removeprefix("ROLE_").lower() for role in known.roles] if known else []
    data = {
        "name": session.email or session.subject,
        "organization": session.organization,
        "roles": ", ".join(roles) or "none",
    }
    with corner, st.popover("Account", icon=":material/person:"):
        components.account(data if known else data | {"roles": "not known"}, "account")


def clock_data(session: Session, zones: Clock) -> dict[str, Any]:
    """For `components.session_clock`."""
    return {"expires_at_ms": session.expires_at.timestamp() * 1000, "ended": failures.ended(session.expires_at, zones)}
