"""All that is known of one event, over the page it was opened from."""

import json
import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import streamlit as st
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import ListValue, Struct

from lading.v1 import audit_log_pb2
from lading.v1.audit_log_pb2 import Event
from lading_client import labels, query
from lading_client.documents import whole
from lading_client.errors import InvalidArgument, LadingError, NotFound
from lading_viewer import components, proof_section, words
from lading_viewer.moments import Clock, moment
from lading_viewer.reading import Reader
from lading_viewer.session import Session
from lading_viewer.view import View

OF_CALLS = {
    audit_log_pb2.STAGE_STARTED: "begun",
    audit_log_pb2.STAGE_COMPLETED: "answered",
    audit_log_pb2.STAGE_ABANDONED: "given up",
}
DRIFT = "container.drift"
OF_COMMANDS = {
    audit_log_pb2.STAGE_RECEIVED: "recorded",
    audit_log_pb2.STAGE_STARTED: "accepted by the agent",
    audit_log_pb2.STAGE_COMPLETED: "ended on the agent",
    audit_log_pb2.STAGE_ABANDONED: "given up",
}
INLINE_MAX = 60  # characters
NONE = "(none)"
HIDDEN = "changed (hidden)"
REDACTED = "[redacted]"


def show(reader: Reader, session: Session, view: View, listed: Sequence[Event]) -> None:
    """Open the drawer for the event that the URL names. `listed` are those of the table below it."""

    def close() -> None:
        st.query_params.pop("event", None)

    @st.dialog("Event", position="right", width="medium", on_dismiss=close)
    def drawer() -> None:
        if st.session_state.pop("drawer_left", False):
            st.rerun()
        try:
            event = reader.event(view.event)
            related = reader.same_operation(event)
        except (NotFound, InvalidArgument):
            st.text("There is no such event in your organization.")
            return
        except LadingError as failure:
            st.text(f"This event could not be read: {failure}")
            return
        found = data(event, related, view.clock, view.link(event=event.id)) | neighbours(event.id, listed)
        found["proof"] = proof_section.data(session, event, view.clock)
        states = proof_section.states(session, related)
        for step in found["timeline"]:
            step["proof"] = states[step["id"]]
        components.event(found, "event_drawer", on_act=lambda: _act(session, event))

    drawer()


def _act(session: Session, event: Event) -> None:
    state = st.session_state
    state["drawer_left"] = True
    match state["event_drawer"].act:
        case "recheck":
            # Through the whole page, for its badge.
            proof_section.recheck(session, event)
        case {"open": str(event_id)}:
            st.query_params["event"] = event_id
        case {"find": {"field": str(field), "value": str(value)}}:
            state["q"] = str(query.Term(field, (value,)))
            for name in ("event", "cur"):
                st.query_params.pop(name, None)


def neighbours(event_id: str, listed: Sequence[Event]) -> dict[str, str | None]:
    """The events above and below in the table."""
    ids = [event.id for event in listed]
    if event_id not in ids:
        return {"newer": None, "older": None}
    at = ids.index(event_id)
    return {"newer": ids[at - 1] if at else None, "older": ids[at + 1] if at + 1 < len(ids) else None}


def data(event: Event, related: Sequence[Event], clock: Clock, link: str) -> dict[str, Any]:
    """For `components.event`. `related` are the events of the same operation, oldest first."""
    look, status = words.action(event.action), words.status(event.outcome)
    return {
        "chips": [look.as_data(), status.as_data()],
        "sentence": _sentence(event),
        "error": _error(event),
        "erasure": proof_section.erasure(event, clock),
        "fields": [
            field for field in (*_fields(event, clock), *_session(event, related), *_drift(event)) if field["value"]
        ],
        "change": _change(event.diff) if event.HasField("diff") else None,
        "timeline": _timeline(event, related, clock),
        "request": _json(_asked(event, related)),
        "details": _json(event.details),
        "record": _record(event),
        "link": link,
    }


