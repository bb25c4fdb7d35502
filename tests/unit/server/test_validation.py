"""Rules of request fields, as the option (lading.v1.rule) declares them."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from lading.v1 import access_pb2, commands_pb2, containers_pb2, options_pb2
from lading_server import errors
from lading_server.interceptors.validation import check, checks_of
from tests.unit.server.messages import Field, field, register

Rule = options_pb2.FieldRule
FORMATS = {name.removeprefix("FORMAT_").lower(): number for name, number in options_pb2.Format.items()}
UUID = "01990000-0000-7000-8000-000000000001"

MESSAGES = register(
    descriptor_pb2.FileDescriptorProto(
        name="lading_test/validation.proto",
        package="lading_test.validation",
        message_type=[
            descriptor_pb2.DescriptorProto(
                name="Formats",
                field=[
                    field(name, number + 1, rule=Rule(format=number))  # type: ignore[arg-type]
                    for name, number in FORMATS.items()
                ],
            ),
            descriptor_pb2.DescriptorProto(
                name="Tree",
                field=[
                    field("text", 1, rule=Rule(required=True, length_max=3)),
                    field("texts", 2, repeated=True, rule=Rule(items_max=2, length_max=3)),
                    field("number", 3, Field.TYPE_INT64, rule=Rule(not_negative=True)),
                    field("child", 4, of="lading_test.validation.Tree"),
                    field("children", 5, of="lading_test.validation.Leaf", repeated=True, rule=Rule(items_max=2)),
                    field("numbers", 6, Field.TYPE_INT32, repeated=True, rule=Rule(items_max=2, required=True)),
                ],
            ),
            descriptor_pb2.DescriptorProto(
                name="Leaf", field=[field("id", 1, rule=Rule(required=True, format=options_pb2.FORMAT_ID))]
            ),
        ],
    )
)


def violations(message: Any) -> dict[str, str]:
    """Sentences by field."""
    try:
        check(checks_of(message.DESCRIPTOR), message)
    except errors.InvalidArgument as refusal:
        return refusal.violations
    return {}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("unspecified", ["", "any text, é 世"], ["a\0", "line\nbreak", "\x7f", "\x1b[31m"]),
        ("id", ["dock-1", "a.b_c-D9", "9"], ["-a", ".", "a/b", "a b", "a\n", "é", "a" * 129, "a'; --"]),
        ("agent", ["agents/dock-1"], ["dock-1", "agents/", "agents/a/b", "agents/../x", "Agents/a"]),
        (
            "container",
            ["agents/dock-1/containers/web"],
            ["agents/dock-1", "agents/dock-1/containers/", "agents/a/containers/b/c", "agents/a/containers/b\0"],
        ),
        ("command", [f"commands/{UUID}"], [UUID, "commands/1", f"commands/{UUID.upper()}X", f"commands/{UUID}\n"]),
        ("uuid", [UUID], ["1", UUID + "0", UUID.replace("-", ""), "0199000A-0000-7000-8000-000000000001"]),
        ("text", ["two\nlines\tand a tab\r"], ["a\0", "\x1b[31m", "\x7f"]),
        (
            "action",
            ["task.update", "a.b.c", "task_2.done"],
            ["task", "Task.update", "task.", ".update", "a.b c", "1.a"],
        ),
    ],
)
def test_text_must_have_its_format(name: str, good: list[str], bad: list[str]) -> None:
    kind = MESSAGES["Formats"]
    for text in good:
        assert violations(kind(**{name: text})) == {}, text
    for text in bad:
        assert list(violations(kind(**{name: text}))) == [name], text


def test_every_format_of_the_contract_is_checked() -> None:
    kind = MESSAGES["Formats"]
    assert {name for name in FORMATS if violations(kind(**{name: "\0"}))} == set(FORMATS)


def test_text_is_as_long_as_declared_or_1024_at_most() -> None:
    formats = MESSAGES["Formats"]
    assert violations(formats(unspecified="é" * 1024)) == {}
    assert violations(formats(unspecified="é" * 1025)) == {"unspecified": "must have at most 1024 characters"}
    assert violations(formats(text="x" * 10_000)) == {"text": "must have at most 1024 characters"}


def tree(**values: Any) -> Any:
    return MESSAGES["Tree"](**{"text": "a", "numbers": [1], **values})


def test_message_begins_with_the_first_field_that_is_wrong() -> None:
    with pytest.raises(errors.InvalidArgument, match=r"^texts: must have"):
        check(checks_of(MESSAGES["Tree"].DESCRIPTOR), tree(texts=["a"] * 3))


def test_every_broken_rule_is_named_by_its_path() -> None:
    leaf = MESSAGES["Leaf"]
    broken = tree(
        text="long",
        texts=["ok", "long"],
        number=-1,
        children=[leaf(id="fine"), leaf(id="not fine")],
        numbers=[],
    )
    assert set(violations(broken)) == {"text", "texts", "number", "children.id", "numbers"}


def test_lists_are_as_long_as_declared_or_1000_at_most() -> None:
    leaf = MESSAGES["Leaf"]
    assert violations(tree()) == {}
    assert violations(tree(texts=["a"] * 3)) == {"texts": "must have at most 2 items"}
    assert violations(tree(children=[leaf(id="a")] * 3)) == {"children": "must have at most 2 items"}
    assert violations(tree(numbers=[1, 2, 3])) == {"numbers": "must have at most 2 items"}
    states = commands_pb2.ListCommandsRequest(states=[commands_pb2.COMMAND_STATE_FAILED] * 1001)
    assert violations(states) == {"states": "must have at most 1000 items"}


def test_number_that_is_no_value_of_its_enum_is_refused() -> None:
    for states in ([77], [commands_pb2.COMMAND_STATE_FAILED, -1], [2**31 - 1]):
        assert list(violations(commands_pb2.ListCommandsRequest(states=states))) == ["states"]
    assert list(violations(access_pb2.AssignRoleRequest(subject="bob", role=99))) == ["role"]  # type: ignore[arg-type]
    assert violations(commands_pb2.ListCommandsRequest(states=[commands_pb2.COMMAND_STATE_FAILED])) == {}


def test_missing_field_is_said_to_be_missing() -> None:
    assert violations(MESSAGES["Tree"]()) == {"text": "must be set", "numbers": "must be set"}
    create = containers_pb2.CreateContainerRequest(name="agents/a/containers/b")
    assert violations(create) == {"spec": "must be set"}


def test_message_inside_itself_is_not_followed_for_ever() -> None:
    deep = tree()
    for _ in range(50):
        deep = tree(child=deep)
    assert violations(deep) == {}


@pytest.mark.parametrize(
    ("key", "value"), [("", "x"), ("k" * 257, "x"), ("k", "v" * 32_769), ("k\0", "x"), ("k", "\0")]
)
def test_environment_takes_no_endless_or_empty_keys_and_no_nul(key: str, value: str) -> None:
    spec = commands_pb2.ContainerSpec(env={key: value})
    assert list(violations(spec)) == ["env"]
    assert value not in str(violations(spec)) or len(value) < 2
    assert violations(commands_pb2.ContainerSpec(env={"k" * 256: "v" * 32_768})) == {}


@given(st.text(max_size=40))
def test_name_that_passes_is_read_back_from_its_parts(text: str) -> None:
    request = containers_pb2.GetContainerRequest(name=f"agents/dock-1/containers/{text}")
    if not violations(request):
        assert text
        assert not set(text) & set("/\0 '\"\\;")
