"""Reports what happened in the runtime without a command of this agent: somebody used the engine, a program ended.

Whose doing an event is, the journal says: it is a command's when that acted on the container at the time, and the event
is one that its verb causes. The server records what it is told before it acknowledges the frame, and only then the
journal moves on; after a lost connection or a crash it is told again, under the same ids.
"""

import asyncio
import logging
import time
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from lading.v1 import commands_pb2
from lading.v1.agent_link_pb2 import Change, ConnectRequest, Drift
from lading.v1.containers_pb2 import Container
from lading_agent.errors import AgentError, JournalError
from lading_agent.journal import Act, Journal
from lading_agent.runtimes import Runtime, RuntimeEvent

log = logging.getLogger(__name__)

REPLAY_WITHIN = 0.5
COALESCE_WITHIN = 0.2
RETRY_AFTER = 2.0
CHANGES_MAX = 500
# What commands did is not written down each time: told again, it is known by them again.
SEE_EVERY_NS = 5_000_000_000
# An engine says that something ended a little after the call that caused it has returned: `die` after a kill.
LATE_US = 2_000_000
LATE = frozenset({"die", "stop", "destroy"})
# Times of containers are those of the engine's clock, and not exactly those of its events.
SLACK_NS = 1_000_000_000
# What changes containers; an engine also tells of attachments, health checks and programs that run beside.
ACTIONS = frozenset(
    {
        *("create", "start", "stop", "restart", "kill", "die", "oom", "pause", "unpause", "rename", "update"),
        "destroy",
    }
)
CAUSES: dict[int, frozenset[str]] = {
    commands_pb2.VERB_CREATE: frozenset({"create"}),
    commands_pb2.VERB_START: frozenset({"start"}),
    commands_pb2.VERB_STOP: frozenset({"kill", "die", "stop"}),
    commands_pb2.VERB_RESTART: frozenset({"kill", "die", "stop", "start", "restart"}),
    commands_pb2.VERB_KILL: frozenset({"kill", "die", "stop"}),
    commands_pb2.VERB_PAUSE: frozenset({"pause"}),
    commands_pb2.VERB_UNPAUSE: frozenset({"unpause"}),
    commands_pb2.VERB_REMOVE: frozenset({"kill", "die", "stop", "destroy"}),
}


