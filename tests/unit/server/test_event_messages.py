"""Values between the contract and JSON."""

import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from lading.v1 import audit_log_pb2 as pb
from lading_server import errors
from lading_server.services.messages import filter_of, is_patch, plain_struct
from lading_server.store.event_filter import EventFilter, Field, Match

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_json_comes_back_as_it_went(value: dict[str, Any]) -> None:
    message = Struct()
    message.update(value)
    assert plain_struct(message) == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_has_not_is_refused(number: float) -> None:
    message = Struct()
    message["deep"] = {"list": [number]}
    with pytest.raises(ValueError, match="not a number of JSON"):
        plain_struct(message)


@pytest.mark.parametrize(
    ("diff", "is_one"),
    [
        ([], True),
        ([{"op": "remove", "path": ""}], True),
        ([{"op": "replace", "path": "/a/b", "value": 1, "was": 2}], True),
        ([{"op": "replace", "path": "a"}], False),
        ([{"op": "replace"}], False),
        ([{"op": [], "path": "/a"}], False),
        ([{"op": "replace", "path": 1}], False),
        ([[]], False),
        ({}, False),
    ],
)
def test_a_patch_is_known_by_its_shape(diff: Any, is_one: bool) -> None:
    assert is_patch(diff) is is_one


def test_a_filter_is_taken_whole() -> None:
    message = pb.EventFilter(
        matches=[pb.Match(field=pb.FIELD_ACTOR, values=["a", "b"], negate=True)],
        words=["x"],
        latest_only=True,
        changes_only=True,
    )
    message.since.FromMicroseconds(5)
    match = Match(Field.ACTOR, ("a", "b"), negate=True)
    assert filter_of(message) == EventFilter(5, None, (match,), ("x",), True, True)


def test_a_filter_that_ends_before_it_begins_is_refused() -> None:
    message = pb.EventFilter()
    message.since.FromMicroseconds(6)
    message.until.FromMicroseconds(5)
    with pytest.raises(errors.InvalidArgument, match="until"):
        filter_of(message)
