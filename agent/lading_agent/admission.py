"""Which commands an agent takes at all: decided between receiving a Dispatch and journalling it."""

import re
import uuid

from grpc import StatusCode

from lading.v1.agent_link_pb2 import Dispatch
from lading.v1.commands_pb2 import VERB_PULL
from lading_agent.errors import Refused
from lading_agent.verbs import KNOWN

CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def admit(dispatch: Dispatch, agent: str) -> None:
    """Raises Refused unless this agent may execute it. The proof that its intent is in the audit log belongs here."""
    envelope = dispatch.envelope
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
