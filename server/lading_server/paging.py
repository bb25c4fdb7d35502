"""Page sizes and page tokens (AIP-158). A token is opaque to callers: which list it belongs to, and the last key."""

import base64
import binascii
import json
from typing import Any

from lading_server import errors

SIZE = 100
SIZE_MAX = 500


def size(requested: int) -> int:
    """Rows of one page: 100 when none are asked for, 500 at most."""
    return min(requested, SIZE_MAX) if requested > 0 else SIZE


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
