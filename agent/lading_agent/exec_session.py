"""One exec session: a program run in a container for one caller, as a command that is journalled like every other."""

import asyncio
import contextlib
import hashlib
import logging
import time
from typing import Protocol

from grpc import StatusCode

from lading.v1.agent_link_pb2 import BulkResponse, Envelope, ExecSummary
from lading.v1.commands_pb2 import (
    COMMAND_STATE_CANCELLED,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_SUCCEEDED,
    COMMAND_STATE_UNKNOWN,
    CommandState,
)
from lading.v1.containers_pb2 import Container
from lading_agent.carrier import Carrier
from lading_agent.errors import AgentError, Cancelled, CannotRun, InDoubt, NobodyReads, RuntimeFailure
from lading_agent.evidence import Verdict
from lading_agent.journal import Journal
from lading_agent.runtimes import Program, Runtime

log = logging.getLogger(__name__)

ATTACH_WITHIN = 15.0
# A program that was hung up because its time was over gets so long to end by itself; then what can be ended is.
HANG_UP_WITHIN = 1.5
END_WITHIN = 0.5
# So long is looked for a program that is not seen to have begun. A runtime that this life of the agent asked for it may
# be slower than that.
BEGIN_WITHIN = 0.5
LOOK_AGAIN_AFTER = 0.05
LOOK_AGAIN_AFTER_MAX = 5.0
# A runtime that does not answer is asked for so long, each time for some seconds; less when its time is over.
PATIENCE = 60.0
LOOK_WITHIN = 5.0
LAST_LOOK_WITHIN = 0.7
ANSWER_WITHIN = 0.2
RECORD_BYTES_MAX = 32 * 1024


class Carriers(Protocol):
    """Who carries the bytes; see `Bulk`."""

    def carry(self, session: str) -> Carrier: ...


