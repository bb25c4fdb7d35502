"""Who is signed in: the person's own token, in a cookie that no script can read. It is kept nowhere else."""

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, datetime

import streamlit as st

COOKIE = "lading_session"


@dataclass(frozen=True)
class Session:
    """A token, with what it says of itself. The viewer shows these claims; whether they hold, the server decides."""

    token: str
    subject: str
    email: str
    organization: str
    expires_at: datetime

    def ended(self, now: datetime) -> bool:
        return now >= self.expires_at


def read(token: str) -> Session | None:
    """The session of a JWT; None when it is not one or names no end."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        expires_at = datetime.fromtimestamp(float(claims["exp"]), UTC)
        subject, email, organization = (str(claims.get(name) or "") for name in ("sub", "email", "org"))
        return Session(token, subject, email, organization, expires_at)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, OSError, AttributeError, binascii.Error):
        return None


def cookie() -> str:
    """The token that the browser sent when this page connected; empty without one."""
    return st.context.cookies.get(COOKIE, "")


def current() -> Session | None:
    """The session of this page, also one that has ended."""
    return read(cookie())
