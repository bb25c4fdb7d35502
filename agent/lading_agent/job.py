"""A command on its way through the agent, and what must hold before it begins."""

import asyncio
import time
from dataclasses import dataclass, field

from grpc import StatusCode

from lading.v1.agent_link_pb2 import Envelope
from lading.v1.commands_pb2 import Precondition
from lading.v1.containers_pb2 import Container
from lading_agent.errors import Cancelled, RuntimeFailure
from lading_agent.exec_session import ExecSession
from lading_agent.journal import Entry, Start


@dataclass
class Job:
    """A journalled command. `begun`, from the journal, is one that a crash interrupted."""

    envelope: Envelope
    begun: Entry | None = None
    # Set once the journal has it: from then on the runtime may be touched.
    start: Start | None = None
    # The runtime's id of the container that it made.
    made: str = ""
    received: float = field(default_factory=time.monotonic)
    # Why it must not begin any more.
    cancelled: str = ""
    task: asyncio.Task[str] | None = None
    # Of VERB_EXEC.
    session: ExecSession | None = None

    @property
    def before(self) -> Container | None:
        """The container just before."""
        return self.start.before if self.start is not None else None

    @property
    def left(self) -> float | None:
        """Seconds until its time is over; None without a limit."""
        if not self.envelope.HasField("execute_within"):
            return None
        return self.received + self.envelope.execute_within.ToTimedelta().total_seconds() - time.monotonic()

    def check_wanted(self) -> None:
        """Raises Cancelled when it must not begin any more."""
        if self.cancelled:
            raise Cancelled(self.cancelled)


def check_precondition(wanted: Precondition, now: Container | None) -> None:
    """Raises RuntimeFailure with FAILED_PRECONDITION and what differs."""
    asked = {
        "container id": (wanted.container_id, now.id if now else ""),
        "state": (wanted.state, now.state if now else ""),
        "image digest": (wanted.image_digest, now.image_digest if now else ""),
    }
    differs = [f"{what} is {is_!r}, not {must!r}" for what, (must, is_) in asked.items() if must and must != is_]
    if differs:
        raise RuntimeFailure(f"precondition: {'; '.join(differs)}", StatusCode.FAILED_PRECONDITION)
