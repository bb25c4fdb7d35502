"""What is computed once per method: its audit rule, the checks of its request, and how a request is recorded."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from lading.v1 import options_pb2
from lading_server import errors, names
from lading_server.call import Call
from lading_server.interceptors.validation import Check, checks_of

RECORDED_BYTES_MAX = 16 * 1024
REDACTED = "[redacted]"

PUBLIC = {
    "/grpc.health.v1.Health/Check": options_pb2.AuditRule(action="health.check"),
    "/grpc.health.v1.Health/List": options_pb2.AuditRule(action="health.list"),
    "/grpc.health.v1.Health/Watch": options_pb2.AuditRule(action="health.watch"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": options_pb2.AuditRule(action="reflection.read"),
}
"""Methods of others, which anybody may call, with the rules that their protos cannot carry."""


class MissingRule(Exception):
    """A method lacks the option (lading.v1.audit)."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method as the interceptors know it."""

    path: str
    rule: options_pb2.AuditRule
    public: bool
    checks: tuple[Check, ...]
    redact: Callable[[Any], Any] | None
    reply: Any = None
    """Class of its replies."""
    redact_reply: Callable[[Any], Any] | None = None
    keyed: bool = False
    """It changes something and carries an idempotency key; those that become commands keep theirs themselves."""

    def describe(self, call: Call, request: Any, size: int) -> None:
        """Note target, reason and the request, without its secrets, on the call. `size`: bytes on the wire.

        Raises InvalidArgument for values that JSON cannot say, such as a time after the year 9999.
        """
        rule = self.rule
        if rule.target_field and not call.targets:
            target, agent = names.target_of(rule.target_type, getattr(request, rule.target_field))
            if target[1]:
                call.targets = (target,)
            call.agent = call.agent or agent
        if not call.reason:
            call.reason = getattr(request, "reason", "")[:1000]
        if not size:
            return
        if size > RECORDED_BYTES_MAX:
            raw = request.SerializeToString(deterministic=True) if self.redact is None else b""
            call.details["request"] = {"bytes": size, **({"sha256": hashlib.sha256(raw).hexdigest()} if raw else {})}
            return
        shown = self.redact(request) if self.redact else request
        try:
            call.details["request"] = json_format.MessageToDict(shown, preserving_proto_field_name=True)
        except (ValueError, json_format.Error) as failure:
            call.details["request"] = {"bytes": size}
            raise errors.InvalidArgument("a time, duration or number of the request is out of its range") from failure


UNKNOWN = Method("", options_pb2.AuditRule(action="rpc.unknown"), True, (), None)
"""Stands for every method that the server does not have."""


def methods_of(services: Iterable[str]) -> dict[str, Method]:
    """Methods by path, of services given by full name. Raises MissingRule, so that the server does not start."""
    found = {}
    for service in services:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            path = f"/{service}/{method.name}"
            rule, fields = rule_of(method, path), method.input_type.fields_by_name
            found[path] = Method(
                path,
                rule,
                path in PUBLIC,
                checks_of(method.input_type),
                redactor_of(method.input_type),
                message_factory.GetMessageClass(method.output_type),
                redactor_of(method.output_type),
                rule.changes and "request_id" in fields and "detach" not in fields,
            )
    return found


def rule_of(method: MethodDescriptor, path: str) -> options_pb2.AuditRule:
    """The audit rule of a method. Raises MissingRule."""
    if path in PUBLIC:
        return PUBLIC[path]
    rule = method.GetOptions().Extensions[options_pb2.audit]
    if not rule.action:
        raise MissingRule(f"{path} has no option (lading.v1.audit): say there what is recorded of it")
    return rule


def redactor_of(descriptor: Descriptor) -> Callable[[Any], Any] | None:
    """A function that copies a message without the fields marked debug_redact; None when there are none."""
    if not holds_secrets(descriptor, set()):
        return None

    def redact(message: Message) -> Message:
        copy = type(message)()
        copy.CopyFrom(message)
        hide(copy)
        return copy

    return redact


def holds_secrets(descriptor: Descriptor, seen: set[str]) -> bool:
    """Whether a message, or one inside it, has a field marked debug_redact."""
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    return any(
        field.GetOptions().debug_redact or (field.message_type and holds_secrets(field.message_type, seen))
        for field in descriptor.fields
    )


def hide(message: Message) -> None:
    """Put REDACTED in the place of every marked value; a value of another kind than text is cleared."""
    for field, value in message.ListFields():
        mapped = value_of(field)
        if field.GetOptions().debug_redact:
            if mapped is not None and mapped.type == FieldDescriptor.TYPE_STRING:
                for key in list(value):
                    value[key] = REDACTED
            elif field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
                setattr(message, field.name, REDACTED)
            else:
                message.ClearField(field.name)
        elif mapped is not None:
            for inner in value.values() if mapped.message_type else ():
                hide(inner)
        elif field.message_type:
            for inner in value if field.is_repeated else (value,):
                hide(inner)


def value_of(field: FieldDescriptor) -> FieldDescriptor | None:
    """The field of a map's values; None for a field that is no map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry and entry.GetOptions().map_entry else None
