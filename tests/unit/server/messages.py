"""Messages for tests, made at run time from FileDescriptorProtos."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from lading.v1 import options_pb2

Field = descriptor_pb2.FieldDescriptorProto


def field(
    name: str,
    number: int,
    kind: "Field.Type.ValueType" = Field.TYPE_STRING,
    *,
    of: str = "",
    repeated: bool = False,
    redacted: bool = False,
    rule: options_pb2.FieldRule | None = None,
) -> Field:
    """A field; `of`: full name of its message type."""
    made = Field(
        name=name,
        number=number,
        type=Field.TYPE_MESSAGE if of else kind,
        type_name=f".{of}" if of else None,
        label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
    )
    if redacted:
        made.options.debug_redact = True
    if rule is not None:
        made.options.Extensions[options_pb2.rule].CopyFrom(rule)
    return made


def map_entry(name: str, value: Field) -> descriptor_pb2.DescriptorProto:
    """What a map<string, …> is made of; `value` must be called `value` and have the number 2."""
    entry = descriptor_pb2.DescriptorProto(name=name, field=[field("key", 1), value])
    entry.options.map_entry = True
    return entry


def register(file: descriptor_pb2.FileDescriptorProto) -> dict[str, type[Message]]:
    """Add a file to the pool once; returns its message classes by short name."""
    file.syntax = "proto3"
    file.dependency.append("lading/v1/options.proto")
    pool = descriptor_pool.Default()
    try:
        found = pool.FindFileByName(file.name)
    except KeyError:
        found = pool.Add(file) or pool.FindFileByName(file.name)
    return {name: message_factory.GetMessageClass(one) for name, one in found.message_types_by_name.items()}
