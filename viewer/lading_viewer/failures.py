"""What is shown when the server did not give what was asked: a sentence, and what can be done."""

from datetime import datetime
from typing import Any

from lading_client.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LadingError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from lading_viewer.moments import Clock

RETRIES_S = (2, 5, 10, 30)


def notice(failure: LadingError, address: str, organization: str, attempt: int, last_success: str) -> dict[str, Any]:
    """For `components.notice`. `attempt` counts the failures in a row, from 0; `last_success` is empty or a time."""
    retry_in_s = RETRIES_S[min(attempt, len(RETRIES_S) - 1)]
    match failure:
        case Unauthenticated():
            return signed_out("Your session is over. Sign in again to continue; this page's link is kept.")
        case PermissionDenied():
            whom = f"Ask an administrator of {organization}."
            return _notice("error-denied", "", "barred", f"Your role does not allow reading the audit log. {whom}")
        case Unavailable():
            lines = [f"Server: {address}", *([f"Last answer: {last_success}"] if last_success else [])]
            text = (
                "Nothing is shown because nothing could be read. Auditing on the server is not affected by this viewer."
            )
            title = "The control plane cannot be reached."
            return _notice("error-down", "bad", "warning", title, text, lines, retry=True, retry_in_s=retry_in_s)
        case DeadlineExceeded():
            text = "Narrow the time range to go faster."
            return _notice("error-slow", "", "clock", "The server is still reading.", text, retry=True)
        case ResourceExhausted():
            wait = int(failure.retry_after or retry_in_s) + 1
            title = "The server answers no more calls of yours for a moment."
            return _notice("error-limited", "", "clock", title, lines=[str(failure)], retry=True, retry_in_s=wait)
        case InvalidArgument():
            lines = [str(failure), *(f"{field}: {problem}" for field, problem in failure.fields)]
            title = "The server does not understand this search or link."
            data = _notice("error-invalid", "", "funnel", title, lines=lines)
            data["actions"] = [{"act": "newest", "label": "Newest events"}, {"act": "clear", "label": "Clear filters"}]
            return data
        case _:
            return _notice("error-failed", "bad", "cross", "The server failed.", lines=[str(failure)], retry=True)


def ended(session_ended_at: datetime, clock: Clock) -> str:
    """The banner of a session whose time is over."""
    time = clock.time(session_ended_at)
    return f"Your session ended at {time[:5]}{time[12:]}. Sign in again to continue; this page's link is kept."


def signed_out(ended: str = "") -> dict[str, Any]:
    """In place of the page for those who are not, or no longer, signed in."""
    testid = "error-expired" if ended else "error-signed-out"
    data = _notice(testid, "", "clock", ended or "You are not signed in. Nothing was loaded.")
    return data | {"sign_in": "Sign in"}


def _notice(
    testid: str,
    tone: str,
    icon: str,
    title: str,
    text: str = "",
    lines: list[str] | None = None,
    *,
    retry: bool = False,
    retry_in_s: int = 0,
) -> dict[str, Any]:
    return {
        "testid": testid,
        "tone": tone,
        "icon": icon,
        "title": title,
        "text": text,
        "lines": lines or [],
        "actions": [{"act": "retry", "label": "Try again"}] if retry else [],
        "retry_in_s": retry_in_s,
        "sign_in": "",
    }
