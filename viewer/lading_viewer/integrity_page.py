"""The page `/integrity`: what was checked of the log and by which key, who stands for it, what to do when it broke.

It says what the badge says, and why. It checks nothing of its own: `integrity.py` does.
"""

import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import streamlit as st

from lading_client.errors import LadingError, PermissionDenied, Unauthenticated
from lading_client.verify.broken import Broken
from lading_client.verify.pins import Pin
from lading_viewer import account, badge, components, connection, failures, integrity, pinned, words
from lading_viewer.badge import Badge
from lading_viewer.integrity import Log, Verified
from lading_viewer.moments import Clock, clock, moment
from lading_viewer.reading import Reader
from lading_viewer.session import Session

CHECKED = (
    "the signature of the newest checkpoint, by the key that this viewer pinned when it first saw this log",
    "that it extends the last checkpoint that this viewer saw: nothing before it was changed, cut off or put in",
    "the cosignatures of the agents, each of a tree that is part of this one, by the keys that were pinned",
    "each row of each page that was opened: its entry is in the tree, and says what the row shows",
)
NOT_CHECKED = (
    "Not checked here: events that nobody looked at, whether each operation has its one end, and whether the numbers "
    "of each process have no gap. The first command below does that, best on another machine, which pinned the key too."
)
KEEP = (
    "Change nothing: keep the database, the folder of the server's keys and the data of the agents as they are. What "
    "the agents hold is the evidence of what the log was."
)
REPEAT = "Repeat it from another machine: `lading audit verify --witnesses 1`. It names the first event that is wrong."
EVENT = "What it shows cannot be relied on, nor can what came after it, until this is explained."
SHORTER = (
    "If a backup was restored, events that were shown before are gone: whoever runs the server says so, with a "
    "reason, by `lading server accept-rollback`, and that stays in the log. This viewer goes on saying it: it saw them."
)
OTHER_KEY = (
    "Compare the key below with the one that whoever runs the server gives, by another way than this network. If it "
    "was replaced on purpose, remove this log from logs.json in the viewer's data folder, and start the viewer again."
)
WITNESS = "An agent was shown another log than this viewer. Its journal holds the tree that it signed; ask who runs it."
RECHECK = "If the fault was one of reading, `Check again` finds nothing wrong; until then it stays broken."


def show(session: Session) -> None:
    """Draw the page for a person whose session has not ended."""
    zones = clock(st.session_state.get("tz") == "Local", st.context.timezone)
    with st.container(horizontal=True, vertical_alignment="center", key="header"):
        st.title("Integrity", anchor=False, width="stretch")
        st.segmented_control(
            "Time zone",
            ("UTC", "Local"),
            default="UTC",
            required=True,
            key="tz",
            bind="query-params",
            label_visibility="collapsed",
        )
        corner = st.container(width="content")
    reader = Reader(session.token)
    try:
        full_check = _last_full_check(reader, zones)
    except (PermissionDenied, Unauthenticated) as failure:
        address = connection.clients().connection.address
        notice = failures.notice(failure, address, session.organization, 0, "")
        components.notice(notice, "failure", on_act=lambda: None)
        account.show(corner, session, None)
        return
    found = badge.check(session, ())
    try:
        log = integrity.log_of(connection.clients().connection, session.organization)
    except pinned.Unreadable:
        log = None
    components.integrity(data(session, log, found, zones, full_check), "integrity", lambda: _act(session, log))
    account.show(corner, session, account.who(reader))


def _act(session: Session, log: Log | None) -> None:
    """Check again. An event that was found broken stays so until it is read and proven itself."""
    if log is None or st.session_state["integrity"].act != "recheck":
        return
    try:
        if log.broken and log.broken.event:
            log.prove(connection.clients().of(session.token), Reader(session.token).event(log.broken.event))
    except (Broken, LadingError):
        return
    log.recheck(None)


