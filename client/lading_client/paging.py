"""Reading lists page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar


class Request(Protocol):
    page_token: str


class Page(Protocol):
    next_page_token: str


RequestType = TypeVar("RequestType", bound=Request)
PageType = TypeVar("PageType", bound=Page)


def pages(call: Callable[[RequestType], PageType], request: RequestType) -> Iterator[PageType]:
    """Every page of a list method, from the one that `request` names on."""
    while True:
        page = call(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
