"""One life of the agent's Connect stream."""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from lading.v1.agent_link_pb2 import (
    ConnectRequest,
    ConnectResponse,
    Drain,
    Envelope,
    Goodbye,
    Growth,
    Heartbeat,
    Hello,
    StaleFrame,
    Welcome,
)
from lading.v1.agent_link_pb2_grpc import AgentLinkStub
from lading_agent.bulk import Bulk
from lading_agent.drifts import Drifts
from lading_agent.errors import AgentError, JournalError, LogRefused, SessionBroken
from lading_agent.inventory import Inventory
from lading_agent.journal import Journal
from lading_agent.link import Line, identity, watch_status
from lading_agent.reports import is_conflict
from lading_agent.runtimes import Runtime
from lading_agent.settings import Settings
from lading_agent.witness import Witness
from lading_agent.worker import Worker

log = logging.getLogger(__name__)

WELCOME_WITHIN = 60.0
HEARTBEAT_EVERY = 15.0
DRAIN_WITHIN = 10.0
LAST_WORDS_WITHIN = 5.0
ENDED_WITHIN = 30.0
"""After Goodbye; it waits its turn behind frames that a server without its database does not take."""
COSIGN_EVERY = 5.0
CAPABILITIES = ("canary", "signed-results", "ack-receipts")
CLONED, SHED = "AGENT_CLONED", "CONNECTS_SHED"

CLONED_WORDS = (
    "two agents run as this one, and the server has shut both out. Find the other, which has a copy of this one's "
    "token, stop it, and give it a token of its own (`lading token create --kind agent NAME`); then an admin lets this "
    "one in again with `lading agents unban NAME`"
)

Call = grpc.aio.StreamStreamCall[ConnectRequest, ConnectResponse]
Detail = TypeVar("Detail", ErrorInfo, RetryInfo)