class ExecSession:
    """`run` it once, or `investigate` what an earlier life of the agent began. `summary` tells what is known then."""

    def __init__(self, runtime: Runtime, journal: Journal, carriers: Carriers, envelope: Envelope) -> None:
        self.summary: ExecSummary | None = None
        self._runtime, self._journal, self._carriers = runtime, journal, carriers
        self._command, self._spec = envelope.command, envelope.arguments.exec
        # What it was given in all; some of it is over when it begins.
        self._within = envelope.execute_within.ToTimedelta().total_seconds()
        self._over_at: float | None = None
        self._program: Program | None = None
        self._why = ""
        self._hanging_up: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self.handle = ""
        self._input_bytes = self._output_bytes = 0
        self._digest = hashlib.sha256()
        self._head = bytearray()

    def hang_up(self, why: str) -> None:
        """Its caller is gone, or it is cancelled: it must not begin, and if it has, it is told."""
        if not self._why:
            self._why = why
            if self._program is not None:
                self._hanging_up = asyncio.ensure_future(self._program.hang_up())

    async def run(self, before: Container, limit: float | None) -> tuple[Verdict, str]:
        """The verdict, and what went wrong. `limit` in seconds. The journal has its begin already."""
        self._over_at = None if limit is None else time.monotonic() + limit
        carrier = self._carriers.carry(self._command)
        try:
            return await self._run(carrier, before)
        except CannotRun as error:
            self.summary = self._summary(error.exit_code)
            return Verdict(COMMAND_STATE_FAILED, error.code, "executed"), str(error)
        except (Cancelled, NobodyReads) as error:
            return Verdict(COMMAND_STATE_CANCELLED, StatusCode.CANCELLED, "executed"), str(error)
        except InDoubt as error:
            return await self._look_on(str(error))
        except TimeoutError:
            return await self._look_last(f"it did not begin within {self._within:g} s")
        except AgentError as error:
            if self._program is not None:
                return await self._look_on(str(error))
            return Verdict(COMMAND_STATE_FAILED, error.code, "executed"), str(error)
        finally:
            if self._program is not None and self._closing is None:
                await self._let_go(self._program)
            if not carrier.ended:
                await carrier.end()

    def _left(self) -> float | None:
        return None if self._over_at is None else self._over_at - time.monotonic()

    async def _run(self, carrier: Carrier, before: Container) -> tuple[Verdict, str]:
        async with asyncio.timeout(self._left()):
            try:
                await carrier.attached(ATTACH_WITHIN)
            except NobodyReads as error:
                raise Cancelled(f"its caller had gone before it began: {error}; nothing was done") from None
            self._check_wanted()
            handle = await self._runtime.prepare_program(before.id, self._spec, self._command)
            # A crash before this line has run nothing; one after it finds the program by this.
            await self._journal.keep_handle(self._command, handle)
            self._check_wanted()
            self.handle = handle
            self._program = await self._runtime.start_program(before.id, handle, self._spec)
        feeding, code = asyncio.create_task(self._feed(carrier, self._program)), None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._left()):
                    code = await self._follow(carrier, self._program)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        if code is None:
            return await self._overrun(self._program, carrier)
        self.summary = self._summary(code)
        if self._why:
            return self._told(code)
        return Verdict(COMMAND_STATE_SUCCEEDED, StatusCode.OK, "executed"), ""

    def _told(self, code: int) -> tuple[Verdict, str]:
        words = f"{self._why}; the program was told, and ended with {code}"
        return Verdict(COMMAND_STATE_CANCELLED, StatusCode.CANCELLED, "executed"), words

    def _check_wanted(self) -> None:
        if self._why:
            raise Cancelled(f"{self._why}; nothing was done")

    async def _follow(self, carrier: Carrier, program: Program) -> int:
        """Bring what it writes to the caller, and read on when that one is gone, for it would wait."""
        if self._why:
            # It was hung up in the moment between.
            await program.hang_up()
        while (piece := await program.read()) is not None:
            source, data = piece
            self._output_bytes += len(data)
            self._digest.update(data)
            wanted = min(self._spec.record_bytes, RECORD_BYTES_MAX) - len(self._head)
            if wanted > 0:
                self._head += data[:wanted]
            if carrier.gone is None:
                with contextlib.suppress(NobodyReads):
                    await carrier.send(data, source)
        await carrier.end()
        return await program.end()

    async def _feed(self, carrier: Carrier, program: Program) -> None:
        """Bring what the caller sends to the program, until it is gone."""
        while (response := await carrier.receive()) is not None:
            await self._pass_on(response, program)
        if not carrier.ended:
            self.hang_up(carrier.gone or "its caller went away")

    async def _pass_on(self, response: BulkResponse, program: Program) -> None:
        if response.HasField("resize"):
            await program.resize(response.resize.rows, response.resize.columns)
        if response.input and self._spec.input:
            await program.write(response.input)
            self._input_bytes += len(response.input)
        if response.input_end and self._spec.input:
            await program.end_input()

    async def _overrun(self, program: Program, carrier: Carrier) -> tuple[Verdict, str]:
        """Its time is over: it is hung up, and ended where the runtime can; how that went is said."""
        words = f"not done within {self._within:g} s; it was hung up"
        code = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_WITHIN):
                    await program.hang_up()
                    code = await self._follow(carrier, program)
            if code is None:
                async with asyncio.timeout(END_WITHIN):
                    await self._let_go(program)
                    code = await program.end()
        except CannotRun:
            raise
        except (AgentError, TimeoutError):
            return await self._look_last(words)
        return self._ended_late(words, code)

    def _ended_late(self, words: str, code: int) -> tuple[Verdict, str]:
        self.summary = self._summary(code)
        failed = Verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, "executed")
        return failed, f"{words}, and ended with {code}"

    async def _let_go(self, program: Program) -> None:
        """Close it; what takes longer goes on by itself, for somebody waits for the answer."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(program.close())
        await asyncio.wait([self._closing], timeout=END_WITHIN)

    async def _look_on(self, why: str) -> tuple[Verdict, str]:
        """The verdict when the runtime broke off while it began or ran."""
        verdict, error = await self.investigate(self.handle, self._left(), why)
        if verdict.state == COMMAND_STATE_SUCCEEDED and self._why and self._program and self.summary:
            return self._told(self.summary.exit_code)
        return verdict, error

    async def _look_last(self, why: str) -> tuple[Verdict, str]:
        """The verdict when its time is over: nobody waits for a runtime that is slow."""
        if not self.handle:
            return Verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, "executed"), f"{why}; nothing was done"
        verdict, error = await self.investigate(self.handle, 0.0, why, LAST_LOOK_WITHIN)
        if verdict.state == COMMAND_STATE_SUCCEEDED and self._program and self.summary:
            # It was hung up because its time was over.
            return self._ended_late(why, self.summary.exit_code)
        return verdict, error

    def _summary(self, code: int | None) -> ExecSummary:
        return ExecSummary(
            exit_code=code or 0,
            still_runs=code is None,
            input_bytes=self._input_bytes,
            output_bytes=self._output_bytes,
            output_sha256=self._digest.digest(),
            output_head=bytes(self._head),
        )

    async def investigate(
        self, handle: str, limit: float | None, why: str, patience: float | None = None
    ) -> tuple[Verdict, str]:
        """The verdict by evidence: look for the program until it has ended, at most for `limit` seconds; it is never
        run again, and nobody reads what it writes. `patience`: how long a runtime is asked that does not answer."""
        if not handle:
            return Verdict(COMMAND_STATE_FAILED, StatusCode.ABORTED, "it had not begun"), f"{why}; nothing was done"
        began, pause = time.monotonic(), LOOK_AGAIN_AFTER
        patience = PATIENCE if patience is None else patience
        while True:
            left = began + patience - time.monotonic()
            try:
                async with asyncio.timeout(min(LOOK_WITHIN, max(left, ANSWER_WITHIN))):
                    trace = await self._runtime.trace_program(handle)
            except (RuntimeFailure, InDoubt, TimeoutError) as error:
                if time.monotonic() - began >= patience:
                    words = str(error) or f"the runtime did not answer within {min(LOOK_WITHIN, patience):g} s"
                    return _verdict(COMMAND_STATE_UNKNOWN, StatusCode.UNAVAILABLE, words, why)
            else:
                seconds = time.monotonic() - began
                if not trace.running and (trace.began is not False or seconds >= BEGIN_WITHIN):
                    break
                if trace.running and limit is not None and seconds > limit:
                    # What it wrote was seen by the life of the agent that follows it.
                    self.summary = self._summary(None) if self._program is not None else ExecSummary(still_runs=True)
                    return _verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, trace.words, why)
            await asyncio.sleep(pause)
            pause = min(LOOK_AGAIN_AFTER_MAX, pause * 2)
        if trace.began is False and not self.handle:
            return _verdict(COMMAND_STATE_FAILED, StatusCode.ABORTED, trace.words, why)
        # A runtime that this life asked to begin it may do so later, slow as it is.
        if trace.began is False or trace.code is None:
            return _verdict(COMMAND_STATE_UNKNOWN, StatusCode.UNKNOWN, trace.words, why)
        self.summary = self._summary(trace.code) if self._program is not None else ExecSummary(exit_code=trace.code)
        return Verdict(COMMAND_STATE_SUCCEEDED, StatusCode.OK, f"{trace.words} with {trace.code}; {why}"), ""


def _verdict(state: CommandState.ValueType, code: StatusCode, words: str, why: str) -> tuple[Verdict, str]:
    return Verdict(state, code, words), f"{why}: {words}"
