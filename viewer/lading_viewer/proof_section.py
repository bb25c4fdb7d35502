"""The section "Proof and raw record" of the drawer: one event proven on its own, and what it takes to repeat it."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from lading.v1.audit_log_pb2 import Event
from lading_client.errors import LadingError
from lading_client.verify.broken import Broken
from lading_viewer import badge, connection, integrity, pinned, words
from lading_viewer.badge import Badge
from lading_viewer.moments import Clock, moment
from lading_viewer.session import Session


def data(session: Session, event: Event, clock: Clock) -> dict[str, Any]:
    """For `components.event`: a chip, rows of facts, texts to unfold, the file to download."""
    clients = connection.clients()
    try:
        proof = integrity.log_of(clients.connection, session.organization).prove(clients.of(session.token), event)
    except Broken as broken:
        return _section(badge.of_broken(broken), event, [("What is wrong", broken.what)])
    except LadingError as failure:
        return _section(badge.of_failure(failure), event)
    except pinned.Unreadable as failure:
        return _section(Badge("pending", "question", f"Not verified: {failure}"), event)
    testimony, size = proof.verified.testimony, proof.checkpoint.size
    sizes = zip(testimony.names, testimony.sizes, strict=True)
    cosigned = ", ".join(name for name, cosigned in sizes if cosigned > event.index)
    facts = [
        ("Number in the log", f"#{event.index}"),
        ("Leaf hash", proof.leaf.hex()),
        ("Checkpoint", f"#{words.count(size)}, checked {clock.full(datetime.now(UTC))}"),
        ("Cosigned by", cosigned or "no agent yet"),
    ]
    found = _section(Badge("ok", "shield", "In the log"), event, facts)
    entry = json.dumps(json.loads(proof.entry), indent=2, ensure_ascii=False)
    folds = {
        "Inclusion proof": "\n".join(one.hex() for one in proof.receipt.proof) or "(a tree of one leaf)",
        "Checkpoint note": proof.receipt.checkpoint,
        "Raw entry": entry,
    }
    if proof.details:
        folds["Raw details"] = json.dumps(json.loads(proof.details), indent=2, ensure_ascii=False)
    download = {"name": f"{event.id}.tlog-proof", "text": proof.file}
    return found | {"folds": [{"title": title, "text": text} for title, text in folds.items()], "download": download}


def states(session: Session, events: Sequence[Event]) -> dict[str, dict[str, str]]:
    """By event, whether it was found in the log, saying what is shown: tone, icon and words."""
    clients = connection.clients()
    try:
        log = integrity.log_of(clients.connection, session.organization)
        size = log.check(clients.of(session.token), events).checkpoint.size
        looks = {event.id: Badge("ok", "shield", f"In the log of {words.count(size)}") for event in events}
    except Broken as broken:
        other = Badge("pending", "question", "Not verified: the log is broken")
        looks = {event.id: badge.of_broken(broken) if event.index == broken.index else other for event in events}
    except LadingError as failure:
        looks = dict.fromkeys((event.id for event in events), badge.of_failure(failure))
    except (integrity.Unproven, pinned.Unreadable) as failure:
        looks = dict.fromkeys((event.id for event in events), Badge("pending", "question", f"Not verified: {failure}"))
    return {id: {"tone": look.tone, "icon": look.icon, "words": look.words} for id, look in looks.items()}


def recheck(session: Session, event: Event) -> None:
    """Let the next look at this event begin anew."""
    integrity.log_of(connection.clients().connection, session.organization).recheck(event.index)


def erasure(event: Event, clock: Clock) -> str:
    """`Details erased at 2026-11-21 18:47:46.146Z by ada: retention`; empty when they were not."""
    if not event.HasField("erasure"):
        return ""
    erased = event.erasure
    at = f" at {clock.full(moment(erased.erased_at))}" if erased.HasField("erased_at") else ""
    return f"Details erased{at} by {erased.actor or 'nobody named'}: {erased.reason or 'no reason given'}"


def _section(look: Badge, event: Event, facts: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    chip = {"tone": look.tone, "fill": "plain", "icon": look.icon, "word": look.words, "title": look.title}
    rows = [{"name": name, "value": value} for name, value in facts or []]
    return {"chip": chip, "rows": rows, "folds": [], "download": None}
