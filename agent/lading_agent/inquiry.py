"""Finds out what became of a command that began, by looking at the runtime until it shows, or shows nothing."""

import asyncio
import time

from grpc import StatusCode

from lading.v1.agent_link_pb2 import Envelope
from lading.v1.commands_pb2 import COMMAND_STATE_SUCCEEDED, COMMAND_STATE_UNKNOWN, VERB_PULL, VERB_RESTART, VERB_STOP
from lading.v1.containers_pb2 import Container
from lading_agent.errors import InDoubt, RuntimeFailure
from lading_agent.evidence import Verdict, weigh
from lading_agent.runtimes import Runtime, find
from lading_agent.verbs import grace_of

LOOK_WITHIN = 5.0
FINAL = frozenset({StatusCode.ALREADY_EXISTS, StatusCode.FAILED_PRECONDITION})


class Inquiry:
    """`settle_within`: seconds after which a runtime that answers, and shows no effect, will show none any more;
    `patience`: seconds to wait for a runtime that does not answer."""

    def __init__(self, runtime: Runtime, settle_within: float = 10.0, patience: float = 60.0) -> None:
        self._runtime = runtime
        self._settle_within = settle_within
        self._patience = patience

    def bound(self, envelope: Envelope) -> float:
        """Seconds that a runtime which works at it may take until its effect shows."""
        grace = grace_of(envelope) if envelope.verb in (VERB_STOP, VERB_RESTART) else 0.0
        return self._settle_within + grace

    async def settle(self, envelope: Envelope, before: Container | None, since_ns: int) -> Verdict:
        """Look until the effect shows or its time is over; `since_ns`: when the command began."""
        give_up_at = time.monotonic() + self._patience
        answered = False
        pause = 0.1
        while True:
            verdict = await self.look(envelope, before, since_ns)
            if verdict.state == COMMAND_STATE_SUCCEEDED or verdict.code in FINAL or envelope.verb == VERB_PULL:
                return verdict
            if verdict.code != StatusCode.UNAVAILABLE and not answered:
                answered = True
                give_up_at = time.monotonic() + self.bound(envelope)
            if time.monotonic() >= give_up_at:
                return verdict
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)

    async def look(self, envelope: Envelope, before: Container | None, since_ns: int) -> Verdict:
        """What is to be seen now; UNKNOWN with UNAVAILABLE when the runtime does not answer."""
        name = envelope.container
        try:
            async with asyncio.timeout(LOOK_WITHIN):
                actions = frozenset(event.action for event in await self._runtime.history(name, since_ns))
                return weigh(envelope, before, await find(self._runtime, name) if name else None, actions)
        except (RuntimeFailure, InDoubt, TimeoutError) as error:
            words = str(error) or f"the runtime did not answer within {LOOK_WITHIN:g} s"
            return Verdict(COMMAND_STATE_UNKNOWN, StatusCode.UNAVAILABLE, words)
