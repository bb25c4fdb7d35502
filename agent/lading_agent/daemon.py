"""The agent as a whole: one session after another, until a signal."""

import asyncio
import gc
import logging
import signal
import time
import uuid

from lading_agent.backoff import Backoff
from lading_agent.bulk import Bulk
from lading_agent.journal import Journal
from lading_agent.link import Line
from lading_agent.runtimes import Runtime
from lading_agent.session import LAST_WORDS_WITHIN, Ending, Progress, Session
from lading_agent.settings import Settings
from lading_agent.witness import Witness
from lading_agent.worker import Worker

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAIN_WITHIN = 30.0
# A session that lived this long in seconds was a good one: the next failure is the first again.
GOOD_AFTER = 30.0


class Daemon:
    """`run` until SIGTERM, SIGINT or `stop`; containers go on without it."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime
        self._journal = Journal(settings.data)
        self._witness = Witness(settings.organization, settings.name, self._journal)
        self._line = Line(settings)
        self._bulk = Bulk(settings, runtime)
        self._worker = Worker(self._witness, runtime, self._journal, carriers=self._bulk)
        self._backoff = Backoff()
        self._progress = Progress()
        self._boot_id = str(uuid.uuid4())
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Drain: begin nothing more, finish what runs, say so, and end. A second signal ends it at once: the journal
        has what is left."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        log.info("stopping: finishing what runs, at most %g s; a second signal stops at once", DRAIN_WITHIN)
        self._stopping.set()

    async def run(self) -> None:
        """Raises JournalError or SettingsError when it cannot begin."""
        await self._journal.open()
        try:
            await self._witness.open()
            await self._runtime.open()
            loop = asyncio.get_running_loop()
            for number in SIGNALS:
                loop.add_signal_handler(number, self.stop)
            title = await self._runtime.title()
            log.info("agent %s: runtime %s, data in %s", self._settings.name, title, self._settings.data)
            await self._worker.recover()
            while not self._stopping.is_set():
                await self._connect()
        finally:
            await self._line.close()
            await self._bulk.close()
            await self._worker.close()
            await self._runtime.close()
            await self._journal.close()
            log.info("stopped")

    async def _connect(self) -> None:
        """One session and the wait after it; a stop ends both in order."""
        session = Session(
            self._settings,
            self._boot_id,
            self._journal,
            self._witness,
            self._worker,
            self._runtime,
            self._bulk,
            self._line,
            self._progress,
        )
        began = time.monotonic()
        life = asyncio.create_task(session.run())
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({life, stop}, return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            await self._worker.drain(DRAIN_WITHIN, "the agent is stopping")
            session.leave("the agent is stopping")
            await asyncio.wait({life}, timeout=LAST_WORDS_WITHIN)
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            return
        ending, self._progress = life.result(), session.progress
        # An ended call is a cycle of references that keeps its connection open until it is collected.
        gc.collect()
        if ending.lived and time.monotonic() - began > GOOD_AFTER:
            self._backoff.reset()
        seconds = self._wait(ending)
        log.log(
            logging.INFO if ending.wait is not None else logging.WARNING,
            "not connected to %s: %s; trying again in %.1f s",
            self._settings.server,
            ending.reason,
            seconds,
        )
        await asyncio.wait({stop}, timeout=seconds)
        if not stop.done():
            stop.cancel()
        else:
            await self._worker.drain(DRAIN_WITHIN, "the agent is stopping")

    def _wait(self, ending: Ending) -> float:
        """The server's word counts, where it gave one; it assigns the slots of a fleet."""
        if ending.wait is not None:
            return ending.wait
        return self._backoff.slow() if ending.slow else self._backoff.next()
