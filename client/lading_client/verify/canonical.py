"""Whether bytes are JSON in canonical form (RFC 8785): plain values in two calls of C, others as the contract does."""

import json
import re
from typing import Any, NoReturn

from lading.transparency import jcs


class _NotPlain(ValueError):
    """It holds a number whose canonical form json does not write."""


def _refuse(text: str) -> NoReturn:
    raise _NotPlain(text)


def _integer(text: str) -> int:
    if len(text) > 15 and abs(int(text)) > jcs.INTEGER_MAX:
        raise _NotPlain(text)
    return int(text)


_decode = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse, parse_int=_integer).decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, check_circular=False).encode
_FAR = re.compile("[\ue000-\U0010ffff]")
"""Keys without these are in the same order by code point, as Python sorts them, and by UTF-16."""


def write(value: dict[str, Any]) -> bytes:
    """The canonical form of an object of plain values: no number but integers up to 2^53 - 1, no key but in ASCII.

    Raises TypeError for values that JSON has not.
    """
    return _encode(value).encode()


def read(raw: bytes) -> dict[str, Any]:
    """The object. Raises ValueError unless the bytes are its canonical form."""
    text = raw.decode()
    if text.isascii() or not _FAR.search(text):
        try:
            value = _decode(text)
            if _encode(value) == text and isinstance(value, dict):
                return value
        except (ValueError, RecursionError):
            pass
    try:
        value = jcs.parse(raw)
        same = jcs.canonical(value) == raw
    except RecursionError as failure:
        raise ValueError("it is nested too deep") from failure
    if not same or not isinstance(value, dict):
        raise ValueError("it is not an object in canonical form")
    return value
