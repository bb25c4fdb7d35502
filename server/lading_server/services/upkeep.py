"""What open sessions of agents need beside their frames: the log's growth, canaries, and an end in time."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Coroutine
from typing import Any

from google.protobuf.duration_pb2 import Duration

from lading.v1 import agent_link_pb2
from lading_server import admission, errors
from lading_server.clock import new_id
from lading_server.dispatch import Dispatcher
from lading_server.sessions import CANARY, Session, Sessions, canary_of

log = logging.getLogger(__name__)

GROWTH_SECONDS = 5.0
GROWTHS_PER_SECOND = 50.0
"""By one process. With more agents than this allows in GROWTH_SECONDS, each is shown the log less often."""
GROWTH_STEP_SECONDS = 1.0
ROUND_SECONDS = 1.0
JITTER = 0.1
"""A stream lives so much shorter or longer than is set. At its end, load balancers and new servers get their share."""
DRAIN_SECONDS = 1.0
DRAINED_SECONDS = 60.0
"""An agent that was asked to connect anew, and has not, is cut off."""


class Upkeep:
    """`connects_per_second`: how fast agents that are asked to connect anew come back."""

    def __init__(
        self, dispatcher: Dispatcher, sessions: Sessions, connects_per_second: float = admission.PER_SECOND
    ) -> None:
        self._dispatcher, self._sessions, self._per_second = dispatcher, sessions, connects_per_second
        self._sending: set[asyncio.Task[None]] = set()

    async def show_growth(self) -> None:
        """For ever: show every agent how the log has grown, for it to check and to cosign. Spread over a round; those
        of an organization that are due together in one unit. At most so many a second that cosignatures never crowd
        out commands."""
        while True:
            sessions = self._sessions.all()
            round_seconds = max(GROWTH_SECONDS, len(sessions) / GROWTHS_PER_SECOND)
            steps = max(1, round(round_seconds / GROWTH_STEP_SECONDS))
            for step in range(steps):
                await asyncio.sleep(round_seconds / steps)
                due: dict[str, list[Session]] = {}
                for session in sessions[step::steps]:
                    if session.failure is None:
                        due.setdefault(session.organization, []).append(session)
                for group in due.values():
                    self._spawn(self._dispatcher.show_growth(*group))

    async def go_round(self) -> None:
        """For ever: send canaries, and end streams that are old."""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            now, sessions = time.monotonic(), self._sessions.all()
            for session in sessions:
                self._see_to(session, now, canary_of(len(sessions)))

    def _see_to(self, session: Session, now: float, canary_every: float) -> None:
        pulse = session.pulse
        if session.draining:
            if now > session.ends_at + DRAINED_SECONDS:
                session.end(errors.Stopping("the agent was asked to connect anew, and did not"))
        elif now > session.ends_at:
            self._spawn(self._drain(session, "the stream is old", 0.0))
        elif pulse.canary or session.probes or CANARY not in session.capabilities:
            return  # one at a time
        elif now > pulse.canary_at + max(session.heartbeat, canary_every):
            pulse.canary, pulse.canary_at = new_id(), now
            canary = agent_link_pb2.Canary(nonce=pulse.canary)
            self._spawn(session.send(agent_link_pb2.ConnectResponse(canary=canary)))

    async def drain(self, reason: str) -> None:
        """Ask every agent to finish what runs and to connect anew, each in its turn."""
        ranked = sorted(self._sessions.all(), key=lambda session: (session.organization, session.agent))
        sends = [
            self._drain(session, reason, admission.slot(rank, self._per_second)) for rank, session in enumerate(ranked)
        ]
        with contextlib.suppress(TimeoutError):  # who does not read sees its stream end without it
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.gather(*sends, return_exceptions=True)

    async def _drain(self, session: Session, reason: str, after: float) -> None:
        session.draining = True
        session.ends_at = min(session.ends_at, time.monotonic())
        wait = Duration()
        wait.FromMilliseconds(int(after * 1000))
        drain = agent_link_pb2.Drain(reason=reason, reconnect_after=wait)
        await session.post(agent_link_pb2.ConnectResponse(drain=drain))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._sending.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: "asyncio.Task[None]") -> None:
        self._sending.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.info("a frame was not sent: %s", failure or type(failure).__name__)


def lifetime(seconds: float) -> float:
    """How long one stream lives: not all that began together end together."""
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)
