"""The integrity badge in the header of every page: what was checked, and what was found. It says no more than that."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from lading.v1.audit_log_pb2 import Event
from lading_client.errors import (
    DeadlineExceeded,
    LadingError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from lading_client.verify.broken import Broken
from lading_viewer import components, connection, integrity, pinned, words
from lading_viewer.integrity import Verified
from lading_viewer.session import Session

PATIENCE_S = 0.3
# Not those that read the table: checks of one log wait for each other.
CHECKERS = ThreadPoolExecutor(16, "checker")
SELF_ATTESTED = "no witness yet: the record is self-attested"


@dataclass(frozen=True)
class Badge:
    """How it looks and what it says; `title` says more."""

    tone: str
    icon: str
    words: str
    title: str = ""


def show(slot: Any, session: Session, events: Sequence[Event]) -> None:
    """Check the log and the rows on the page, and say what was found; that it takes a while, when it does."""
    checking = CHECKERS.submit(check, session, events)
    try:
        found = checking.result(PATIENCE_S)
    except TimeoutError:
        slot = slot.empty()
        with slot:
            components.badge(asdict(Badge("pending", "shield", "Verifying")), "verifying")
        found = checking.result()
    with slot:
        components.badge(asdict(found), "badge")


def show_failed(slot: Any, session: Session, failure: LadingError) -> None:
    """For a page that has no rows because they could not be read."""
    if isinstance(failure, Unauthenticated | PermissionDenied):
        return
    broken = integrity.broken_of(connection.clients().connection, session.organization)
    with slot:
        components.badge(asdict(of_broken(broken) if broken else of_failure(failure)), "badge")


def check(session: Session, events: Sequence[Event]) -> Badge:
    """The badge of a page with these rows."""
    clients = connection.clients()
    try:
        log = integrity.log_of(clients.connection, session.organization)
        return of_verified(log.check(clients.of(session.token), events))
    except Broken as broken:
        return of_broken(broken)
    except LadingError as failure:
        return of_failure(failure)
    except (integrity.Unproven, pinned.Unreadable) as failure:
        return _unverified(str(failure))


def of_verified(found: Verified) -> Badge:
    """Green with witnesses, grey without."""
    names, sizes = found.testimony.names, found.testimony.sizes
    head = f"Verified to #{words.count(found.checkpoint.size)}, {time.monotonic() - found.at:.0f} s ago"
    if not names:
        return Badge("pending", "shield", f"{head}, {SELF_ATTESTED}", "The rows on this page were checked.")
    among = f"{len(names)} of {found.agents} agents" if found.agents >= len(names) else f"{len(names)} agents"
    seen = ", ".join(f"{name} to #{words.count(size)}" for name, size in zip(names, sizes, strict=True))
    title = f"The rows on this page were checked. Cosigned by {seen}."
    return Badge("ok", "shield", f"{head}, {among} as witnesses", title)


def of_broken(broken: Broken) -> Badge:
    """Red."""
    if broken.index is not None:
        return Badge("bad", "warning", f"Broken at #{words.count(broken.index)}", str(broken))
    if broken.what == integrity.SHORTER:
        return Badge("bad", "warning", broken.what)
    return Badge("bad", "warning", f"Broken: {broken.what}")


def of_failure(failure: LadingError) -> Badge:
    """Grey: nothing could be checked."""
    match failure:
        case Unavailable() | DeadlineExceeded():
            return _unverified("server unreachable", str(failure))
        case PermissionDenied():
            return _unverified("your role may not read checkpoints", str(failure))
        case Unimplemented():
            return _unverified("this server does not prove its log", str(failure))
    return _unverified("the server failed", str(failure))


def _unverified(why: str, title: str = "") -> Badge:
    return Badge("pending", "question", f"Not verified: {why}", title)
