"""What the agent says of commands that are over: journalled first, signed, said until the server has recorded it."""

import asyncio
import logging
from collections.abc import Callable

from grpc import StatusCode

from lading.v1.agent_link_pb2 import ConnectRequest, ConnectResponse, Dispatch, Envelope, ExecSummary, Result
from lading.v1.commands_pb2 import COMMAND_STATE_REJECTED, COMMAND_STATE_SUCCEEDED, VERB_EXEC, CommandState
from lading.v1.containers_pb2 import Container
from lading_agent.errors import AgentError, JournalError, LogRefused, Unproven
from lading_agent.evidence import Verdict
from lading_agent.journal import Journal, View
from lading_agent.runtimes import Runtime, find
from lading_agent.verbs import words
from lading_agent.witness import Witness

log = logging.getLogger(__name__)

EXECUTED = "executed"
# What the server keeps of these; the signature is over what was sent.
ERROR_LENGTH_MAX, EVIDENCE_LENGTH_MAX = 4096, 256
LOOK_AFTER_WITHIN = 2.0
# At an exec session whose time is over: its caller waits for the answer, and what it ran in is as it was.
LATE_LOOK_AFTER_WITHIN = 0.3
KEEP_AGAIN_AFTER = 1.0


class Reports:
    """Says how commands ended, by `send`; what that drops is in the journal, and said in the next Hello."""

    def __init__(
        self, witness: Witness, runtime: Runtime, journal: Journal, send: Callable[[ConnectRequest], None]
    ) -> None:
        self._witness = witness
        self._runtime = runtime
        self._journal = journal
        self._send = send

    async def settle(
        self,
        envelope: Envelope,
        verdict: Verdict,
        error: str,
        *,
        seconds: float = 0.0,
        container_id: str = "",
        summary: ExecSummary | None = None,
    ) -> None:
        """Journal the end, then say it. A crash in between says it in the next Hello."""
        result = make_result(envelope.command, verdict, error)
        result.duration.FromNanoseconds(int(seconds * 1e9))
        result.container_id = container_id
        if summary is not None:
            result.exec.CopyFrom(summary)
        late = envelope.HasField("execute_within") and seconds >= envelope.execute_within.ToTimedelta().total_seconds()
        late = envelope.verb == VERB_EXEC and (late or verdict.code == StatusCode.DEADLINE_EXCEEDED)
        look_within = LATE_LOOK_AFTER_WITHIN if late else LOOK_AFTER_WITHIN
        looking = asyncio.create_task(self._look_after(envelope, look_within))
        try:
            if not container_id and (found := await looking) is not None:
                result.container_id = found.id
            await self._keep(envelope, self._witness.sign_result(result))
            if (container := await looking) is not None:
                result.container.CopyFrom(container)
        finally:
            looking.cancel()
        if verdict.state == COMMAND_STATE_SUCCEEDED:
            log.info("%s: done in %.0f ms", words(envelope), seconds * 1000)
        else:
            state = CommandState.Name(verdict.state).removeprefix("COMMAND_STATE_")
            log.warning("%s: %s %s: %s", words(envelope), state, verdict.code.name, error)
        self._send(ConnectRequest(result=result))

    async def refuse(self, dispatch: Dispatch, envelope: Envelope, view: View | None, error: AgentError) -> None:
        """Say that a command is not taken, and keep the evidence of why. `view`: what was seen of the log with it."""
        level = logging.ERROR if isinstance(error, Unproven) else logging.WARNING
        log.log(level, "%s: refused: %s", words(envelope), error)
        kind = "log" if isinstance(error, LogRefused) else "command"
        frame = ConnectResponse(dispatch=dispatch).SerializeToString()
        try:
            # For want of room nothing was wrong with the command, and what room there is has better uses.
            if not isinstance(error, JournalError):
                await self._journal.refuse(kind, envelope.command, str(error), frame, view)
            elif view is not None:
                await self._journal.keep(view)
        except JournalError as failure:
            log.error("%s", failure)
        verdict = Verdict(COMMAND_STATE_REJECTED, error.code, EXECUTED)
        result = make_result(envelope.command, verdict, str(error))
        self._send(ConnectRequest(result=self._witness.sign_result(result)))

    async def _keep(self, envelope: Envelope, result: Result) -> None:
        """Journal an end before it is said. While the disk refuses it, it is kept here and tried again, and the command
        goes on for everybody else; when the agent dies meanwhile, evidence decides."""
        refused = 0
        while True:
            try:
                await self._journal.end(result)
            except JournalError as error:
                if refused == 0:
                    log.error("%s: it has ended, and that is not said before it is journalled", words(envelope))
                    log.error("%s; trying again every %g s", error, KEEP_AGAIN_AFTER)
                refused += 1
                await asyncio.sleep(KEEP_AGAIN_AFTER)
            else:
                if refused:
                    log.info("%s: its end is journalled now", words(envelope))
                return

    async def _look_after(self, envelope: Envelope, within: float) -> Container | None:
        """The container as it is now, within seconds; asked while the journal writes, so that it costs no time."""
        if not envelope.container:
            return None
        try:
            async with asyncio.timeout(within):
                return await find(self._runtime, envelope.container)
        except (AgentError, TimeoutError):
            return None
        except Exception:
            # What has ended is told without it.
            log.exception("%s: a fault of the agent, looking at the container", words(envelope))
            return None


def make_result(command: str, verdict: Verdict, error: str) -> Result:
    """The end of a command, without its signature."""
    code: StatusCode = verdict.code
    result = Result(
        command=command,
        state=verdict.state,
        code=code.value[0],
        error=error[:ERROR_LENGTH_MAX],
        evidence=verdict.words[:EVIDENCE_LENGTH_MAX],
    )
    result.agent_time.GetCurrentTime()
    return result


def is_conflict(result: Result) -> bool:
    """Whether it refuses other content under the id of a command that goes on: then it is not that command's end."""
    return result.state == COMMAND_STATE_REJECTED and result.code == int(StatusCode.ALREADY_EXISTS.value[0])
