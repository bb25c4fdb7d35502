"""Executes commands: in order for one container, side by side for several, each one at most once."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from grpc import StatusCode

from lading.v1.agent_link_pb2 import Acknowledge, ConnectRequest, ConnectResponse, Dispatch, Envelope, Result
from lading.v1.commands_pb2 import (
    COMMAND_STATE_CANCELLED,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_SUCCEEDED,
    CommandState,
    Precondition,
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
    Unproven,
)
from lading_agent.evidence import Verdict
from lading_agent.inquiry import Inquiry
from lading_agent.journal import Entry, Journal, View
from lading_agent.runtimes import Runtime, find
from lading_agent.verbs import BREAKABLE, MAKING, perform, words
from lading_agent.witness import Witness

log = logging.getLogger(__name__)

# Commands that run at once.
WINDOW = 64
LOOK_AFTER_WITHIN = 2.0
EXECUTED = "executed"
DONE = Verdict(COMMAND_STATE_SUCCEEDED, StatusCode.OK, EXECUTED)


@dataclass
class Job:
    """A journalled command on its way. `begun`, from the journal, is one that a crash interrupted."""

    envelope: Envelope
    begun: Entry | None = None
    # The container just before.
    before: Container | None = None
    received: float = field(default_factory=time.monotonic)
    # Why it must not begin any more.
    cancelled: str = ""
    task: asyncio.Task[None] | None = None


class Worker:
    """The agent's hands. `send` takes frames for the session of the moment; what it drops is in the journal."""

    def __init__(self, witness: Witness, runtime: Runtime, journal: Journal, inquiry: Inquiry | None = None) -> None:
        self.send: Callable[[ConnectRequest], None] = lambda frame: None
        self._witness = witness
        self._runtime = runtime
        self._journal = journal
        self._inquiry = inquiry or Inquiry(runtime)
        self._slots = asyncio.Semaphore(WINDOW)
        self._jobs: dict[str, Job] = {}
        self._lanes: dict[str, deque[Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = ""

    async def recover(self) -> None:
        """Settle what the last life of the agent left: never by executing it."""
        for entry in await self._journal.unfinished():
            if entry.stage == "received":
                # Its stage says that the runtime was not touched for it.
                verdict = Verdict(COMMAND_STATE_CANCELLED, StatusCode.ABORTED, "journal")
                await self._settle(Job(entry.envelope), verdict, "the agent ended before it began; nothing was done")
            else:
                self._queue(Job(entry.envelope, begun=entry, before=entry.before))

    async def receive(self, dispatch: Dispatch) -> None:
        """Take a command: when this returns, it is journalled and acknowledged, or refused.

        Raises LogRefused, after refusing it, when the log that it came with does not extend the one this agent saw;
        SessionBroken, and it is neither taken nor refused, when frames before it were lost.
        """
        envelope, view = read_envelope(dispatch), None
        try:
            view = self._witness.check(dispatch.growth)
            admit(dispatch, envelope, view.tree, self._witness.organization, self._witness.agent)
            # What was seen of the log is on disk together with the command, before anything acts on it.
            take = self._journal.find if self._closing else self._journal.receive
            known = await take(envelope, view)
            if known is None and self._closing:
                raise Refused(self._closing, StatusCode.UNAVAILABLE)
            if known is not None and known.envelope != envelope:
                raise Refused("another command had this id", StatusCode.ALREADY_EXISTS)
        except (Refused, JournalError) as error:
            await self._refuse(dispatch, envelope, view, error)
            if isinstance(error, LogRefused):
                raise
            return
        if known is None:
            self._queue(Job(envelope))
        if known is not None and known.result is not None:
            log.info("%s: a duplicate, answered from the journal", words(envelope))
            self.send(ConnectRequest(result=known.result))
            return
        acknowledge = Acknowledge(command=envelope.command)
        acknowledge.agent_time.GetCurrentTime()
        self.send(ConnectRequest(acknowledge=acknowledge))

    def cancel(self, command: str) -> None:
        """Stop it if it has not begun; one that has is broken off where that leaves nothing half-done."""
        job = self._jobs.get(command)
        if job is None:
            return
        job.cancelled = job.cancelled or "cancelled before it began; nothing was done"
        if job.task is not None and job.envelope.verb in BREAKABLE:
            job.task.cancel()

    async def drain(self, within: float, reason: str) -> bool:
        """Begin nothing more, and wait for what runs, in seconds; whether all of it ended. Every new command is
        refused with this reason."""
        self._closing = reason
        for job in self._jobs.values():
            job.cancelled = job.cancelled or f"{reason}; nothing was done"
        return await self.idle(within)

    async def idle(self, within: float) -> bool:
        """Wait until nothing runs, in seconds; whether that came."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)
        return not self._tasks

    async def close(self) -> None:
        """Let go of what still runs: the journal has it, and the next life of the agent settles it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _queue(self, job: Job) -> None:
        envelope = job.envelope
        self._jobs[envelope.command] = job
        name = envelope.container or f"image {envelope.arguments.image}"
        lane = self._lanes.get(name)
        if lane is not None:
            lane.append(job)
            return
        self._lanes[name] = deque([job])
        task = asyncio.create_task(self._work(name), name=f"lane {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        if job.begun is None:
            verdict, error = await self._execute(job)
        else:
            log.info("%s: was under way when the agent ended; looking for evidence", words(job.envelope))
            verdict, error = await self._investigate(job, (job.begun.executing_at or 0) * 1000, "the agent ended")
        await self._settle(job, verdict, error, time.monotonic() - began)

    async def _execute(self, job: Job) -> tuple[Verdict, str]:
        """The verdict, and what went wrong. Nothing touches the runtime before `begin` has returned."""
        envelope = job.envelope
        limit = envelope.execute_within.ToTimedelta().total_seconds() if envelope.HasField("execute_within") else None
        began_ns = 0
        try:
            async with asyncio.timeout(None if limit is None else job.received + limit - time.monotonic()):
                _check_cancelled(job)
                if envelope.verb not in MAKING:
                    job.before = await self._runtime.get(envelope.container)
                if envelope.HasField("precondition"):
                    check_precondition(envelope.precondition, job.before or await self._present(envelope))
                _check_cancelled(job)
                await self._journal.begin(envelope.command, job.before)
                began_ns = time.time_ns()
                await self._perform(job)
            return DONE, ""
        except Cancelled as error:
            return Verdict(COMMAND_STATE_CANCELLED, error.code, EXECUTED), str(error)
        except (RuntimeFailure, JournalError) as error:
            return Verdict(COMMAND_STATE_FAILED, error.code, EXECUTED), str(error)
        except InDoubt as error:
            log.warning("%s: %s; looking for evidence", words(envelope), error)
            return await self._investigate(job, began_ns, str(error))
        except TimeoutError:
            return await self._overrun(job, began_ns, limit or 0.0)
        except Exception as error:
            log.exception("%s: a fault of the agent", words(envelope))
            if began_ns:
                return await self._investigate(job, began_ns, f"a fault of the agent: {error!r}")
            verdict = Verdict(COMMAND_STATE_FAILED, StatusCode.INTERNAL, EXECUTED)
            return verdict, f"a fault of the agent: {error!r}; nothing was done"

    async def _investigate(self, job: Job, began_ns: int, why: str) -> tuple[Verdict, str]:
        """The verdict by evidence: it may have acted, and it must not act again."""
        verdict = await self._inquiry.settle(job.envelope, job.before, began_ns)
        return verdict, "" if verdict.state == COMMAND_STATE_SUCCEEDED else f"{why}: {verdict.words}"

    async def _overrun(self, job: Job, began_ns: int, limit: float) -> tuple[Verdict, str]:
        """Its time is over: done after all, as far as can be seen, or FAILED with DEADLINE_EXCEEDED."""
        if not began_ns:
            verdict = Verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, EXECUTED)
            return verdict, f"not begun within {limit:g} s; nothing was done"
        verdict = await self._inquiry.look(job.envelope, job.before, began_ns)
        if verdict.state == COMMAND_STATE_SUCCEEDED:
            return verdict, ""
        failed = Verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, verdict.words)
        return failed, f"not done within {limit:g} s, the runtime may still finish it: {verdict.words}"

    async def _perform(self, job: Job) -> None:
        """What can be broken off runs in a task of its own: cancelling that must not cancel the lane."""
        doing = perform(self._runtime, job.envelope, job.before)
        if job.envelope.verb not in BREAKABLE:
            await doing
            return
        job.task = asyncio.ensure_future(doing)
        try:
            await asyncio.shield(job.task)
        except asyncio.CancelledError:
            if not job.task.cancelled():
                job.task.cancel()
                raise
            raise Cancelled("cancelled while it ran") from None

    async def _present(self, envelope: Envelope) -> Container | None:
        return await find(self._runtime, envelope.container) if envelope.container else None

    async def _settle(self, job: Job, verdict: Verdict, error: str, seconds: float = 0.0) -> None:
        """Journal the end, then say it. A crash in between says it in the next Hello."""
        result = make_result(job.envelope.command, verdict, error)
        result.duration.FromNanoseconds(int(seconds * 1e9))
        if job.before is not None:
            result.container_id = job.before.id
        container, failure = await asyncio.gather(self._look_after(job), self._end(result))
        if failure is not None:
            log.error("%s: %s", words(job.envelope), failure)
        if container is not None:
            result.container.CopyFrom(container)
            result.container_id = container.id
        if verdict.state == COMMAND_STATE_SUCCEEDED:
            log.info("%s: done in %.0f ms", words(job.envelope), seconds * 1000)
        else:
            state = CommandState.Name(verdict.state).removeprefix("COMMAND_STATE_")
            log.warning("%s: %s %s: %s", words(job.envelope), state, verdict.code.name, error)
        self.send(ConnectRequest(result=result))

    async def _end(self, result: Result) -> JournalError | None:
        """A result is true even when the journal cannot keep it: it is said all the same, and found again by evidence
        after a crash."""
        try:
            await self._journal.end(result)
        except JournalError as error:
            return error
        return None

    async def _look_after(self, job: Job) -> Container | None:
        """The container as it is now; asked while the journal writes, so that it costs no time."""
        try:
            async with asyncio.timeout(LOOK_AFTER_WITHIN):
                return await self._present(job.envelope)
        except (AgentError, TimeoutError):
            return None

    async def _refuse(self, dispatch: Dispatch, envelope: Envelope, view: View | None, error: AgentError) -> None:
        level = logging.ERROR if isinstance(error, Unproven) else logging.WARNING
        log.log(level, "%s: refused: %s", words(envelope), error)
        kind = "log" if isinstance(error, LogRefused) else "command"
        frame = ConnectResponse(dispatch=dispatch).SerializeToString()
        try:
            await self._journal.refuse(kind, envelope.command, str(error), frame, view)
        except JournalError as failure:
            log.error("%s", failure)
        verdict = Verdict(COMMAND_STATE_REJECTED, error.code, EXECUTED)
        self.send(ConnectRequest(result=make_result(envelope.command, verdict, str(error))))


def _check_cancelled(job: Job) -> None:
    if job.cancelled:
        raise Cancelled(job.cancelled)


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


def make_result(command: str, verdict: Verdict, error: str) -> Result:
    result = Result(
        command=command,
        state=verdict.state,
        code=verdict.code.value[0],
        error=error,
        evidence=verdict.words,
    )
    result.agent_time.GetCurrentTime()
    return result
