"""What is shown for actions, outcomes, actors and codes: a word, an icon, a colour. Never a colour alone.

Tones are the colours of `.streamlit/config.toml` (ok green, bad red, denied violet, info blue, pending grey); fills are
solid, outline and plain.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from lading.v1.audit_log_pb2 import (
    ACTOR_TYPE_AGENT,
    ACTOR_TYPE_ANONYMOUS,
    ACTOR_TYPE_SERVICE,
    OUTCOME_CANCELLED,
    OUTCOME_DEADLINE,
    OUTCOME_DENIED,
    OUTCOME_FAILURE,
    OUTCOME_SUCCESS,
    OUTCOME_UNKNOWN,
    OUTCOME_UNSPECIFIED,
    Actor,
    Event,
    Outcome,
)
from lading_client import labels


@dataclass(frozen=True)
class Look:
    """How one value is drawn. `icon` is a name in elements.js."""

    word: str
    icon: str = ""
    tone: str = "pending"
    fill: str = "plain"
    title: str = ""

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


VERBS = {
    "container.start": Look("START", "play", "ok", "solid"),
    "container.stop": Look("STOP", "stop", "bad", "solid"),
    "container.kill": Look("KILL", "cross", "bad", "solid"),
    "container.remove": Look("REMOVE", "minus", "bad", "outline"),
    "container.restart": Look("RESTART", "loop", "info", "outline"),
    "container.create": Look("CREATE", "plus", "info", "outline"),
    "container.pause": Look("PAUSE", "pause", "denied", "outline"),
    "container.unpause": Look("UNPAUSE", "play", "denied", "outline"),
    "container.exec": Look("EXEC", "prompt", "info", "outline"),
    "container.drift": Look("DRIFT", "warning", "denied", "outline"),
    "image.pull": Look("PULL", "down", "info", "outline"),
    "rollout.create": Look("rollout.create", "plus", "info"),
    "rollout.run": Look("rollout.run", "waves", "info"),
    "rollout.wave": Look("rollout.wave", "waves", "info"),
    "rollout.pause": Look("rollout.pause", "pause", "denied"),
    "rollout.resume": Look("rollout.resume", "play", "denied"),
    "rollout.retry": Look("rollout.retry", "loop", "info"),
    "rollout.stop": Look("rollout.stop", "stop", "bad"),
    "rollout.breach": Look("rollout.breach", "cross", "bad"),
}
STATUSES = {
    OUTCOME_UNSPECIFIED: Look("PENDING", "dots", "pending", "plain", "It has not ended."),
    OUTCOME_SUCCESS: Look("SUCCESS", "check", "ok", "plain", "Done."),
    OUTCOME_FAILURE: Look("FAILURE", "cross", "bad", "solid", "It failed."),
    OUTCOME_DENIED: Look("DENIED", "barred", "denied", "outline", "Refused: not signed in or not permitted."),
    OUTCOME_CANCELLED: Look("CANCELLED", "gone", "pending", "outline", "The caller gave up."),
    OUTCOME_DEADLINE: Look("DEADLINE", "clock", "bad", "outline", "The deadline passed."),
    OUTCOME_UNKNOWN: Look("UNKNOWN", "question", "pending", "outline", "What happened is not known (yet)."),
}

ADVICE = {
    "UNAUTHENTICATED": "Sign in again, or make a new token with `lading token create`.",
    "PERMISSION_DENIED": "An administrator can give the role: `lading role assign`.",
    "NOT_FOUND": "Check the name: `lading ps -a` lists what there is.",
    "FAILED_PRECONDITION": "It is not in the state that this needs: `lading ps -a` shows the state.",
    "UNAVAILABLE": "The agent or its engine could not be reached: `lading agents ls` shows who is connected.",
    "DEADLINE_EXCEEDED": "A command may still finish: `lading commands wait` tells how it stands.",
    "RESOURCE_EXHAUSTED": "A limit is reached. Try again later, or with fewer calls at once.",
    "INVALID_ARGUMENT": "The request is malformed; the text says where.",
    "ALREADY_EXISTS": "There is one already: `lading ps -a` lists what there is.",
}

# Of rollouts, which `lading ps` does not show.
ROLLOUT_ADVICE = {
    "NOT_FOUND": "Check the id: `lading rollouts ls` lists what there is.",
    "FAILED_PRECONDITION": "It is not in the state that this needs: `lading rollouts ls` shows the state.",
}

ENDINGS = {
    OUTCOME_UNSPECIFIED: "no result yet",
    OUTCOME_SUCCESS: "done",
    OUTCOME_FAILURE: "it failed",
    OUTCOME_DENIED: "refused",
    OUTCOME_CANCELLED: "the caller gave up",
    OUTCOME_DEADLINE: "the deadline passed",
    OUTCOME_UNKNOWN: "what happened is not known",
}


def action(name: str) -> Look:
    """`container.start` is START and `image.pull` PULL; others are shown as they are."""
    look = VERBS.get(name, Look(labels.action(Event(action=name)) or "—"))
    return replace(look, title=name)


def advice(event: Event) -> str:
    """What can be done about the code that it ended with; empty when there is nothing to say."""
    about = ROLLOUT_ADVICE if event.action.startswith("rollout.") else {}
    return about.get(code(event)) or ADVICE.get(code(event), "")


def status(outcome: int) -> Look:
    """Of a lading.v1.Outcome; one that this viewer does not know is shown as its number."""
    return STATUSES.get(Outcome.ValueType(outcome), Look(str(outcome)))


def status_named(name: str) -> Look:
    """Of `SUCCESS`, `PENDING`, …"""
    return next((look for look in STATUSES.values() if look.word == name), Look(name))


def code(event: Event) -> str:
    """Name of its gRPC code; empty for OK and for what has not ended."""
    return labels.code(event.code) if event.code else ""


def user(actor: Actor) -> str:
    """E-mail, else id."""
    return "not signed in" if actor.type == ACTOR_TYPE_ANONYMOUS else labels.user(actor)


def user_data(actor: Actor) -> dict[str, Any]:
    """The cell of the table."""
    signs = {ACTOR_TYPE_SERVICE: ("key", "API key"), ACTOR_TYPE_AGENT: ("agent", "Agent")}
    icon, kind = signs.get(actor.type, ("", ""))
    behalf = f", for {actor.on_behalf_of} (not verified)" if actor.on_behalf_of else ""
    title = f"{kind}: {user(actor)}{behalf}" if kind else f"{user(actor)}{behalf}"
    return {"text": user(actor), "icon": icon, "title": title, "quiet": actor.type == ACTOR_TYPE_ANONYMOUS}


def duration(seconds: float) -> str:
    """`340 µs`, `12 ms`, `1.41 s`, `2 min 5 s`."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def count(number: int) -> str:
    """With spaces between thousands, at which no line breaks."""
    return f"{number:,}".replace(",", "\u00a0")
