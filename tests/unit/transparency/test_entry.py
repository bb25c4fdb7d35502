"""The canonical form, and what an entry commits to."""

import base64
import hashlib
import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.transparency import entry
from lading.transparency.jcs import canonical, parse

# RFC 8785, appendix B: IEEE 754 bits and how ECMAScript writes them.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(("bits", "text"), NUMBERS.items())
def test_numbers_are_written_as_in_the_rfc(bits: str, text: str) -> None:
    assert canonical(struct.unpack(">d", bytes.fromhex(bits))[0]) == text.encode()


def test_keys_are_sorted_by_utf_16_as_in_the_rfc() -> None:
    found = canonical({"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\u00f6": 7})
    assert list(json.loads(found)) == ["\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, {1: 2}, "\ud800", {"\ud800": 1}, b"", {1, 2}])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical(value)


@given(JSON)
def test_the_canonical_form_reads_back_and_is_its_own(value: object) -> None:
    raw = canonical(value)
    assert parse(raw) == value
    assert canonical(parse(raw)) == raw


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON), st.binary(min_size=16, max_size=16))
def test_details_are_bound_by_the_entry(details: dict[str, object], salt: bytes) -> None:
    digest = hashlib.sha256(salt + canonical(details)).digest()
    raw = canonical({"v": 1, "details": base64.b64encode(digest).decode()})
    parsed = entry.parse_entry(raw)
    entry.check_details(parsed, salt, details)
    with pytest.raises(entry.InvalidEntry):
        entry.check_details(parsed, salt, {**details, "another": 1, "key": [2]})
    with pytest.raises(entry.InvalidEntry):
        entry.check_details(parsed, bytes([salt[0] ^ 1]) + salt[1:], details)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b'{"v":2}', b'{"v": 1}', b'{"v":1,"a":1}', b"[1]", b'{"v":1' + b" " * 70_000]
)
def test_entries_that_are_not_canonical_are_refused(raw: bytes) -> None:
    with pytest.raises(entry.InvalidEntry):
        entry.parse_entry(raw)
