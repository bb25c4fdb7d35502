"""Which commands an agent takes at all: decided between receiving a Dispatch and journalling it.

No proof, no action: a command is taken only when its intent is proven to be in the log that the agent witnesses, and
that intent says exactly this command.
"""

import base64
import hashlib
import re
import uuid
from typing import Any

from google.protobuf.message import DecodeError
from grpc import StatusCode

from lading.transparency import note
from lading.transparency.entry import InvalidEntry, check_details, parse_entry
from lading.transparency.jcs import INTEGER_MAX, parse
from lading.transparency.merkle import leaf_hash, verify_inclusion
from lading.v1.agent_link_pb2 import Dispatch, Envelope
from lading.v1.commands_pb2 import VERB_PULL
from lading_agent.errors import Refused, Unproven
from lading_agent.journal import issued_at_of
from lading_agent.verbs import KNOWN, action_of

CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def read_envelope(dispatch: Dispatch) -> Envelope:
    """The command; an empty one, which is never admitted, when these bytes are none."""
    try:
        return Envelope.FromString(dispatch.envelope)
    except DecodeError:
        return Envelope()


def admit(dispatch: Dispatch, envelope: Envelope, tree: note.Checkpoint, organization: str, agent: str) -> None:
    """Raises Refused unless this agent may execute it, Unproven unless its intent is in the tree."""
    check_command(envelope, agent)
    try:
        verify_inclusion(leaf_hash(dispatch.entry), dispatch.index, tree.size, dispatch.inclusion, tree.root)
        check_intent(dispatch, envelope, organization)
    except (ValueError, RecursionError) as error:
        raise Unproven(f"proof: {error}") from error


def check_command(envelope: Envelope, agent: str) -> None:
    """Raises Refused unless it can be done at all, and here."""
    try:
        uuid.UUID(envelope.command)
    except ValueError:
        raise Refused(f"the command's id must be a UUID, not {envelope.command[:64]!r}") from None
    if envelope.agent != agent:
        raise Refused(f"the command is for agent {envelope.agent[:64]!r}, this is {agent!r}")
    if envelope.verb not in KNOWN:
        raise Refused(f"this agent does not know verb {envelope.verb}: update the agent", StatusCode.UNIMPLEMENTED)
    if envelope.verb == VERB_PULL:
        if not envelope.arguments.image:
            raise Refused("a pull needs arguments.image")
    elif not CONTAINER_NAME.fullmatch(envelope.container):
        raise Refused(f"{envelope.container[:64]!r} cannot be the name of a container")
    if not 0 < issued_at_of(envelope) <= INTEGER_MAX:
        raise Refused("the command does not say when it was issued")


def check_intent(dispatch: Dispatch, envelope: Envelope, organization: str) -> None:
    """Raises ValueError unless entry and details are the intent of exactly this command, as these bytes say it."""
    entry, details = parse_entry(dispatch.entry), parse(dispatch.entry_details)
    if not isinstance(details, dict):
        raise InvalidEntry("the details are not a JSON object")
    check_details(entry, dispatch.salt, details)
    if envelope.verb == VERB_PULL:
        target = {"id": envelope.agent, "type": "agent"}
    else:
        target = {"id": f"{envelope.agent}/{envelope.container}", "type": "container"}
    digest = base64.b64encode(hashlib.sha256(dispatch.envelope).digest()).decode()
    actor = entry.get("actor")
    for what, said, wanted in (
        ("organization", envelope.organization, organization),
        ("organization", entry.get("organization"), organization),
        ("operation", entry.get("operation"), envelope.command),
        ("stage", entry.get("stage"), "RECEIVED"),
        ("outcome", entry.get("outcome"), "PENDING"),
        ("action", entry.get("action"), action_of(envelope)),
        ("targets", entry.get("targets"), [target]),
        ("actor", actor.get("id") if isinstance(actor, dict) else actor, envelope.actor),
        ("occurred_at", entry.get("occurred_at"), issued_at_of(envelope)),
        ("details.agent", details.get("agent"), envelope.agent),
        ("details.envelope", details.get("envelope"), digest),
    ):
        check_same(what, said, wanted)


def check_same(what: str, said: Any, wanted: Any) -> None:
    """Raises InvalidEntry, with both, unless they are the same."""
    if said != wanted:
        raise InvalidEntry(f"{what} is {repr(said)[:200]}, not {wanted!r}: it is the intent of another command")