def _record(event: Event) -> str:
    """The event as JSON, without the entry, which the proof shows."""
    bare = Event()
    bare.CopyFrom(event)
    bare.ClearField("entry")
    bare.ClearField("entry_details")
    bare.ClearField("salt")
    return json.dumps(MessageToDict(bare, preserving_proto_field_name=True), indent=2, ensure_ascii=False)


def _error(event: Event) -> dict[str, str] | None:
    """Code and text, and what can be done about it unless the text names a command itself."""
    code = words.code(event)
    if not event.error and not code:
        return None
    advice = "" if "`" in event.error else words.advice(event)
    return {"code": code, "text": event.error, "advice": advice, "tone": words.status(event.outcome).tone}


def _asked(event: Event, related: Sequence[Event]) -> Struct:
    """The request: a command's is with its first event, and what became of it is not understood without."""
    return next((each.request for each in (event, *related) if each.request.fields), event.request)


def _json(value: Struct) -> str:
    return json.dumps(whole(MessageToDict(value)), indent=2, ensure_ascii=False) if value.fields else ""


def _sentence(event: Event) -> list[dict[str, Any]]:
    """`ana@acme.example asked to STOP dock-1/web; done after 1.41 s.`"""
    target, ending = labels.target(event), words.ENDINGS.get(event.outcome, "")
    if event.action == DRIFT:
        gap = event.outcome == audit_log_pb2.OUTCOME_UNKNOWN
        said = " does not know all that happened on " if gap else " reported a change that no command made to "
        sentence = ((words.user(event.actor), True), (said, False), (target, True), (".", False))
        return [{"text": text, "strong": strong} for text, strong in sentence]
    if ending and event.HasField("duration"):
        ending += f" after {words.duration(event.duration.ToTimedelta().total_seconds())}"
    parts: list[tuple[str, bool]] = [(words.user(event.actor), True)]
    if event.actor.on_behalf_of:
        parts += [(" for ", False), (event.actor.on_behalf_of, True)]
    parts += [(f" asked to {words.action(event.action).word} ", False), (target, True)]
    parts += [(f"; {ending}." if ending else ".", False)]
    if event.count > 1:
        parts += [(f" This stands for {words.count(event.count)} calls.", False)]
    return [{"text": text, "strong": strong} for text, strong in parts if text]


def _fields(event: Event, clock: Clock) -> list[dict[str, Any]]:
    time, happened = moment(event.recorded_at), moment(event.occurred_at)
    full = clock.full(time)
    actor = event.actor
    both = f"{full}  ({clock.other(time)})" if clock.other(time) else full
    took = words.duration(event.duration.ToTimedelta().total_seconds()) if event.HasField("duration") else ""
    signed_in = " ".join(part for part in (actor.auth_method, actor.credential) if part)
    messages = f"{event.messages_in} in, {event.messages_out} out" if event.messages_in or event.messages_out else ""
    return [
        _field("Timestamp", both, copy=True),
        # A service may tell of what happened long before.
        _field("Happened at", clock.full(happened) if abs((time - happened).total_seconds()) >= 1 else ""),
        _field("Took", took),
        _field("User", words.user(actor), find=("user", actor.id)),
        _field("User id", actor.id if actor.id != words.user(actor) else "", copy=True),
        _field("Signed in with", signed_in),
        _field("On behalf of", f"{actor.on_behalf_of} (not verified)" if actor.on_behalf_of else ""),
        _field("Reason", event.reason or "none given", quiet=not event.reason),
        *(
            _field(target.type.capitalize(), target.id, copy=True, find=("target", target.id))
            for target in event.targets
        ),
        _field("Agent", event.agent, find=("agent", event.agent)),
        _field("Organization", event.organization),
        _field("Source", event.user_agent, find=("source", event.user_agent)),
        _field("From", event.peer, find=("ip", _host(event.peer))),
        _field("Claimed address", f"{event.claimed_address} (not verified)" if event.claimed_address else ""),
        _field("Method", event.method),
        _field("Messages", messages),
        _field("Agent time", clock.full(moment(event.agent_time)) if event.HasField("agent_time") else ""),
        _field("Operation id", event.operation, copy=True, find=("cmd", event.operation)),
        _field("Caused by", event.parent, copy=True, find=("cmd", event.parent)),
        _field("Correlation id", event.request_id, copy=True, find=("corr", event.request_id)),
        _field("Trace id", event.trace_id, copy=True, find=("corr", event.trace_id)),
        _field("Event id", event.id, copy=True),
        _field("Number in the log", f"#{event.index}"),
    ]


