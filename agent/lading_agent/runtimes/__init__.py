"""What an agent drives: a Docker-compatible engine (`docker`) or plain processes (`process`)."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from grpc import StatusCode

from lading.v1.commands_pb2 import ContainerSpec
from lading.v1.containers_pb2 import Container, LogSource
from lading_agent.errors import RuntimeFailure

COMMAND_LABEL = "lading.command"
AGENT_LABEL = "lading.agent"


@dataclass(frozen=True)
class RuntimeEvent:
    """Something happened to a container, by whomever; `action` in the engine's words, `at_ns` since the epoch."""

    container: str
    action: str
    at_ns: int


@dataclass(frozen=True)
class LogQuery:
    """What of a log: `tail` 0 means all lines, `since_ns` 0 from the beginning."""

    follow: bool = False
    tail: int = 0
    since_ns: int = 0
    timestamps: bool = False


@dataclass(frozen=True)
class LogPiece:
    """Bytes of a log, in order; a line may be cut between pieces."""

    source: LogSource.ValueType
    data: bytes


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

    async def create(self, name: str, spec: ContainerSpec) -> None: ...

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