@dataclass(frozen=True)
class Ending:
    """Why a session ended. `wait`: seconds that the server asked for; `slow`: it will not pass by itself; `lived`:
    there was a Welcome."""

    reason: str
    wait: float | None = None
    slow: bool = False
    lived: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a session came: the last frame of the server that was processed, in that epoch."""

    epoch: int = 0
    seq: int = 0


class Session:
    """Connect once, by `run`; frames go out in the order of `send`, at once or after Welcome."""

    def __init__(
        self,
        settings: Settings,
        boot_id: str,
        journal: Journal,
        witness: Witness,
        worker: Worker,
        runtime: Runtime,
        bulk: Bulk,
        line: Line,
        before: Progress = Progress(),
    ) -> None:
        self._settings = settings
        self._boot_id = boot_id
        self._journal = journal
        self._witness = witness
        self._worker = worker
        self._runtime = runtime
        self._bulk = bulk
        self._line = line
        self._inventory = Inventory(runtime, self.send)
        self._drifts = Drifts(runtime, journal, self.send)
        self._outbox: asyncio.Queue[ConnectRequest | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._epoch = 0
        self._sent = 0
        self._processed = 0
        # By command, the number of the frame that told its end.
        self._told: dict[str, int] = {}
        self._grown = asyncio.Event()
        self._before = before
        self._drain: Drain | None = None
        self._drained_at = 0.0
        self._hung_up = False
        self._stale: set[int] = set()
        self._call: Call | None = None
        self._fault: BaseException | None = None
        # What was skipped, by why.
        self.skipped: Counter[str] = Counter()

    def send(self, frame: ConnectRequest) -> None:
        """Takes epoch, seq and ack when it is written."""
        self._outbox.put_nowait(frame)

    @property
    def progress(self) -> Progress:
        """Of this session, or of the one before when there was no Welcome."""
        return Progress(self._epoch, self._processed) if self._epoch else self._before

    def leave(self, reason: str) -> None:
        """Say Goodbye after all that waits, and nothing after it; `run` returns when the server has ended it too. How
        long to wait for that is for the caller to say."""
        self.send(ConnectRequest(goodbye=Goodbye(reason=reason, restart_expected=True)))
        self._outbox.put_nowait(None)

    async def run(self) -> Ending:
        """From Hello to the end, which is never an exception unless cancelled."""
        # Before Hello is composed: a result that comes in between is said in both, never in neither.
        self._worker.send = self.send
        statuses: list[grpc.aio.AioRpcError] = []
        try:
            async with self._line as channel:
                self._call = call = AgentLinkStub(channel).Connect(metadata=identity(self._settings))
                statuses = watch_status(call)
                try:
                    await self._live(call)
                finally:
                    call.cancel()
                    info = read_detail(statuses[0], ErrorInfo) if statuses else None
                    self._line.kept = info is not None and info.reason == SHED
        except grpc.aio.AioRpcError as error:
            return self._ending(next(iter(statuses), error))
        except LogRefused as error:
            hint = "this agent executes nothing for it; if its database was restored: `lading agent forget-log --help`"
            return Ending(f"{error}; {hint}", slow=True, lived=True)
        except AgentError as error:
            return Ending(str(error), lived=self._epoch > 0)
        except TimeoutError:
            return Ending(f"no Welcome within {WELCOME_WITHIN:g} s")
        except asyncio.CancelledError:
            # Of the call, by a part that failed or at the end of a drain; or of this task, by who runs it.
            if self._fault is not None:
                return self._fail(self._fault)
            if not self._hung_up:
                raise
        except Exception as error:
            return self._fail(error)
        finally:
            self._worker.send = lambda frame: None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._call = None
        return self._ending(None)

    async def _live(self, call: Call) -> None:
        async with asyncio.timeout(WELCOME_WITHIN):
            await self._write(call, ConnectRequest(hello=await self._compose_hello()))
            first = await call.read()
        if not isinstance(first, ConnectResponse) or first.WhichOneof("frame") != "welcome":
            raise SessionBroken("the server did not say Welcome first")
        await self._enter(first)
        self._start(self._write_frames(call))
        self._start(self._beat(first.welcome))
        self._start(self._inventory.run())
        self._start(self._drifts.run())
        self._start(self._cosign())
        try:
            while isinstance(frame := await call.read(), ConnectResponse):
                await self._take(frame)
        except LogRefused as error:
            await self._break_off(call, str(error))
            raise

    async def _break_off(self, call: Call, reason: str) -> None:
        """Tell a server that cannot be believed why, and take nothing from it any more."""
        self.leave(reason)
        with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
            async with asyncio.timeout(LAST_WORDS_WITHIN):
                while isinstance(await call.read(), ConnectResponse):
                    pass

    async def _compose_hello(self) -> Hello:
        try:
            await self._journal.purge()
        except JournalError as error:
            log.error("%s", error)
        held = await self._journal.held()
        for each in held:
            # Of an older agent's journal: not signed yet.
            if each.HasField("result"):
                self._witness.sign_result(each.result)
        hello = Hello(
            version=version("lading"),
            boot_id=self._boot_id,
            journal_id=self._journal.id,
            epoch=self._journal.epoch,
            held=held,
            capabilities=CAPABILITIES,
            last_server_seq=self._before.seq if self._before.epoch == self._journal.epoch else 0,
            runtime=await self._runtime.title(),
            labels=self._settings.labels,
            tree_size=self._witness.size,
            witness_key=str(self._witness.key),
        )
        hello.agent_time.GetCurrentTime()
        return hello

    async def _enter(self, first: ConnectResponse) -> None:
        """Nobody of a lower epoch may command; the new one is on disk before anything acts on it."""
        if first.epoch < self._journal.epoch:
            raise SessionBroken(f"the server's epoch {first.epoch} is over: this agent has seen {self._journal.epoch}")
        await self._journal.raise_epoch(first.epoch)
        self._epoch, self._processed = first.epoch, first.seq
        log.info("connected to %s, epoch %d", self._settings.server, self._epoch)

    async def _take(self, frame: ConnectResponse) -> None:
        """Process one frame; it counts as processed when what it asks is durable."""
        if frame.epoch != self._epoch or frame.epoch < self._journal.epoch:
            self._refuse_stale(frame)
            return
        if frame.seq <= self._processed:
            self._skip("seen before", frame)
            return
        if frame.seq != self._processed + 1:
            raise SessionBroken(f"frame {frame.seq} came after {self._processed}: some are lost, connecting anew")
        self._drifts.acknowledged(frame.ack)
        self._receipt(*(command for command, seq in self._told.items() if seq <= frame.ack))
        kind = frame.WhichOneof("frame")
        if kind == "dispatch":
            await self._worker.receive(frame.dispatch)
        elif kind == "growth":
            await self._observe(frame.growth)
        elif kind == "canary":
            self._worker.bring_back(frame.canary.nonce)
        elif kind == "cancel":
            self._worker.cancel(frame.cancel.command)
        elif kind == "result_receipt":
            self._receipt(frame.result_receipt.command)
        elif kind == "report_full":
            self._inventory.report_full()
        elif kind == "open_bulk":
            self._bulk.open(frame.open_bulk)
        elif kind == "drain" and self._drain is None:
            self._drain, self._drained_at = frame.drain, time.monotonic()
            self._start(self._follow_drain(frame.drain))
        else:
            self._skip("unknown", frame)
        if kind in ("dispatch", "growth") and self._witness.size > 0:
            self._grown.set()
        self._processed = frame.seq

    def _receipt(self, *commands: str) -> None:
        """Their ends are recorded: the server says so of each, or, when it has much to say, by its ack alone."""
        for command in commands:
            self._told.pop(command, None)
            self._journal.receipt(command)

    async def _observe(self, growth: Growth) -> None:
        """Check what the server shows of the log, and keep it; raises LogRefused, with the evidence in the journal."""
        try:
            await self._journal.keep(self._witness.check(growth))
        except LogRefused as error:
            log.error("the log: refused: %s", error)
            with contextlib.suppress(JournalError):
                await self._journal.refuse("log", "", str(error), ConnectResponse(growth=growth).SerializeToString())
            raise

    async def _cosign(self) -> None:
        """The newest tree that is on disk, at most every 5 s."""
        while True:
            await self._grown.wait()
            self._grown.clear()
            self.send(ConnectRequest(witness_signature=self._witness.cosign()))
            await asyncio.sleep(COSIGN_EVERY)

    def _refuse_stale(self, frame: ConnectResponse) -> None:
        """Whoever sent it was paused, or the network kept it: it commands nobody any more, and the log is to know."""
        self._skip("of another epoch", frame)
        kind = frame.WhichOneof("frame") or ""
        if frame.epoch > self._epoch or (kind != "dispatch" and frame.epoch in self._stale):
            return
        self._stale.add(frame.epoch)
        command = ""
        if kind == "dispatch":
            with contextlib.suppress(DecodeError):
                command = Envelope.FromString(frame.dispatch.envelope).command
        stale = StaleFrame(epoch=frame.epoch, seq=frame.seq, kind=kind, command=command)
        self.send(ConnectRequest(stale_frame=stale))

    def _skip(self, why: str, frame: ConnectResponse) -> None:
        self.skipped[why] += 1
        if self.skipped[why] == 1:
            log.warning("skipped frame %d of epoch %d: %s", frame.seq, frame.epoch, why)

    async def _follow_drain(self, drain: Drain) -> None:
        log.info("the server asks to connect anew: %s", drain.reason or "no reason given")
        await self._worker.idle(DRAIN_WITHIN)
        self.leave(f"drained: {drain.reason}")
        await asyncio.sleep(ENDED_WITHIN)
        self._hang_up()

    def _hang_up(self) -> None:
        """End a session that the server does not end: a status can be lost, and nothing else would come after it, as
        keepalive finds the server alive. What is being taken is still taken: only the reading is broken off."""
        log.warning("the server has not ended the session %g s after Goodbye: leaving", ENDED_WITHIN)
        self._hung_up = True
        if self._call is not None:
            self._call.cancel()

    async def _beat(self, welcome: Welcome) -> None:
        """Heartbeats, each a little off, so that a fleet's do not come together."""
        every = welcome.heartbeat.ToTimedelta().total_seconds() or HEARTBEAT_EVERY
        depth = 0
        while True:
            await asyncio.sleep(every * random.uniform(0.9, 1.1))
            try:
                depth = await self._journal.depth()
            except JournalError as error:
                log.error("%s", error)
            heartbeat = Heartbeat(journal_depth=depth)
            heartbeat.agent_time.GetCurrentTime()
            self.send(ConnectRequest(heartbeat=heartbeat))

    async def _write_frames(self, call: Call) -> None:
        while (frame := await self._outbox.get()) is not None:
            await self._write(call, frame)
        await call.done_writing()

    async def _write(self, call: Call, frame: ConnectRequest) -> None:
        self._sent += 1
        frame.epoch, frame.seq, frame.ack = self._epoch, self._sent, self._processed
        if frame.HasField("result") and not is_conflict(frame.result):
            self._told[frame.result.command] = self._sent
        # A call that is over refuses to write; reading it says why it is.
        with contextlib.suppress(asyncio.InvalidStateError):
            await call.write(frame)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._check)
        self._tasks.append(task)

    def _check(self, task: asyncio.Task[None]) -> None:
        """A part that failed ends the session: without heartbeats, say, it would only seem to live."""
        error = None if task.cancelled() else task.exception()
        if error is None or isinstance(error, grpc.aio.AioRpcError):
            return
        self._fault = error
        if self._call is not None:
            self._call.cancel()

    def _fail(self, fault: BaseException) -> Ending:
        """It ends this session, and not the agent: commands go on, and the next session tells of them."""
        log.error("a fault of the agent", exc_info=fault)
        return Ending(f"a fault of the agent: {fault!r}", lived=self._epoch > 0)

    def _ending(self, error: grpc.aio.AioRpcError | None) -> Ending:
        lived = self._epoch > 0
        if self._drain is not None:
            slot = self._drain.reconnect_after.ToTimedelta().total_seconds()
            # The slot was assigned when the Drain was sent: what was finished meanwhile is no reason to be late.
            wait = max(0.0, slot - (time.monotonic() - self._drained_at)) if slot else None
            return Ending(f"drained: {self._drain.reason}", wait, lived=lived)
        if error is None:
            return Ending("the server ended the session", lived=lived)
        return read_ending(error, lived)


