"""The protos as descriptors with comments, as `buf build` reads them."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pb2 as pb

# The numbers of the fields of descriptor.proto, of which the places of comments consist.
_SYNTAX: Final = 12
_MESSAGES: Final = 4
_SERVICES: Final = 6
_NESTED: Final = 3
_NESTED_ENUMS: Final = 4
# Of the fields of a message, the methods of a service and the values of an enum alike.
_MEMBERS: Final = 2
_BUF: Final = Path(sys.executable).with_name("buf")


@dataclass(frozen=True, slots=True)
class Value:
    """A value of an enum."""

    name: str
    number: int
    comment: str


@dataclass(frozen=True, slots=True)
class Enum:
    """An enum. `name` has the names of the messages around it, such as `Cart.State`."""

    name: str
    comment: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message. `behaviour` has the words at the beginning of its comment, such as REQUIRED.

    `kind` is the type as the proto has it, and `type_name` the full name of its message or enum; "" for a scalar.
    `oneof` is the name of the group of which a message has one field at most; "" for none.
    """

    name: str
    kind: str
    type_name: str
    oneof: str
    behaviour: tuple[str, ...]
    comment: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message. `name` has the names of the messages around it, and `full_name` the package, too."""

    name: str
    full_name: str
    comment: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service. `request` and `response` are full names."""

    name: str
    comment: str
    request: str
    response: str
    streams: bool


@dataclass(frozen=True, slots=True)
class Service:
    """A service."""

    name: str
    full_name: str
    comment: str
    methods: tuple[Method, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A proto file. `path` is relative to the folder of its module, such as `cartgrpc/v1/cart.proto`."""

    path: str
    comment: str
    services: tuple[Service, ...]
    messages: tuple[Message, ...]
    enums: tuple[Enum, ...]


def read(folder: Path) -> dict[str, File]:
    """Return the proto files in `folder` by their paths. Raises CalledProcessError if buf cannot compile them."""
    command = [str(_BUF), "build", str(folder), "--as-file-descriptor-set", "--exclude-imports", "-o", "-"]
    built = subprocess.run(command, check=True, capture_output=True).stdout
    return {file.name: _Reader(file).file() for file in pb.FileDescriptorSet.FromString(built).file}


class _Reader:
    def __init__(self, file: pb.FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(location.path): location.leading_comments
            for location in file.source_code_info.location
            if location.leading_comments
        }

    def file(self) -> File:
        services = tuple(self._service(each, number) for number, each in enumerate(self._file.service))
        messages = [
            found
            for number, each in enumerate(self._file.message_type)
            for found in self._messages(each, (_MESSAGES, number), "")
        ]
        return File(
            self._file.name,
            self._comment(_SYNTAX),
            services,
            tuple(each for each in messages if isinstance(each, Message)),
            tuple(each for each in messages if isinstance(each, Enum)),
        )

    def _comment(self, *path: int) -> str:
        lines = self._comments.get(path, "").splitlines()
        return "\n".join(line.removeprefix(" ") for line in lines).strip()

    def _service(self, service: pb.ServiceDescriptorProto, number: int) -> Service:
        methods = tuple(
            Method(
                each.name,
                self._comment(_SERVICES, number, _MEMBERS, position),
                each.input_type.removeprefix("."),
                each.output_type.removeprefix("."),
                each.server_streaming,
            )
            for position, each in enumerate(service.method)
        )
        full_name = f"{self._file.package}.{service.name}"
        return Service(service.name, full_name, self._comment(_SERVICES, number), methods)

    def _messages(self, message: pb.DescriptorProto, path: tuple[int, ...], prefix: str) -> Iterator[Message | Enum]:
        name = f"{prefix}{message.name}"
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        fields = tuple(self._field(message, position, path, maps) for position in range(len(message.field)))
        yield Message(name, f"{self._file.package}.{name}", self._comment(*path), fields)
        for number, enum in enumerate(message.enum_type):
            place = (*path, _NESTED_ENUMS, number)
            values = tuple(
                Value(value.name, value.number, self._comment(*place, _MEMBERS, position))
                for position, value in enumerate(enum.value)
            )
            yield Enum(f"{name}.{enum.name}", self._comment(*place), values)
        for number, nested in enumerate(message.nested_type):
            if nested.name not in maps:
                yield from self._messages(nested, (*path, _NESTED, number), f"{name}.")

    def _field(
        self, message: pb.DescriptorProto, position: int, path: tuple[int, ...], maps: dict[str, pb.DescriptorProto]
    ) -> Field:
        field = message.field[position]
        words, comment = _split_behaviour(self._comment(*path, _MEMBERS, position))
        in_oneof = field.HasField("oneof_index") and not field.proto3_optional
        entry = maps.get(field.type_name.rpartition(".")[2])
        if entry:
            kind, type_name = f"map<{', '.join(_kind(part) for part in entry.field)}>", ""
        else:
            kind, type_name = _kind(field), field.type_name.removeprefix(".")
            if field.label == pb.FieldDescriptorProto.LABEL_REPEATED:
                kind = f"repeated {kind}"
        oneof = message.oneof_decl[field.oneof_index].name if in_oneof else ""
        return Field(field.name, kind, type_name, oneof, words, comment)


def _kind(field: pb.FieldDescriptorProto) -> str:
    """The type of a field: a scalar, or the last parts of the name of a message or an enum."""
    if field.type_name:
        return ".".join(part for part in field.type_name.split(".") if part[:1].isupper())
    return pb.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _split_behaviour(comment: str) -> tuple[tuple[str, ...], str]:
    """Return the words of google.api.field_behavior with which a comment begins, and the rest of the comment."""
    beginning, _, rest = comment.partition(".")
    words = beginning.split(", ")
    if set(words) <= {"REQUIRED", "OPTIONAL", "OUTPUT_ONLY", "IMMUTABLE", "IDENTIFIER"}:
        return tuple(words), rest.strip()
    return (), comment
