"""JSON Canonicalization Scheme, RFC 8785: one byte string for one JSON value."""

import json
import math
from typing import Any

_text = json.JSONEncoder(ensure_ascii=False).encode
INTEGER_MAX = 2**53 - 1
"""Beyond it not every integer is a double, and numbers of JSON are doubles (RFC 7493)."""


def canonical(value: Any) -> bytes:
    """The canonical form, UTF-8, of None, bool, int, float, str, list, tuple and dict with str keys.

    Raises ValueError for what JSON cannot say: NaN, infinities, integers beyond 2^53 - 1, lone surrogates, other
    types.
    """
    parts: list[str] = []
    _write(value, parts.append)
    try:
        return "".join(parts).encode()
    except UnicodeEncodeError:
        raise ValueError("a string holds a lone surrogate") from None


def parse(raw: bytes) -> Any:
    """Read JSON; an integer beyond 2^53 - 1 becomes the double it stands for. Raises ValueError, RecursionError."""
    return json.loads(raw, parse_int=_integer)


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 16 else float(text) if abs(float(text)) > INTEGER_MAX else int(text)


def _write(value: Any, out: Any) -> None:
    if isinstance(value, str):
        out(_text(value))
    elif value is None:
        out("null")
    elif value is True:
        out("true")
    elif value is False:
        out("false")
    elif isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise ValueError(f"{value} is beyond 2^53 - 1")
        out(str(int(value)))
    elif isinstance(value, float):
        out(_number(value))
    elif isinstance(value, dict):
        separator = "{"
        for key in sorted(value, key=_utf16):
            out(separator)
            out(_text(key))
            out(":")
            _write(value[key], out)
            separator = ","
        out("}" if value else "{}")
    elif isinstance(value, list | tuple):
        separator = "["
        for item in value:
            out(separator)
            _write(item, out)
            separator = ","
        out("]" if value else "[]")
    else:
        raise ValueError(f"{type(value).__name__} is not JSON")


def _utf16(key: str) -> bytes:
    """Keys are sorted by their UTF-16 code units (section 3.2.3)."""
    if not isinstance(key, str):
        raise ValueError("a key is not a string")
    return key.encode("utf-16-be", "surrogatepass")


def _number(value: float) -> str:
    """As ECMAScript writes it (section 3.2.2.3): the shortest digits that read back as the same number."""
    if math.isnan(value) or math.isinf(value):
        raise ValueError(f"{value} is not JSON")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    point = len(whole) + int(exponent or 0)
    digits = whole + fraction
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    digits = stripped.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    power = point - 1
    tail = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'+' if power >= 0 else '-'}{abs(power)}"