class Drifts:
    """The reports of one session; `run` until cancelled."""

    def __init__(self, runtime: Runtime, journal: Journal, send: Callable[[ConnectRequest], None]) -> None:
        self._runtime = runtime
        self._journal = journal
        self._send = send
        self._seen_ns = 0
        self._sent: deque[tuple[ConnectRequest, int]] = deque()
        self._acked = 0
        self._moved = asyncio.Event()

    def acknowledged(self, ack: int) -> None:
        """The server has processed the frames of this session up to this number durably."""
        self._acked = max(self._acked, ack)
        if self._sent and 0 < self._sent[0][0].seq <= self._acked:
            self._moved.set()

    async def run(self) -> None:
        keeping = asyncio.create_task(self._keep())
        try:
            while True:
                try:
                    if self._journal.seen_ns is None:
                        await self._journal.see(time.time_ns())
                    self._seen_ns = max(self._seen_ns, self._journal.seen_ns or 0)
                    async with aclosing(self._runtime.events(self._seen_ns + 1)) as events:
                        await self._follow(events)
                except AgentError:
                    pass  # the inventory, which listens too, says so
                await asyncio.sleep(RETRY_AFTER)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _follow(self, events: AsyncGenerator[RuntimeEvent, None]) -> None:
        """What the runtime remembers, with the gap if it has forgotten some; then what happens."""
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        began_ns, since_ns = time.time_ns(), self._seen_ns

        async def listen() -> None:
            async for event in events:
                queue.put_nowait(event)

        listener = asyncio.create_task(listen())
        waiting: list[asyncio.Future[Any]] = [listener]
        try:
            await asyncio.sleep(REPLAY_WITHIN)
            found = taken(queue)
            gap = await self._find_gap(found, since_ns, began_ns)
            await self._report(found, since_ns if gap else None, began_ns)
            while not listener.done():
                getting = asyncio.ensure_future(queue.get())
                waiting = [listener, getting]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    break
                await asyncio.sleep(COALESCE_WITHIN)
                await self._report([getting.result(), *taken(queue)])
            await listener
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _find_gap(self, events: list[RuntimeEvent], since_ns: int, until_ns: int) -> bool:
        """Whether containers changed meanwhile, and the runtime does not remember it: it was restarted, or too much
        has happened since. What is gone without a trace cannot be seen."""
        if since_ns + SLACK_NS >= until_ns - SLACK_NS:
            return False
        known = {event.container for event in events}
        known |= {act.container for act in await self._journal.acts(since_ns)}
        containers = await self._runtime.containers()
        return any(
            each.name not in known
            and any(since_ns + SLACK_NS < at_ns < until_ns - SLACK_NS for at_ns in times_of(each))
            for each in containers
        )

    async def _report(self, events: list[RuntimeEvent], gap_since: int | None = None, until_ns: int = 0) -> None:
        """Send what no command of ours did, in frames of some; then the journal may move on."""
        newest = max((event.at_ns for event in events), default=until_ns)
        changes = [change_of(event, self._journal.owner) for event in await self._foreign(events)]
        self._seen_ns = max(self._seen_ns, newest)
        frames = [Drift(changes=changes[at : at + CHANGES_MAX]) for at in range(0, len(changes), CHANGES_MAX)]
        if gap_since is not None:
            gap = Drift(seen_until=stamp(until_ns), gap_since=stamp(gap_since))
            frames = [gap, *frames]
        for drift in frames:
            if drift is frames[-1] and not drift.HasField("seen_until"):
                drift.seen_until.CopyFrom(stamp(self._seen_ns))
            frame = ConnectRequest(drift=drift)
            self._sent.append((frame, self._seen_ns if drift is frames[-1] else 0))
            self._send(frame)
        if not frames and not self._sent and events and time.time_ns() - (self._journal.seen_ns or 0) > SEE_EVERY_NS:
            await self._journal.see(self._seen_ns)

    async def _foreign(self, events: list[RuntimeEvent]) -> list[RuntimeEvent]:
        """Those of these events that change containers, and that no command of ours caused."""
        found = [event for event in events if event.action in ACTIONS]
        if not found:
            return []
        acts: defaultdict[str, list[Act]] = defaultdict(list)
        for act in await self._journal.acts(min(event.at_ns for event in found) - LATE_US * 1000):
            acts[act.container].append(act)
        return [event for event in found if not is_ours(event, acts[event.container])]

    async def _keep(self) -> None:
        """Move the journal on as frames are acknowledged."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            until_ns = 0
            while self._sent and 0 < self._sent[0][0].seq <= self._acked:
                until_ns = max(until_ns, self._sent.popleft()[1])
            if until_ns:
                try:
                    await self._journal.see(until_ns)
                except JournalError as error:
                    log.error("%s; what the server was told is told again", error)


def taken(queue: "asyncio.Queue[RuntimeEvent]") -> list[RuntimeEvent]:
    """What is in a queue now."""
    return [queue.get_nowait() for _ in range(queue.qsize())]


def is_ours(event: RuntimeEvent, acts: Iterable[Act]) -> bool:
    """Whether one of these, of the same container, did it."""
    at = event.at_ns // 1000
    return any(
        event.action in CAUSES.get(act.verb, ())
        and act.begun_at <= at
        and (act.ended_at is None or at <= act.ended_at + (LATE_US if event.action in LATE else 0))
        for act in acts
    )


def change_of(event: RuntimeEvent, owner: str) -> Change:
    """The event as the contract says it, under an id that is the same whenever this agent (`owner`) tells it."""
    same = f"{owner} {event.container} {event.id} {event.action} {event.at_ns}"
    return Change(
        id=str(uuid.uuid5(uuid.NAMESPACE_OID, same)),
        container=event.container,
        container_id=event.id,
        action=event.action,
        happened_at=stamp(event.at_ns),
        attributes=dict(event.attributes),
    )


def times_of(container: Container) -> list[int]:
    """When it was made, started and ended, as far as that is known, in nanoseconds since 1970."""
    times = (container.created_at, container.started_at, container.finished_at)
    return [at.ToNanoseconds() for at in times if at.seconds > 0]


def stamp(at_ns: int) -> Timestamp:
    value = Timestamp()
    value.FromNanoseconds(at_ns)
    return value
