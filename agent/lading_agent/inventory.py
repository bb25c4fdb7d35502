"""Reports what containers there are: all of them at first, then what changes, as the runtime tells it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from lading.v1.agent_link_pb2 import ConnectRequest
from lading.v1.agent_link_pb2 import Inventory as Report
from lading.v1.containers_pb2 import Container
from lading_agent.errors import AgentError, Unreadable
from lading_agent.runtimes import Runtime, RuntimeEvent, find

log = logging.getLogger(__name__)

# Longer than a short command takes: its result, which brings the container too, goes first.
COALESCE_WITHIN = 0.2
RETRY_AFTER = 2.0


class Inventory:
    """The reports of one session; `run` until cancelled."""

    def __init__(self, runtime: Runtime, send: Callable[[ConnectRequest], None]) -> None:
        self._runtime = runtime
        self._send = send
        self._version = 0
        self._full = True
        self._touched: set[str] = set()
        self._wake = asyncio.Event()
        # A stream of events that broke goes on where it ended, and a snapshot covers what it may have lost.
        self._since_ns = time.time_ns()

    def report_full(self) -> None:
        """Answer the server's ReportFull."""
        self._full = True
        self._wake.set()

    async def run(self) -> None:
        broken = False
        while True:
            self._full = True
            try:
                async with aclosing(self._runtime.events(self._since_ns)) as events:
                    await self._follow(events)
                words = "it ended its stream of events"
            except AgentError as error:
                words = str(error)
            if not broken:
                log.warning("no inventory: %s; asking again every %g s", words, RETRY_AFTER)
            broken = self._full
            await asyncio.sleep(RETRY_AFTER)

    async def _follow(self, events: AsyncIterator[RuntimeEvent]) -> None:
        """Report until the events end; raises what ended them."""
        listener = asyncio.create_task(self._listen(events))
        listener.add_done_callback(lambda task: self._wake.set())
        try:
            while not listener.done():
                if self._full:
                    await self._report_all()
                elif self._touched:
                    await self._report_touched()
                if not self._full and not self._touched:
                    await self._wake.wait()
                    self._wake.clear()
                    await asyncio.sleep(COALESCE_WITHIN)
            await listener
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _listen(self, events: AsyncIterator[RuntimeEvent]) -> None:
        async for event in events:
            self._since_ns = max(self._since_ns, event.at_ns)
            self._touched.add(event.container)
            self._wake.set()

    async def _report_all(self) -> None:
        self._touched.clear()
        containers = await self._runtime.containers()
        self._full = False
        self._report(Report(snapshot=True, containers=containers))

    async def _report_touched(self) -> None:
        names, self._touched = self._touched, set()
        found: dict[str, Container | None] = {}
        try:
            for name in sorted(names):
                with contextlib.suppress(Unreadable):
                    found[name] = await find(self._runtime, name)
        except AgentError:
            self._touched |= names
            raise
        containers = [container for container in found.values() if container is not None]
        removed = [name for name, container in found.items() if container is None]
        self._report(Report(containers=containers, removed=removed, base_version=self._version))

    def _report(self, report: Report) -> None:
        self._version += 1
        report.version = self._version
        self._send(ConnectRequest(inventory=report))