def _session(event: Event, related: Sequence[Event]) -> list[dict[str, Any]]:
    """What an exec session ran, and how it ended."""
    if event.action != "container.exec":
        return []
    asked, ran = whole(MessageToDict(_asked(event, related))), whole(MessageToDict(event.details)).get("exec", {})
    command = asked.get("spec", {}).get("command", [])
    amount = f"{ran['input_bytes']:,} in, {ran['output_bytes']:,} out" if "output_bytes" in ran else ""
    return [
        _field("Command line", shlex.join(map(str, command)), copy=True),
        _field("Exit code", str(ran.get("exit_code", ""))),
        _field("Bytes", amount),
        _field("SHA-256 of its output", ran.get("output_sha256", ""), copy=True),
    ]


def _drift(event: Event) -> list[dict[str, Any]]:
    """What the engine said: `die`, with `exitCode=137`."""
    if event.action != DRIFT:
        return []
    details = whole(MessageToDict(event.details))
    said = ", ".join(f"{key}={value}" for key, value in sorted(details.get("attributes", {}).items()))
    return [_field("Engine event", str(details.get("action", ""))), _field("The engine says", said)]


def _field(
    name: str, value: str, *, copy: bool = False, find: tuple[str, str] | None = None, quiet: bool = False
) -> dict[str, Any]:
    where = {"field": find[0], "value": find[1]} if find and find[1] else None
    return {"name": name, "value": value, "copy": copy, "find": where, "quiet": quiet}


def _host(peer: str) -> str:
    """The address in gRPC's `ipv4:10.0.3.59:51620` and `ipv6:%5B::1%5D:51620`; others as they are."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def _change(diff: ListValue) -> list[dict[str, str]]:
    """Rows of a JSON Patch (RFC 6902) with `was`; those that change nothing are left out."""
    rows = []
    for step in diff.values:
        patch = MessageToDict(step.struct_value)
        before = _value(patch["was"]) if "was" in patch else NONE
        after = NONE if patch.get("op") == "remove" else _value(patch.get("value"))
        if before != after or after == HIDDEN:
            rows.append({"field": _path(str(patch.get("path", ""))), "before": before, "after": after})
    return rows


def _path(pointer: str) -> str:
    """`/spec/env/A~1B` is spec.env.A/B"""
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]) or "(all)"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return HIDDEN if value == REDACTED else value
    if value is None:
        return NONE
    line = json.dumps(whole(value), ensure_ascii=False, sort_keys=True)
    return line if len(line) <= INLINE_MAX else json.dumps(whole(value), indent=2, ensure_ascii=False, sort_keys=True)


def _timeline(event: Event, related: Sequence[Event], clock: Clock) -> list[dict[str, Any]]:
    """Steps of the same operation with the gaps between them, by the server's clock."""
    steps: list[dict[str, Any]] = []
    before = None
    for each in related:
        time = moment(each.recorded_at)
        look = words.status(each.outcome)
        stage = (OF_CALLS if each.method else OF_COMMANDS).get(each.stage, labels.stage(each))
        if each.action == DRIFT:
            stage = "reported by the agent"
        note = "" if each.outcome == audit_log_pb2.OUTCOME_UNSPECIFIED else f"{look.word} {words.code(each)}".strip()
        steps.append(
            {
                "id": each.id,
                "time": clock.time(time),
                "gap": "" if before is None else f"+{(time - before).total_seconds() * 1000:.0f} ms",
                "word": f"{words.action(each.action).word} {stage}",
                "tone": look.tone,
                "note": note,
                "here": each.id == event.id,
            }
        )
        before = time
    return steps
