"""Frames of sessions that are over: the agent has refused them, and the log says so."""

from lading.v1 import agent_link_pb2
from lading_server import names
from lading_server.clock import new_id
from lading_server.errors import Code
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.services.resources import text
from lading_server.sessions import Session

ACTION = "frame.refuse"


def event_of(session: Session, stale: agent_link_pb2.StaleFrame, at: int) -> Event:
    """What the agent says of one such frame. `at`: microseconds since the epoch."""
    command = names.command_of(names.command_name(text(stale.command, 64)))
    return Event(
        id=new_id(),
        organization=session.organization,
        operation=new_id(),
        stage=Stage.COMPLETED,
        occurred_at=at,
        actor=Actor(ActorType.AGENT, session.agent, auth_method="token"),
        action=ACTION,
        outcome=Outcome.DENIED,
        code=Code.ABORTED,
        targets=(("command", command) if command else ("agent", session.agent),),
        agent=session.agent,
        error=f"a {text(stale.kind, 32) or 'frame'} of epoch {stale.epoch} came in epoch {session.epoch}: refused",
        details={"data": {"epoch": stale.epoch, "seq": stale.seq, "current_epoch": session.epoch}},
    )
