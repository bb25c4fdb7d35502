"""What each verb asks of a runtime."""

from grpc import StatusCode

from lading.v1.agent_link_pb2 import Envelope
from lading.v1.commands_pb2 import (
    VERB_CREATE,
    VERB_KILL,
    VERB_PAUSE,
    VERB_PULL,
    VERB_REMOVE,
    VERB_RESTART,
    VERB_START,
    VERB_STOP,
    VERB_UNPAUSE,
    ContainerSpec,
    Verb,
)
from lading.v1.containers_pb2 import Container
from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes import AGENT_LABEL, COMMAND_LABEL, Runtime

GRACE = 10.0
KNOWN = frozenset(Verb.values()) - {0}
ENDED = frozenset({"created", "exited", "dead"})
# They make what they act on: there is nothing to look at before.
MAKING = frozenset({VERB_CREATE, VERB_PULL})
# They can be broken off without leaving a half-done thing.
BREAKABLE = frozenset({VERB_PULL})


async def perform(runtime: Runtime, envelope: Envelope, before: Container | None) -> str:
    """Have the runtime do it to the container that was there just before; the id of one that this made. Raises
    RuntimeFailure or InDoubt."""
    arguments, verb = envelope.arguments, envelope.verb
    container_id = before.id if before is not None else ""
    if verb == VERB_CREATE:
        spec = ContainerSpec()
        spec.CopyFrom(arguments.spec)
        spec.labels[COMMAND_LABEL] = envelope.command
        spec.labels[AGENT_LABEL] = envelope.agent
        return await runtime.create(envelope.container, spec)
    if verb == VERB_START:
        await runtime.start(container_id)
    elif verb == VERB_STOP:
        if before is not None and before.state in ENDED:
            # Docker would say so itself; Podman would call it done.
            raise RuntimeFailure("the container is not running", StatusCode.FAILED_PRECONDITION)
        await runtime.stop(container_id, grace_of(envelope))
    elif verb == VERB_RESTART:
        await runtime.restart(container_id, grace_of(envelope))
    elif verb == VERB_KILL:
        await runtime.kill(container_id, arguments.signal or "SIGKILL")
    elif verb == VERB_PAUSE:
        await runtime.pause(container_id)
    elif verb == VERB_UNPAUSE:
        await runtime.unpause(container_id)
    elif verb == VERB_REMOVE:
        await runtime.remove(container_id, arguments.force)
    elif verb == VERB_PULL:
        await runtime.pull(arguments.image)
    return ""


def grace_of(envelope: Envelope) -> float:
    """Seconds that the process has to end by itself."""
    if not envelope.arguments.HasField("grace"):
        return GRACE
    return max(0.0, envelope.arguments.grace.ToTimedelta().total_seconds())


def action_of(envelope: Envelope) -> str:
    """The command's action, as the audit log names it: `container.start`, `image.pull`."""
    return f"{'image' if envelope.verb == VERB_PULL else 'container'}.{_name(envelope)}"


def words(envelope: Envelope) -> str:
    """The command for a log line: `start web-1`, `pull web:1.30`."""
    return f"{_name(envelope)} {envelope.container or envelope.arguments.image}"


def _name(envelope: Envelope) -> str:
    return Verb.Name(envelope.verb).removeprefix("VERB_").lower() if envelope.verb in KNOWN else f"verb {envelope.verb}"
