"""Checks of requests, compiled once per method from the option (lading.v1.rule) of their fields."""

import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from lading.v1 import options_pb2
from lading_server import errors

Check = Callable[[Any, dict[str, str]], None]
"""Adds a sentence for each field that breaks a rule."""

LENGTH_MAX = 1024
ITEMS_MAX = 1000

_ID = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
FORMATS: dict[int, tuple[re.Pattern[str], str]] = {
    options_pb2.FORMAT_UNSPECIFIED: (re.compile(r"[^\x00-\x1f\x7f]*"), "must not hold control characters"),
    options_pb2.FORMAT_ID: (re.compile(_ID), "must be 1 to 128 of a-z A-Z 0-9 _ . - and begin with a letter or digit"),
    options_pb2.FORMAT_AGENT: (re.compile(f"agents/{_ID}"), "must be agents/AGENT"),
    options_pb2.FORMAT_CONTAINER: (
        re.compile(f"agents/{_ID}/containers/{_ID}"),
        "must be agents/AGENT/containers/CONTAINER",
    ),
    options_pb2.FORMAT_COMMAND: (
        re.compile(r"commands/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        "must be commands/UUID",
    ),
    options_pb2.FORMAT_ROLLOUT: (
        re.compile(r"rollouts/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        "must be rollouts/UUID",
    ),
    options_pb2.FORMAT_UUID: (
        re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        "must be a UUID, in lower case",
    ),
    options_pb2.FORMAT_TEXT: (re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*"), "must not hold control characters"),
    options_pb2.FORMAT_ACTION: (re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+"), "must be like task.update"),
}


def check(checks: tuple[Check, ...], request: Any) -> None:
    """Raise InvalidArgument, naming each field, when the request breaks a rule."""
    violations: dict[str, str] = {}
    for one in checks:
        one(request, violations)
    if violations:
        field, sentence = next(iter(violations.items()))
        raise errors.InvalidArgument(f"{field}: {sentence}", violations=violations)


def checks_of(descriptor: Descriptor, prefix: str = "", seen: tuple[str, ...] = ()) -> tuple[Check, ...]:
    """The checks of a message and of the messages inside it."""
    if descriptor.full_name in seen or descriptor.full_name.startswith("google.protobuf."):
        return ()
    found: list[Check] = []
    for field in descriptor.fields:
        rule = field.GetOptions().Extensions[options_pb2.rule]
        name = prefix + field.name
        if rule.required:
            found.append(check_presence(field, name))
        if field.type == FieldDescriptor.TYPE_STRING:
            found.append(check_text(field, name, rule))
        elif field.enum_type:
            found.append(check_enum(field, field.enum_type, name, rule))
        elif is_map(field):
            found.append(check_map(field, name, rule))
        elif field.is_repeated:
            found.append(check_items(field, name, rule))
        elif rule.not_negative:
            found.append(check_sign(field, name))
        if field.message_type and not is_map(field):
            inner = checks_of(field.message_type, name + ".", (*seen, descriptor.full_name))
            if inner:
                found.append(check_inside(field, inner))
    return tuple(found)


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def check_presence(field: FieldDescriptor, name: str) -> Check:
    def run(message: Any, violations: dict[str, str]) -> None:
        present = message.HasField(field.name) if field.has_presence else bool(getattr(message, field.name))
        if not present:
            violations[name] = "must be set"

    return run


def check_text(field: FieldDescriptor, name: str, rule: options_pb2.FieldRule) -> Check:
    length_max = rule.length_max or LENGTH_MAX
    items_max = rule.items_max or ITEMS_MAX
    pattern, sentence = FORMATS[rule.format]
    matches = pattern.fullmatch
    attribute, repeated = field.name, field.is_repeated

    def run(message: Any, violations: dict[str, str]) -> None:
        value = getattr(message, attribute)
        if not value:
            return
        if repeated and len(value) > items_max:
            violations[name] = f"must have at most {items_max} items"
            return
        for text in value if repeated else (value,):
            if len(text) > length_max:
                violations[name] = f"must have at most {length_max} characters"
            elif not matches(text):
                violations[name] = sentence

    return run


def check_enum(field: FieldDescriptor, enum: EnumDescriptor, name: str, rule: options_pb2.FieldRule) -> Check:
    items_max = rule.items_max or ITEMS_MAX
    numbers = frozenset(enum.values_by_number)
    attribute, repeated = field.name, field.is_repeated

    def run(message: Any, violations: dict[str, str]) -> None:
        value = getattr(message, attribute)
        if repeated and len(value) > items_max:
            violations[name] = f"must have at most {items_max} items"
        elif not numbers.issuperset(value if repeated else (value,)):
            violations[name] = f"must be a value of {enum.full_name}, as this version of the server knows it"

    return run


def check_map(field: FieldDescriptor, name: str, rule: options_pb2.FieldRule) -> Check:
    length_max = rule.length_max or 32 * 1024
    items_max = rule.items_max or ITEMS_MAX

    def run(message: Any, violations: dict[str, str]) -> None:
        items = getattr(message, field.name)
        if len(items) > items_max:
            violations[name] = f"must have at most {items_max} items"
        for key, value in items.items():
            if not key or len(key) > 256 or len(value) > length_max or "\0" in key or "\0" in value:
                violations[name] = f"keys must have 1 to 256 characters, values at most {length_max}, none of them NUL"

    return run


def check_items(field: FieldDescriptor, name: str, rule: options_pb2.FieldRule) -> Check:
    items_max = rule.items_max or ITEMS_MAX

    def run(message: Any, violations: dict[str, str]) -> None:
        if len(getattr(message, field.name)) > items_max:
            violations[name] = f"must have at most {items_max} items"

    return run


def check_sign(field: FieldDescriptor, name: str) -> Check:
    def run(message: Any, violations: dict[str, str]) -> None:
        if getattr(message, field.name) < 0:
            violations[name] = "must not be negative"

    return run


def check_inside(field: FieldDescriptor, inner: tuple[Check, ...]) -> Check:
    def run(message: Any, violations: dict[str, str]) -> None:
        if field.is_repeated:
            for item in getattr(message, field.name):
                for one in inner:
                    one(item, violations)
        elif message.HasField(field.name):
            for one in inner:
                one(getattr(message, field.name), violations)

    return run
