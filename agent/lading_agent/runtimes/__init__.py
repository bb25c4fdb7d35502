"""What an agent drives: a Docker-compatible engine (`docker`) or plain processes (`process`)."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from grpc import StatusCode

from lading.v1.commands_pb2 import ContainerSpec, ExecSpec
from lading.v1.containers_pb2 import Container, LogSource
from lading_agent.errors import RuntimeFailure

COMMAND_LABEL = "lading.command"
AGENT_LABEL = "lading.agent"


@dataclass(frozen=True)
class RuntimeEvent:
    """Something happened to a container, by whomever; `action` in the engine's words, `at_ns` since the epoch. `id` of
    the container and `attributes`, where the engine says them."""

    container: str
    action: str
    at_ns: int
    id: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LogQuery:
    """What of a log: `tail` 0 means all lines, `since_ns` 0 from the beginning; `after`, the position of a piece, means
    to go on behind it, and then neither of them counts."""

    follow: bool = False
    tail: int = 0
    since_ns: int = 0
    timestamps: bool = False
    after: str = ""


@dataclass(frozen=True)
class LogPiece:
    """Bytes of a log, in order; a line may be cut between pieces. `position` is where a later query can go on after
    them, empty where none can."""

    source: LogSource.ValueType
    data: bytes
    position: str = ""


@dataclass(frozen=True)
class Trace:
    """What can be seen of a program that was to run, by its handle: `began` is None where that is not known, `code` is
    the exit code, None where it runs or nobody saw it; `words` say it."""

    began: bool | None
    running: bool
    code: int | None
    words: str


class Program(Protocol):
    """A program that runs in a container, for one caller."""

    async def read(self) -> tuple[LogSource.ValueType, bytes] | None:
        """What it writes, at most 64 KB; None when no more comes. Nothing is read ahead of the caller."""

    async def write(self, data: bytes) -> None:
        """To its standard input; waits while it does not read. What it does not take any more is dropped."""

    async def end_input(self) -> None: ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def hang_up(self) -> None:
        """Its caller is gone: tell it, as far as the runtime can."""

    async def end(self) -> int:
        """Wait for its exit code; raises RuntimeFailure when it could not be run at all."""

    async def close(self) -> None:
        """Let go of it."""


class Runtime(Protocol):
    """Containers of one host. `Container.name` is the plain name; what acts takes the id that `get` gave.

    Every method raises RuntimeFailure with a gRPC code and the runtime's own words when the runtime refused, and
    InDoubt when it did not answer a request that may have acted.
    """

    async def open(self) -> None:
        """Make it ready. A runtime that does not answer yet is no error."""

    async def close(self) -> None:
        """Let go of it; containers go on."""

    async def title(self) -> str:
        """What it is, with its version where it answers: `docker 20.10.24`."""

    async def containers(self) -> list[Container]: ...

    async def get(self, name: str) -> Container:
        """Raises RuntimeFailure with NOT_FOUND when no container has exactly this name."""

    async def create(self, name: str, spec: ContainerSpec) -> str:
        """The id of the container that it made."""

    async def start(self, id: str) -> None: ...

    async def stop(self, id: str, grace: float) -> None:
        """`grace` in seconds: how long the process has to end by itself."""

    async def restart(self, id: str, grace: float) -> None: ...

    async def kill(self, id: str, signal: str) -> None: ...

    async def pause(self, id: str) -> None: ...

    async def unpause(self, id: str) -> None: ...

    async def remove(self, id: str, force: bool) -> None: ...

    async def pull(self, image: str) -> None: ...

    def logs(self, name: str, query: LogQuery) -> AsyncGenerator[LogPiece, None]: ...

    async def prepare_program(self, id: str, spec: ExecSpec, command: str) -> str:
        """Make ready to run it in a container, and run nothing: its handle, by which `trace_program` finds it."""

    async def start_program(self, id: str, handle: str, spec: ExecSpec) -> Program: ...

    async def trace_program(self, handle: str) -> Trace:
        """What became of it, also for a later life of the agent."""

    def events(self, since_ns: int) -> AsyncGenerator[RuntimeEvent, None]:
        """Events since then, and on, until closed."""

    async def history(self, name: str, since_ns: int) -> list[RuntimeEvent]:
        """What happened to that container since then, as far as the runtime remembers."""


async def find(runtime: Runtime, name: str) -> Container | None:
    """The container of this name, or None."""
    try:
        return await runtime.get(name)
    except RuntimeFailure as error:
        if error.code == StatusCode.NOT_FOUND:
            return None
        raise
