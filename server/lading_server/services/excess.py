"""What an agent told beyond its allowance: left out of the log, and the log says how many."""

from collections.abc import Mapping

from lading_server.clock import new_id
from lading_server.errors import Code
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.sessions import Session

ACTION = "agent.excess"


def event_of(session: Session, left_out: Mapping[str, int], at: int) -> Event:
    """The event of what was left out, by kind. `at`: microseconds since the epoch."""
    return Event(
        id=new_id(),
        organization=session.organization,
        operation=new_id(),
        stage=Stage.COMPLETED,
        occurred_at=at,
        actor=Actor(ActorType.AGENT, session.agent, auth_method="token"),
        action=ACTION,
        outcome=Outcome.DENIED,
        code=Code.RESOURCE_EXHAUSTED,
        targets=(("agent", session.agent),),
        agent=session.agent,
        error=f"the agent told more than the log takes from one: {sum(left_out.values())} events were left out",
        details={"data": {"left_out": dict(left_out)}},
    )
