"""Executes commands: in order for one container, side by side for several, each one at most once."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from grpc import StatusCode

from lading.v1.agent_link_pb2 import (
    Acknowledge,
    CanaryEcho,
    ConnectRequest,
    Dispatch,
    Envelope,
)
from lading.v1.commands_pb2 import (
    COMMAND_STATE_CANCELLED,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_SUCCEEDED,
    COMMAND_STATE_UNKNOWN,
    VERB_EXEC,
)
from lading.v1.containers_pb2 import Container
from lading_agent.admission import admit, read_envelope
from lading_agent.errors import (
    AgentError,
    Cancelled,
    InDoubt,
    JournalError,
    LogRefused,
    Refused,
    RuntimeFailure,
)
from lading_agent.evidence import Verdict
from lading_agent.exec_session import Carriers, ExecSession
from lading_agent.inquiry import Inquiry
from lading_agent.job import Job, check_precondition
from lading_agent.journal import Journal, Start
from lading_agent.reports import EXECUTED, Reports
from lading_agent.runtimes import Runtime, find
from lading_agent.verbs import BREAKABLE, MAKING, perform, words
from lading_agent.witness import Witness

log = logging.getLogger(__name__)

# Commands that run at once.
WINDOW = 64
# Exec sessions that are open at once, beside them.
SESSIONS_MAX = 64
# A command that comes when nothing runs is looked at before it is journalled, and begins with the same write.
LOOK_AHEAD_WITHIN = 0.02
DONE = Verdict(COMMAND_STATE_SUCCEEDED, StatusCode.OK, EXECUTED)


class Worker:
    """The agent's hands. `send` takes frames for the session of the moment; what it drops is in the journal."""

    def __init__(
        self,
        witness: Witness,
        runtime: Runtime,
        journal: Journal,
        inquiry: Inquiry | None = None,
        carriers: Carriers | None = None,
    ) -> None:
        self.send: Callable[[ConnectRequest], None] = lambda frame: None
        self._witness = witness
        self._runtime = runtime
        self._journal = journal
        self._reports = Reports(witness, runtime, journal, lambda frame: self.send(frame))
        self._inquiry = inquiry or Inquiry(runtime)
        self._carriers = carriers
        self._slots = asyncio.Semaphore(WINDOW)
        self._jobs: dict[str, Job] = {}
        self._lanes: dict[str, deque[Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: set[asyncio.Task[None]] = set()
        self._closing = ""
        self._nonce = ""
        self._echo: asyncio.Task[None] | None = None

    async def recover(self) -> None:
        """Settle what the last life of the agent left: never by executing it."""
        # Each end looks at its container, and a runtime that hangs must not keep the agent from its server.
        slots = asyncio.Semaphore(WINDOW)

        async def give_up(envelope: Envelope) -> None:
            # Its stage says that the runtime was not touched for it.
            verdict = Verdict(COMMAND_STATE_CANCELLED, StatusCode.ABORTED, "journal")
            async with slots:
                await self._reports.settle(envelope, verdict, "the agent ended before it began; nothing was done")

        unbegun = []
        for entry in await self._journal.unfinished():
            if entry.stage == "received":
                unbegun.append(entry.envelope)
            else:
                start = Start(entry.before, (entry.executing_at or 0) * 1000)
                self._queue(Job(entry.envelope, begun=entry, start=start))
        await asyncio.gather(*map(give_up, unbegun))

    async def receive(self, dispatch: Dispatch) -> None:
        """Take a command: when this returns, it is journalled and acknowledged, or refused.

        Raises LogRefused, after refusing it, when the log that it came with does not extend the one this agent saw;
        SessionBroken, and it is neither taken nor refused, when frames before it were lost.
        """
        envelope, view = read_envelope(dispatch), None
        try:
            view = self._witness.check(dispatch.growth)
            admit(dispatch, envelope, view.tree, self._witness.organization, self._witness.agent)
            start = await self._look_ahead(envelope)
            closing = self._closing
            # What was seen of the log is on disk together with the command, before anything acts on it.
            if closing:
                known = await self._journal.find(envelope, view)
            else:
                known = await self._journal.receive(envelope, view, start)
            if known is None and closing:
                raise Refused(closing, StatusCode.UNAVAILABLE)
            if known is not None and known.envelope != envelope:
                raise Refused("another command had this id", StatusCode.ALREADY_EXISTS)
        except (Refused, JournalError) as error:
            await self._reports.refuse(dispatch, envelope, view, error)
            if isinstance(error, LogRefused):
                raise
            return
        if known is None:
            self._queue(Job(envelope, start=start, cancelled=_nothing_done(self._closing)))
        if known is not None and known.result is not None:
            log.info("%s: a duplicate, answered from the journal", words(envelope))
            self.send(ConnectRequest(result=self._witness.sign_result(known.result)))
            return
        acknowledge = Acknowledge(command=envelope.command)
        acknowledge.agent_time.GetCurrentTime()
        self.send(ConnectRequest(acknowledge=acknowledge))

    async def _look_ahead(self, envelope: Envelope) -> Start | None:
        """What a command needs to begin at once, so that its intent and its beginning are one write; None when others
        are in hand, or something speaks against it: then it is looked at when its turn comes."""
        if self._lanes or self._closing:
            return None
        wanted = envelope.precondition if envelope.HasField("precondition") else None
        if envelope.verb in MAKING:
            return Start(None) if wanted is None else None
        try:
            async with asyncio.timeout(LOOK_AHEAD_WITHIN):
                before = await self._runtime.get(envelope.container)
            if wanted is not None:
                check_precondition(wanted, before)
        except (AgentError, TimeoutError):
            return None
        return Start(before)

    def cancel(self, command: str) -> None:
        """Stop it if it has not begun; one that has is broken off where that leaves nothing half-done."""
        job = self._jobs.get(command)
        if job is None:
            return
        job.cancelled = job.cancelled or "cancelled before it began; nothing was done"
        if job.task is not None and job.envelope.verb in BREAKABLE:
            job.task.cancel()
        if job.session is not None:
            job.session.hang_up("cancelled while it ran")

    def bring_back(self, nonce: str) -> None:
        """Echo a canary by the way that commands take: a free slot, and the journal's thread. Of several that wait
        behind something that hangs, the newest comes back."""
        self._nonce = nonce
        if self._echo is None or self._echo.done():
            self._echo = asyncio.create_task(self._bring_back(), name="canary")

    async def _bring_back(self) -> None:
        echoed = None
        while echoed != self._nonce:
            try:
                async with self._slots:
                    await self._journal.depth()
            except JournalError as error:
                log.error("a canary does not come back: %s", error)
                return
            echoed = self._nonce
            self.send(ConnectRequest(canary_echo=CanaryEcho(nonce=echoed)))

    async def drain(self, within: float, reason: str) -> bool:
        """Begin nothing more, and wait for what runs, in seconds; whether all of it ended. Every new command is
        refused with this reason."""
        self._closing = reason
        for job in self._jobs.values():
            job.cancelled = job.cancelled or _nothing_done(reason)
            if job.session is not None:
                job.session.hang_up(reason)
        if work := self._tasks | self._sessions:
            await asyncio.wait(work, timeout=within)
        return not self._tasks and not self._sessions

    async def idle(self, within: float) -> bool:
        """Wait until nothing runs but exec sessions, in seconds; whether that came."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)
        return not self._tasks

    async def close(self) -> None:
        """Let go of what still runs: the journal has it, and the next life of the agent settles it."""
        tasks = self._tasks | self._sessions | ({self._echo} if self._echo is not None else set())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _queue(self, job: Job) -> None:
        envelope = job.envelope
        self._jobs[envelope.command] = job
        if envelope.verb == VERB_EXEC:
            # It may take hours, and the container's other commands go on meanwhile.
            session = asyncio.create_task(self._attend(job), name=f"exec {envelope.command}")
            self._sessions.add(session)
            session.add_done_callback(self._sessions.discard)
            return
        name = envelope.container or f"image {envelope.arguments.image}"
        lane = self._lanes.get(name)
        if lane is not None:
            lane.append(job)
            return
        self._lanes[name] = deque([job])
        task = asyncio.create_task(self._work(name), name=f"lane {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, job: Job) -> None:
        try:
            await self._finish(job)
        except Exception:
            log.exception("%s: a fault of the agent", words(job.envelope))
        finally:
            self._jobs.pop(job.envelope.command, None)

    async def _work(self, name: str) -> None:
        """One container's commands, one after another."""
        lane = self._lanes[name]
        while lane:
            job = lane[0]
            async with self._slots:
                try:
                    await self._finish(job)
                except Exception:
                    # The lane must go on; the journal keeps the command, and the next life settles it.
                    log.exception("%s: a fault of the agent", words(job.envelope))
            lane.popleft()
            self._jobs.pop(job.envelope.command, None)
        del self._lanes[name]

    async def _finish(self, job: Job) -> None:
        began = time.monotonic()
        try:
            if job.begun is None:
                verdict, error = await self._execute(job)
            else:
                log.info("%s: was under way when the agent ended; looking for evidence", words(job.envelope))
                verdict, error = await self._investigate(job, "the agent ended")
        except Exception as fault:
            # Whoever waits for it is told now, and not when the agent ends.
            log.exception("%s: a fault of the agent", words(job.envelope))
            verdict = Verdict(COMMAND_STATE_UNKNOWN, StatusCode.INTERNAL, "a fault of the agent")
            error = f"what became of it is not known, for a fault of the agent: {fault!r}"
        await self._reports.settle(
            job.envelope,
            verdict,
            error,
            seconds=time.monotonic() - began,
            container_id=job.before.id if job.before is not None else job.made,
            summary=job.session.summary if job.session is not None else None,
        )

    async def _execute(self, job: Job) -> tuple[Verdict, str]:
        """The verdict, and what went wrong."""
        try:
            return await self._conclude(job, self._act(job))
        except TimeoutError:
            return await self._overrun(job)
        finally:
            if job.task is not None and not job.task.done():
                job.task.cancel()
                await asyncio.wait([job.task])

    async def _act(self, job: Job) -> tuple[Verdict, str]:
        """Nothing touches the runtime before the journal has its start. Raises TimeoutError when its time is over."""
        async with asyncio.timeout(job.left):
            job.check_wanted()
            if job.start is None:
                await self._begin(job)
            if job.envelope.verb != VERB_EXEC:
                await self._perform(job)
                return DONE, ""
        return await self._converse(job)

    async def _conclude(self, job: Job, acting: Awaitable[tuple[Verdict, str]]) -> tuple[Verdict, str]:
        """The verdict on what this came to; raises TimeoutError."""
        try:
            return await acting
        except TimeoutError:
            raise
        except Cancelled as error:
            return Verdict(COMMAND_STATE_CANCELLED, error.code, EXECUTED), str(error)
        except (RuntimeFailure, JournalError) as error:
            return Verdict(COMMAND_STATE_FAILED, error.code, EXECUTED), str(error)
        except InDoubt as error:
            log.warning("%s: %s; looking for evidence", words(job.envelope), error)
            return await self._investigate(job, str(error))
        except Exception as error:
            log.exception("%s: a fault of the agent", words(job.envelope))
            if job.start is not None:
                return await self._investigate(job, f"a fault of the agent: {error!r}")
            verdict = Verdict(COMMAND_STATE_FAILED, StatusCode.INTERNAL, EXECUTED)
            return verdict, f"a fault of the agent: {error!r}; nothing was done"

    async def _converse(self, job: Job) -> tuple[Verdict, str]:
        if len(self._sessions) > SESSIONS_MAX:
            words = f"{SESSIONS_MAX} exec sessions are open on this agent; nothing was done"
            raise RuntimeFailure(words, StatusCode.RESOURCE_EXHAUSTED)
        assert job.before is not None, "it acts on a container"
        session = self._session_of(job)
        # It was cancelled between its beginning and this line.
        job.check_wanted()
        return await session.run(job.before, job.left)

    def _session_of(self, job: Job) -> ExecSession:
        if job.session is None:
            assert self._carriers is not None, "an agent that executes has them"
            job.session = ExecSession(self._runtime, self._journal, self._carriers, job.envelope)
        return job.session

    async def _begin(self, job: Job) -> None:
        """Look at the container, and journal that it begins."""
        envelope = job.envelope
        before = await self._runtime.get(envelope.container) if envelope.verb not in MAKING else None
        if envelope.HasField("precondition"):
            check_precondition(envelope.precondition, before or await self._present(envelope))
        job.check_wanted()
        start = Start(before)
        await self._journal.begin(envelope.command, start)
        job.start = start

    async def _investigate(self, job: Job, why: str) -> tuple[Verdict, str]:
        """The verdict by evidence: it may have acted, and it must not act again."""
        assert job.start is not None, "it did not begin"
        if job.envelope.verb == VERB_EXEC:
            session = self._session_of(job)
            handle = job.begun.handle if job.begun is not None else session.handle
            return await session.investigate(handle, job.left, why)
        verdict = await self._inquiry.settle(job.envelope, job.before, job.start.at_ns)
        return verdict, "" if verdict.state == COMMAND_STATE_SUCCEEDED else f"{why}: {verdict.words}"

    async def _overrun(self, job: Job) -> tuple[Verdict, str]:
        """Its time is over. FAILED with DEADLINE_EXCEEDED is said of what was not begun, or could be broken off; for
        the rest the runtime has a while to answer, and what it does not decide then it may still do: UNKNOWN."""
        envelope = job.envelope
        limit = f"within {envelope.execute_within.ToTimedelta().total_seconds():g} s"
        failed = Verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, EXECUTED)
        if job.task is None:
            return failed, f"not begun {limit}; nothing was done"
        if envelope.verb in BREAKABLE:
            job.task.cancel()
            await asyncio.wait([job.task])
            if job.task.cancelled():
                return failed, f"not done {limit}; it was broken off"
        assert job.start is not None, "it began"
        verdict = await self._inquiry.look(envelope, job.before, job.start.at_ns)
        if verdict.state != COMMAND_STATE_SUCCEEDED:
            with contextlib.suppress(TimeoutError):
                return await self._conclude(job, self._hear(job))
            verdict = await self._inquiry.look(envelope, job.before, job.start.at_ns)
        if verdict.state == COMMAND_STATE_SUCCEEDED:
            return verdict, ""
        code = StatusCode.UNAVAILABLE if verdict.code == StatusCode.UNAVAILABLE else StatusCode.UNKNOWN
        unknown = Verdict(COMMAND_STATE_UNKNOWN, code, verdict.words)
        return unknown, f"not done {limit}, and the runtime may still do it: {verdict.words}"

    async def _hear(self, job: Job) -> tuple[Verdict, str]:
        """The late answer; raises TimeoutError when it does not come."""
        assert job.task is not None, "it began"
        async with asyncio.timeout(self._inquiry.bound(job.envelope)):
            job.made = await asyncio.shield(job.task)
        return DONE, ""

    async def _perform(self, job: Job) -> None:
        """In a task of its own: to cancel what can be broken off must not cancel the lane, and what cannot must not
        be cut off when its time is over, while its answer may still come."""
        if job.left is not None and job.left <= 0:
            raise TimeoutError
        job.task = asyncio.ensure_future(perform(self._runtime, job.envelope, job.before))
        try:
            job.made = await asyncio.shield(job.task)
        except asyncio.CancelledError:
            if not job.task.cancelled():
                raise
            raise Cancelled("cancelled while it ran") from None

    async def _present(self, envelope: Envelope) -> Container | None:
        return await find(self._runtime, envelope.container) if envelope.container else None


def _nothing_done(reason: str) -> str:
    return f"{reason}; nothing was done" if reason else ""
