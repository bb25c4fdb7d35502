"""The generated stubs, with calls that carry the client's metadata and fail with `lading_client.errors`.

The types stay those of the generated code: `bind` replaces each call of a stub by one that behaves alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from lading_client import errors

Stub = TypeVar("Stub")


@dataclass(frozen=True)
class Terms:
    """What goes with each call: metadata, and seconds that a unary call may take when it does not say so itself."""

    metadata: tuple[tuple[str, str], ...]
    timeout: float

    def complete(self, options: dict[str, Any], *, unary: bool) -> dict[str, Any]:
        options["metadata"] = (*self.metadata, *(options.get("metadata") or ()))
        if unary and options.get("timeout") is None:
            options["timeout"] = self.timeout
        return options


def with_key(request: Any) -> Any:
    """The request, with an idempotency key where it takes one and has none: then each retry of it is the same call."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name or request.request_id:
        return request
    keyed = type(request)()
    keyed.CopyFrom(request)  # of its own: the same object may be sent again and mean another call
    keyed.request_id = str(uuid.uuid4())
    return keyed


@dataclass(frozen=True)
class Unary:
    call: grpc.UnaryUnaryMultiCallable[Any, Any]
    terms: Terms

    def __call__(self, request: object, **options: Any) -> Any:
        return self.with_call(request, **options)[0]

    def with_call(self, request: object, **options: Any) -> tuple[Any, grpc.Call]:
        try:
            return self.call.with_call(with_key(request), **self.terms.complete(options, unary=True))
        except grpc.RpcError as failure:
            raise errors.from_call(failure) from None


@dataclass(frozen=True)
class Streaming:
    call: grpc.UnaryStreamMultiCallable[Any, Any]
    terms: Terms

    def __call__(self, request: object, **options: Any) -> Stream:
        return Stream(self.call(request, **self.terms.complete(options, unary=False)))


class Stream(Iterator[Any]):
    """The answers of a streaming call. `cancel` ends it, from any thread."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as failure:
            raise errors.from_call(failure) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


@dataclass(frozen=True)
class AsyncUnary:
    call: grpc.aio.UnaryUnaryMultiCallable[Any, Any]
    terms: Terms

    async def __call__(self, request: object, **options: Any) -> Any:
        try:
            return await self.call(with_key(request), **self.terms.complete(options, unary=True))
        except grpc.RpcError as failure:
            raise errors.from_call(failure) from None


@dataclass(frozen=True)
class AsyncStreaming:
    call: grpc.aio.UnaryStreamMultiCallable[Any, Any]
    terms: Terms

    def __call__(self, request: object, **options: Any) -> AsyncStream:
        return AsyncStream(self.call(request, **self.terms.complete(options, unary=False)))


class AsyncStream(AsyncIterator[Any]):
    """The answers of a streaming call. `cancel` ends it."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._answers = aiter(call)

    async def __anext__(self) -> Any:
        try:
            return await anext(self._answers)
        except grpc.RpcError as failure:
            raise errors.from_call(failure) from None

    async def write(self, request: Any) -> None:
        """Send one more; nothing when the call is over: the answers say why it is."""
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.write(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


@dataclass(frozen=True)
class Conversing:
    """Streams both ways: what is sent is taken from an iterator, as the server has room for it."""

    call: grpc.StreamStreamMultiCallable[Any, Any]
    terms: Terms

    def __call__(self, requests: Iterator[Any], **options: Any) -> Stream:
        return Stream(self.call(requests, **self.terms.complete(options, unary=False)))


@dataclass(frozen=True)
class AsyncConversing:
    call: grpc.aio.StreamStreamMultiCallable[Any, Any]
    terms: Terms

    def __call__(self, requests: AsyncIterator[Any] | None = None, **options: Any) -> AsyncStream:
        return AsyncStream(self.call(requests, **self.terms.complete(options, unary=False)))


# asyncio's classes come first: grpcio's own multi-callables share no base class with the blocking ones.
WRAPPERS: tuple[tuple[type, type], ...] = (
    (grpc.aio.UnaryUnaryMultiCallable, AsyncUnary),
    (grpc.aio.UnaryStreamMultiCallable, AsyncStreaming),
    (grpc.aio.StreamStreamMultiCallable, AsyncConversing),
    (grpc.UnaryUnaryMultiCallable, Unary),
    (grpc.UnaryStreamMultiCallable, Streaming),
    (grpc.StreamStreamMultiCallable, Conversing),
)


def bind(stub: Stub, terms: Terms) -> Stub:
    """The same stub, its calls wrapped."""
    for name, call in vars(stub).items():
        wrapper = next(wrapper for kind, wrapper in WRAPPERS if isinstance(call, kind))
        setattr(stub, name, wrapper(call, terms))
    return stub
