"""Page sizes and page tokens (AIP-158). A token is opaque to callers: which list it belongs to, and the last key."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lading_server import errors

SIZE = 100
SIZE_MAX = 500
BYTES = 512 * 1024
"""Of large fields in one answer, with one row more. A list of small numbers takes 6.5 times as much as a message, where
gRPC takes 4 MiB by default, and 0.4 s to make it one."""
R = TypeVar("R")


def size(requested: int) -> int:
    """Rows of one page: 100 when none are asked for, 500 at most."""
    return min(requested, SIZE_MAX) if requested > 0 else SIZE


def portion(rows: Sequence[R], bytes_of: Callable[[R], int]) -> Sequence[R]:
    """The first rows, as many as one answer takes; at least one of those that there are."""
    size = 0
    for number, row in enumerate(rows, 1):
        size += bytes_of(row)
        if size > BYTES:
            return rows[:number]
    return rows


def token(of: str, *key: str | int) -> str:
    """The page token for the rows of the list `of` after `key`."""
    text = json.dumps([of, *key], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def key(of: str, token: str, *types: type) -> tuple[Any, ...] | None:
    """The key in a page token, None for the first page. Raises InvalidPageToken unless it is one of the list `of`.

    A token that somebody made up in this shape is harmless: it only says where in the caller's own rows to go on.
    """
    if not token:
        return None
    try:
        found = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError, binascii.Error):
        raise errors.InvalidPageToken from None
    if not isinstance(found, list) or found[:1] != [of] or [type(part) for part in found[1:]] != list(types):
        raise errors.InvalidPageToken
    for part in found[1:]:
        fits = "\0" not in part and part.isprintable() if isinstance(part, str) else 0 <= part < 2**63
        if not fits:
            raise errors.InvalidPageToken
    return tuple(found[1:])
