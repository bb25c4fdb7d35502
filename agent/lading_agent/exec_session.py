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
# A program that was hung up because its time was over gets so long to end.
HANG_UP_WITHIN = 8.0
LOOK_AGAIN_AFTER = 0.05
LOOK_AGAIN_AFTER_MAX = 5.0
# A runtime that does not answer is asked for so long, each time for some seconds.
PATIENCE = 60.0
LOOK_WITHIN = 5.0
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
        self._program: Program | None = None
        self._why = ""
        self._hanging_up: asyncio.Task[None] | None = None
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
        carrier = self._carriers.carry(self._command)
        try:
            return await self._run(carrier, before, limit)
        except CannotRun as error:
            self._sum_up(error.exit_code)
            return Verdict(COMMAND_STATE_FAILED, error.code, "executed"), str(error)
        except (Cancelled, NobodyReads) as error:
            return Verdict(COMMAND_STATE_CANCELLED, StatusCode.CANCELLED, "executed"), str(error)
        except InDoubt as error:
            return await self.investigate(self.handle, limit, str(error))
        except TimeoutError:
            return await self.investigate(self.handle, 0.0, f"it did not begin within {self._within:g} s")
        except AgentError as error:
            if self._program is not None:
                return await self.investigate(self.handle, limit, str(error))
            return Verdict(COMMAND_STATE_FAILED, error.code, "executed"), str(error)
        finally:
            if self._program is not None:
                await self._program.close()
            if not carrier.ended:
                await carrier.end()

    async def _run(self, carrier: Carrier, before: Container, limit: float | None) -> tuple[Verdict, str]:
        try:
            await carrier.attached(ATTACH_WITHIN)
        except NobodyReads as error:
            raise Cancelled(f"its caller had gone before it began: {error}; nothing was done") from None
        self._check_wanted()
        began = time.monotonic()
        async with asyncio.timeout(limit):
            self.handle = await self._runtime.prepare_program(before.id, self._spec, self._command)
            # A crash before this line has run nothing; one after it finds the program by this.
            await self._journal.keep_handle(self._command, self.handle)
            self._check_wanted()
            self._program = await self._runtime.start_program(before.id, self.handle, self._spec)
        feeding = asyncio.create_task(self._feed(carrier, self._program))
        try:
            async with asyncio.timeout(limit - (time.monotonic() - began) if limit is not None else None):
                code = await self._follow(carrier, self._program)
        except TimeoutError:
            return await self._overrun(self._program, carrier)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        self._sum_up(code)
        if self._why:
            words = f"{self._why}; the program was told, and ended with {code}"
            return Verdict(COMMAND_STATE_CANCELLED, StatusCode.CANCELLED, "executed"), words
        return Verdict(COMMAND_STATE_SUCCEEDED, StatusCode.OK, "executed"), ""

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
        """Its time is over: it is hung up, and how that went is said."""
        words = f"not done within {self._within:g} s"
        await program.hang_up()
        with contextlib.suppress(TimeoutError, AgentError):
            async with asyncio.timeout(HANG_UP_WITHIN):
                code = await self._follow(carrier, program)
                self._sum_up(code)
                failed = Verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, "executed")
                return failed, f"{words}; it was hung up, and ended with {code}"
        self._sum_up(None)
        failed = Verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, "it still ran when it was left alone")
        return failed, f"{words}; it was hung up, and still runs"

    def _sum_up(self, code: int | None) -> None:
        self.summary = ExecSummary(
            exit_code=code or 0,
            still_runs=code is None,
            input_bytes=self._input_bytes,
            output_bytes=self._output_bytes,
            output_sha256=self._digest.digest(),
            output_head=bytes(self._head),
        )

    async def investigate(self, handle: str, limit: float | None, why: str) -> tuple[Verdict, str]:
        """The verdict by evidence: look for the program until it has ended, at most for `limit` seconds; it is never
        run again, and nobody reads what it writes."""
        if not handle:
            return Verdict(COMMAND_STATE_FAILED, StatusCode.ABORTED, "it had not begun"), f"{why}; nothing was done"
        began, pause = time.monotonic(), LOOK_AGAIN_AFTER
        while True:
            try:
                async with asyncio.timeout(LOOK_WITHIN):
                    trace = await self._runtime.trace_program(handle)
            except (RuntimeFailure, InDoubt, TimeoutError) as error:
                if time.monotonic() - began > PATIENCE:
                    words = str(error) or f"the runtime did not answer within {LOOK_WITHIN:g} s"
                    return _verdict(COMMAND_STATE_UNKNOWN, StatusCode.UNAVAILABLE, words, why)
            else:
                if not trace.running:
                    break
                if limit is not None and time.monotonic() - began > limit:
                    return _verdict(COMMAND_STATE_FAILED, StatusCode.DEADLINE_EXCEEDED, trace.words, why)
            await asyncio.sleep(pause)
            pause = min(LOOK_AGAIN_AFTER_MAX, pause * 2)
        if trace.began is False:
            return _verdict(COMMAND_STATE_FAILED, StatusCode.ABORTED, trace.words, why)
        if trace.code is None:
            return _verdict(COMMAND_STATE_UNKNOWN, StatusCode.UNKNOWN, trace.words, why)
        self.summary = ExecSummary(exit_code=trace.code)
        return Verdict(COMMAND_STATE_SUCCEEDED, StatusCode.OK, f"{trace.words} with {trace.code}; {why}"), ""


def _verdict(state: CommandState.ValueType, code: StatusCode, words: str, why: str) -> tuple[Verdict, str]:
    return Verdict(state, code, words), f"{why}: {words}"
