"""What people read of events, commands and containers: words without prefixes, the same everywhere. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from lading.v1 import agents_pb2, audit_log_pb2, commands_pb2

CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
SETTLED = frozenset(
    {
        commands_pb2.COMMAND_STATE_SUCCEEDED,
        commands_pb2.COMMAND_STATE_FAILED,
        commands_pb2.COMMAND_STATE_REJECTED,
        commands_pb2.COMMAND_STATE_CANCELLED,
        commands_pb2.COMMAND_STATE_EXPIRED,
    }
)


def code(number: int) -> str:
    """Name of a gRPC code."""
    return CODES[number] if 0 <= number < len(CODES) else f"CODE_{number}"


def enum(name: str, prefix: str) -> str:
    """`ROLE_ADMIN` as `ADMIN`."""
    return name.removeprefix(f"{prefix}_")


def outcome(event: audit_log_pb2.Event) -> str:
    """`SUCCESS`, `FAILURE`, …; `PENDING` while there is none."""
    if event.outcome == audit_log_pb2.OUTCOME_UNSPECIFIED:
        return "PENDING"
    return _name(audit_log_pb2.Outcome, event.outcome, "OUTCOME")


def stage(event: audit_log_pb2.Event) -> str:
    return _name(audit_log_pb2.Stage, event.stage, "STAGE")


def actor_type(actor: audit_log_pb2.Actor) -> str:
    """`user`, `service`, `agent`, `anonymous`."""
    return _name(audit_log_pb2.ActorType, actor.type, "ACTOR_TYPE").lower()


def user(actor: audit_log_pb2.Actor) -> str:
    """E-mail, else id."""
    return actor.email or actor.id or "anonymous"


def target(event: audit_log_pb2.Event) -> str:
    """The first target, and how many more there are."""
    if not event.targets:
        return ""
    more = f" +{len(event.targets) - 1}" if len(event.targets) > 1 else ""
    return event.targets[0].id + more


def action(event: audit_log_pb2.Event) -> str:
    """`STOP` for `container.stop` and `PULL` for `image.pull`; others as they are."""
    noun, _, verb = event.action.partition(".")
    return verb.upper() if noun in ("container", "image") and "." not in verb else event.action


def verb(command: commands_pb2.Command) -> str:
    return _name(commands_pb2.Verb, command.verb, "VERB").lower()


def command_state(command: commands_pb2.Command) -> str:
    return _name(commands_pb2.CommandState, command.state, "COMMAND_STATE")


def agent_state(agent: agents_pb2.Agent) -> str:
    return _name(agents_pb2.AgentState, agent.state, "AGENT_STATE").lower()


def moment(value: Timestamp) -> datetime | None:
    """Aware, UTC; None when it is not set."""
    return value.ToDatetime(UTC) if value.seconds or value.nanos else None


def rfc3339(value: Timestamp) -> str:
    """UTC with milliseconds; empty when it is not set."""
    found = moment(value)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z") if found else ""


def span(seconds: float) -> str:
    """`850 ms`, `1.2 s`, `12 min`, `3 h`, `5 d`."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for width, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= width:
            return f"{seconds // width:.0f} {unit}"
    raise AssertionError(seconds)


def _name(kind: object, number: int, prefix: str) -> str:
    try:
        return enum(kind.Name(number), prefix)  # type: ignore[attr-defined]
    except ValueError:  # from a newer server
        return f"{prefix}_{number}"
