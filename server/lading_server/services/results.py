"""What agents say became of commands, and whether it is theirs: the signature of each result is checked and kept."""

import base64
from dataclasses import asdict
from typing import Any

from lading.transparency import note
from lading.transparency.result import InvalidResult, Statement, verify_result
from lading.v1 import agent_link_pb2
from lading_server import errors
from lading_server.commands import State
from lading_server.ends import End
from lading_server.errors import Code
from lading_server.services.resources import text, time_of
from lading_server.sessions import SIGNED_RESULTS

AGENT_STATES: frozenset[int] = frozenset(
    {State.SUCCEEDED, State.FAILED, State.REJECTED, State.CANCELLED, State.UNKNOWN}
)


def witness_of(text: str, organization: str, agent: str) -> note.Key | None:
    """The agent's key as a witness, None without one. Raises InvalidArgument for one that is not its own."""
    if not text:
        return None
    try:
        key = note.parse_key(text)
    except note.InvalidNote as failure:
        raise errors.InvalidArgument(f"hello.witness_key: {failure}") from failure
    if key.algorithm != note.COSIGNATURE or key.name != f"{organization}/{agent}":
        raise errors.InvalidArgument(f"hello.witness_key must be a cosignature key named {organization}/{agent}")
    return key


def code_of(number: int) -> Code:
    """The code that an agent says; one that nobody knows is UNKNOWN."""
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN


def end_of(
    result: agent_link_pb2.Result,
    organization: str,
    agent: str,
    key: note.Key | None,
    capabilities: frozenset[str] = frozenset(),
) -> End:
    """What an agent says became of a command.

    Raises InvalidArgument for what is no end, and for an end that is not signed by the `key` of an agent that signs.
    """
    if result.state not in AGENT_STATES:
        raise errors.InvalidArgument(f"{result.state} is not the state of a command that has ended")
    signature = None
    if SIGNED_RESULTS in capabilities:
        signature = signature_of(result, organization, agent, key)
    state, code = State(result.state), code_of(result.code)
    if state is State.SUCCEEDED:
        code = Code.OK
    elif code is Code.OK:
        code = Code.UNKNOWN
    return End(
        state,
        code,
        text(result.error, 4096),
        text(result.evidence, 256),
        text(result.container_id, 128),
        time_of(result, "agent_time"),
        time_of(result, "duration"),
        exit_code=exit_code_of(result),
        session=exec_of(result.exec) if result.HasField("exec") else None,
        signature=signature,
    )


def signature_of(result: agent_link_pb2.Result, organization: str, agent: str, key: note.Key | None) -> dict[str, Any]:
    """The signature with what was signed, so that anybody can check it again. Raises InvalidArgument."""
    ran = result.exec if result.HasField("exec") else None
    statement = Statement(
        organization,
        agent,
        result.command,
        State(result.state).name,
        result.code,
        result.error,
        result.evidence,
        result.container_id,
        exit_code=exit_code_of(result),
        output_sha256=b"" if ran is None else ran.output_sha256,
        output_bytes=0 if ran is None else ran.output_bytes,
    )
    try:
        if key is None:
            raise InvalidResult(f"the result of command {result.command} is signed, and the agent showed no key")
        verify_result(statement, result.signature, key)
    except InvalidResult as failure:
        raise errors.InvalidArgument(f"a result was not taken: {failure}") from failure
    signed = {name: value for name, value in asdict(statement).items() if value not in (None, b"")}
    if ran is None:
        del signed["output_bytes"]
    else:
        signed["output_sha256"] = base64.b64encode(ran.output_sha256).decode()
    return {"signature": base64.b64encode(result.signature).decode(), "key": str(key), "signed": signed}


def exit_code_of(result: agent_link_pb2.Result) -> int | None:
    """Of the program that an exec session ran; None when there was none, or it had not ended."""
    return result.exec.exit_code if result.HasField("exec") and not result.exec.still_runs else None


def exec_of(ran: agent_link_pb2.ExecSummary) -> dict[str, Any]:
    """What is recorded of an exec session."""
    ended: dict[str, Any] = {} if ran.still_runs else {"exit_code": ran.exit_code}
    if not ran.output_sha256:
        # Its agent ended before it did: nobody saw what it wrote.
        return ended
    found: dict[str, Any] = {
        **ended,
        "input_bytes": ran.input_bytes,
        "output_bytes": ran.output_bytes,
        "output_sha256": ran.output_sha256.hex(),
    }
    if ran.output_head:
        found["output_head"] = text(ran.output_head.decode(errors="replace"), 32 * 1024)
    return found