def read_ending(error: grpc.aio.AioRpcError, lived: bool) -> Ending:
    """What the status of a session means for the next one."""
    code, details = error.code(), error.details() or ""
    retry, info = read_detail(error, RetryInfo), read_detail(error, ErrorInfo)
    wait = retry.retry_delay.ToTimedelta().total_seconds() if retry is not None else None
    if wait is not None and wait <= 0:
        wait = None  # it leaves it to the agent, which would else connect without a pause
    if info is not None and info.reason == CLONED:
        return Ending(f"{CLONED_WORDS}; the server says: {details}", wait, slow=True, lived=lived)
    if code == StatusCode.UNAUTHENTICATED:
        return Ending(f"the server does not accept this agent's token: {details}", wait, slow=True, lived=lived)
    if code == StatusCode.PERMISSION_DENIED:
        return Ending(f"the server does not let this agent in: {details}", wait, slow=True, lived=lived)
    if code == StatusCode.FAILED_PRECONDITION:
        return Ending(f"the server does not serve this agent as it is: {details}", wait, slow=True, lived=lived)
    if code == StatusCode.ABORTED:
        words = f"a newer session of this agent took over; is another agent running with its token? {details}"
        return Ending(words, wait, slow=True, lived=lived)
    return Ending(f"{code.name}: {details}", wait, lived=lived)


def read_detail(error: grpc.aio.AioRpcError, kind: type[Detail]) -> Detail | None:
    """The detail of this kind in the status (google.rpc.Status), or None."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            details = Status.FromString(value).details
        except DecodeError:
            continue
        for each in details:
            found = kind()
            if each.Unpack(found):
                return found
    return None
