"""What can go wrong in the agent: one tree. A class's docstring is its message where none is given."""

import inspect

from grpc import StatusCode


class AgentError(Exception):
    """The agent failed."""

    code = StatusCode.UNKNOWN

    def __init__(self, message: str = "", code: StatusCode | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))
        self.code = code or self.code


class SettingsError(AgentError):
    """The agent cannot run with these settings."""

    code = StatusCode.INVALID_ARGUMENT


class JournalError(AgentError):
    """The journal cannot be written; nothing was done."""

    code = StatusCode.UNAVAILABLE


class DiskFull(JournalError):
    """The journal's disk is full."""

    code = StatusCode.RESOURCE_EXHAUSTED


class SessionBroken(AgentError):
    """The server broke the protocol of a session."""


class Refused(AgentError):
    """The agent refuses this command."""

    code = StatusCode.INVALID_ARGUMENT


class Unproven(Refused):
    """The intent of this command is not proven to be in the audit log."""

    code = StatusCode.DATA_LOSS


class LogRefused(Unproven):
    """The log that the server shows does not extend the one that this agent saw."""


class Cancelled(AgentError):
    """The command was cancelled before it began; nothing was done."""

    code = StatusCode.CANCELLED


class NobodyReads(AgentError):
    """Nobody reads these bytes any more."""

    code = StatusCode.CANCELLED


class RuntimeFailure(AgentError):
    """The runtime refused or failed; it has answered, so nothing is in doubt."""


class CannotRun(RuntimeFailure):
    """The program could not be run at all."""

    code = StatusCode.FAILED_PRECONDITION

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Unreadable(RuntimeFailure):
    """The runtime says what this agent cannot read; nothing was done."""

    code = StatusCode.INTERNAL


class Unchanged(RuntimeFailure):
    """It is in that state already."""

    code = StatusCode.FAILED_PRECONDITION


class InDoubt(AgentError):
    """The runtime did not answer: whether it acted is not known."""

    code = StatusCode.UNAVAILABLE
