"""One RPC as the interceptors and handlers see it."""

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lading_server.event import ANONYMOUS, SYSTEM, Actor

if TYPE_CHECKING:
    from lading_server.ledger.transaction import Transaction

R = TypeVar("R")


class Repeated(Exception):
    """The call was answered before: the interceptor sends that answer."""


async def nothing_to_claim() -> None:
    """For calls without a `request_id`."""


@dataclass(slots=True)
class Call:
    """What is known of a call; grows while it runs, and becomes its events.

    `operation`: UUID. `began_at`: microseconds since the epoch. Handlers may set `targets`, `agent`, `reason`, `diff`,
    `details` and `superseded_by`; they cannot keep the call from being recorded.
    """

    operation: str
    method: str
    began_at: int
    peer: str = ""
    user_agent: str = ""
    request_id: str = ""
    trace_id: str = ""
    claimed_address: str = ""
    actor: Actor = ANONYMOUS
    organization: str = SYSTEM
    """Of the verified identity; `system` without one."""
    roles: frozenset[int] = frozenset()
    permissions: frozenset[str] = frozenset()
    expires_at: int | None = None
    """When the credential ends, microseconds since the epoch."""
    refused: Exception | None = None
    """Why the identity was not accepted; access raises it."""
    targets: tuple[tuple[str, str], ...] = ()
    agent: str = ""
    reason: str = ""
    diff: Sequence[dict[str, Any]] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    superseded_by: int | None = None
    started: bool = False
    """Its STARTED event is with the ledger."""
    recorded: bool = False
    """Its end is with the ledger: nothing may record another one."""

    endless: bool = False
    """It ends when its caller leaves, who can go on where it was: a stop of the server does not wait for it."""

    claim: "Callable[[], Awaitable[None]]" = nothing_to_claim
    """For handlers that act before they return: awaited before, it raises Repeated when this very call was answered
    before, and AlreadyExists when another was made under its `request_id`."""


_current: ContextVar[Call] = ContextVar("call")


def current() -> Call:
    """The call that this task serves. Raises LookupError outside of one."""
    return _current.get()


def enter(call: Call) -> None:
    """Make `call` the one that this task serves."""
    _current.set(call)


@dataclass(frozen=True, slots=True)
class Change(Generic[R]):
    """What a unary handler returns instead of a reply when it changes state.

    The audit interceptor commits `apply` together with the event of the call, both or neither (P5), and sends what it
    returns. `organizations`: further logs that `apply` appends to. `apply` runs in the ledger's thread: database only,
    and no await. It may still set `diff` and `targets` of the call. `then` is called on the loop once it is committed,
    whether or not the caller is still there. `again` puts back what is not kept of a first reply, its secrets, when the
    call is repeated.
    """

    apply: "Callable[[Transaction], R]"
    organizations: tuple[str, ...] = ()
    then: Callable[[], None] | None = None
    again: "Callable[[R], R] | None" = None
