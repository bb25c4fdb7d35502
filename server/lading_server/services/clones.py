"""Two processes with the name of one agent: what shows it, and what follows.

A process that begins has an id of its own (`Hello.boot_id`), and a data folder has one (`journal_id`). An agent that
was restarted, with or without its data, is one process after another: the older one never speaks again. Two are at it
when (1) one comes back that another one with another journal had superseded, or (2) one says Hello while the session of
another one with another journal is here and answers: it is sent a canary, and brings it back in time.
"""

import asyncio

from lading.v1 import agent_link_pb2
from lading_server.clock import new_id
from lading_server.event import Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger.transaction import Transaction
from lading_server.sessions import CANARY, Session
from lading_server.store import agents

ANSWER_SECONDS = 2.0
"""A Hello that may be of a clone waits this long for the other one's sign of life."""


def differs(hello: agent_link_pb2.Hello, boot: str, journal: str) -> bool:
    """Whether a Hello is of another process, with another journal, than this one."""
    return bool(boot and hello.boot_id) and hello.boot_id != boot and hello.journal_id != journal


def came_back(hello: agent_link_pb2.Hello, known: agents.Row) -> bool:
    """Whether the process of a Hello is the one that the newest one, with another journal, had superseded."""
    return differs(hello, known.boot_id or "", known.journal_id or "") and hello.boot_id == known.boot_before


async def is_alive(session: Session) -> bool:
    """Whether the agent of a session answers now, through its executor."""
    if CANARY not in session.capabilities or session.draining:
        return False
    nonce = f"alive {new_id()}"
    answered = session.probes[nonce] = asyncio.Event()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await session.post(agent_link_pb2.ConnectResponse(canary=agent_link_pb2.Canary(nonce=nonce)))
            await answered.wait()
    except Exception:
        return False  # it went away, or does not answer: then it is no clone's rival
    finally:
        session.probes.pop(nonce, None)
    return True


def quarantine(transaction: Transaction, known: agents.Row, boot: str, other: str) -> None:
    """Refuse both from now on, with the event that says why."""
    agents.mark(transaction.connection, known.organization, known.name, quarantined=True)
    transaction.append(
        Event(
            id=new_id(),
            organization=known.organization,
            operation=new_id(),
            stage=Stage.COMPLETED,
            occurred_at=transaction.recorded_at,
            actor=Actor(ActorType.AGENT, known.name),
            action="agent.clone",
            outcome=Outcome.FAILURE,
            changes=True,
            targets=(("agent", known.name),),
            agent=known.name,
            error="two processes use the name of this agent at once",
            details={"data": {"boots": sorted((boot, other))}},
        )
    )