def data(session: Session, log: Log | None, found: Badge, zones: Clock, full_check: str) -> dict[str, Any]:
    """For `components.integrity`."""
    connected = connection.clients().connection
    broken, verified, pin = (log.broken, log.verified, log.pin) if log else (None, None, None)
    return {
        "badge": asdict(found),
        "why": "" if broken or found.tone == "ok" else found.title,
        "broken": _broken(broken) if broken else None,
        "checked": CHECKED if verified and not broken else (),
        "not_checked": NOT_CHECKED,
        "facts": [
            {"name": name, "value": value, "copy": copy}
            for name, value, copy in _facts(session, pin, verified, zones, full_check)
            if value
        ],
        "witnesses": _witnesses(pin, verified),
        "commands": _commands(connected.address, pin),
    }


def _broken(broken: Broken) -> dict[str, Any]:
    """Where it broke, and what to do."""
    if broken.index is not None:
        where, first = f"At event #{words.count(broken.index)}: {broken.what}.", EVENT
    elif broken.what == integrity.SHORTER:
        where, first = f"{broken.what}.", SHORTER
    elif "key" in broken.what:
        where, first = f"{broken.what}.", OTHER_KEY
    elif broken.part == "witnesses":
        where, first = f"{broken.what}.", WITNESS
    else:
        where, first = f"{broken.what}.", SHORTER
    return {"where": where, "event": broken.event, "advice": [first, KEEP, REPEAT, RECHECK]}


def _facts(
    session: Session, pin: Pin | None, verified: Verified | None, zones: Clock, full_check: str
) -> list[tuple[str, str, bool]]:
    """Name, value, and whether it can be copied."""
    facts = [("Organization", session.organization, False)]
    if pin:
        facts += [
            ("Log", pin.key.partition("+")[0], False),
            ("Key of the log", pin.key, True),
            ("Key fingerprint", pin.key.split("+")[1], False),
            ("Largest tree seen", f"{words.count(pin.size)} events", False),
            ("Its root", pin.root, True),
        ]
    if verified:
        at = datetime.now(UTC) - timedelta(seconds=time.monotonic() - verified.at)
        facts.append(("Last checkpoint", f"#{words.count(verified.checkpoint.size)}, checked {zones.full(at)}", False))
    return [*facts, ("Last full check", full_check, False)]


def _witnesses(pin: Pin | None, verified: Verified | None) -> list[dict[str, str]]:
    """All that are known; those that did not cosign the newest trees too."""
    if not pin:
        return []
    testimony = verified.testimony if verified else None
    sizes = dict(zip(testimony.names, testimony.sizes, strict=True)) if testimony else {}
    found = []
    for name, key in sorted(pin.witnesses.items()):
        size, behind = "no cosignature", ""
        if name in sizes and verified:
            size, rest = f"#{words.count(sizes[name])}", verified.checkpoint.size - sizes[name]
            behind = f"{words.count(rest)} events behind" if rest > 0 else "up to the last checkpoint"
        found.append({"name": name.rpartition("/")[2], "size": size, "behind": behind, "key": key})
    return found


def _commands(address: str, pin: Pin | None) -> list[dict[str, str]]:
    key = f" --key '{pin.key}'" if pin else ""
    return [
        {"title": "The whole log", "text": f"lading audit verify --server {address}"},
        {"title": "Offline: export once", "text": f"lading audit export --server {address} --tiles log"},
        {"title": "Offline: then check anywhere", "text": f"lading audit verify --file log{key}"},
    ]


def _last_full_check(reader: Reader, zones: Clock) -> str:
    """Who read the whole log to verify it, as the log itself says; what came of it, only they know.

    Raises PermissionDenied, Unauthenticated.
    """
    try:
        event = reader.last_verification()
    except (PermissionDenied, Unauthenticated):
        raise
    except LadingError:
        return ""
    if event is None:
        return "nobody lately"
    first = int(event.request.fields["from_index"].number_value) if "from_index" in event.request.fields else 0
    whole = f"from #{words.count(first)} on" if first else "the whole log"
    return f"{zones.full(moment(event.recorded_at))} by {words.user(event.actor)}, {whole}; its outcome is with them"
