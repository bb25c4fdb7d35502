"""The client of Lading, for services and people.

`Client` (blocking) and `AsyncClient` (asyncio) are what most need; failures are in `lading_client.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lading_client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    # Late, so that `lading --help` does not wait for gRPC.
    if name in __all__:
        from lading_client import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
