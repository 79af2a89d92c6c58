"""Tells of the gRPC services and messages, with the comments of their .proto files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from tables import table

_PROTOS = Path(__file__).parents[1] / "protos"
_FILES = ("upt_protos/v1/inference.proto", "upt_protos/v1/admin.proto")
# numbers of the fields of descriptor.proto, of which the places of comments are made
_MESSAGE, _ENUM, _SERVICE, _PART, _NESTED = 4, 5, 6, 2, 3
_Place = tuple[int, ...]


def protocol() -> str:
    """Render upt's own services; the Open Inference Protocol is described where it comes from."""
    return "\n\n".join(part for file in _read() for part in _file(file) if part)


def _read() -> Sequence[FileDescriptorProto]:
    with TemporaryDirectory() as folder:
        output = Path(folder) / "set"
        flags = [f"-I{_PROTOS}", "--include_source_info", f"--descriptor_set_out={output}"]
        if code := protoc.main(["protoc", *flags, *_FILES]):
            raise RuntimeError(f"protoc ended with {code}")
        return FileDescriptorSet.FromString(output.read_bytes()).file


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(each.path): " ".join(each.leading_comments.split())
        for each in file.source_code_info.location
        if each.leading_comments
    }
    for number, service in enumerate(file.service):
        yield f"## {file.package}.{service.name}"
        yield comments.get((_SERVICE, number), "")
        rows = [
            (
                f"`{each.name}`",
                _stream(each.input_type, is_stream=each.client_streaming),
                _stream(each.output_type, is_stream=each.server_streaming),
                comments.get((_SERVICE, number, _PART, place), ""),
            )
            for place, each in enumerate(service.method)
        ]
        yield table(("call", "takes", "gives", ""), rows)
    for number, message in enumerate(file.message_type):
        yield from _message(message, (_MESSAGE, number), comments, message.name)
    for number, kind in enumerate(file.enum_type):
        yield from _enum(kind, comments.get((_ENUM, number), ""))


def _message(
    message: DescriptorProto, place: _Place, comments: dict[_Place, str], name: str
) -> Iterator[str]:
    yield f"### {name}"
    yield comments.get(place, "")
    maps = {each.name: each for each in message.nested_type if each.options.map_entry}
    rows = [
        (
            f"`{each.name}`",
            str(each.number),
            _type(each, maps),
            comments.get((*place, _PART, number), ""),
        )
        for number, each in enumerate(message.field)
    ]
    if rows:
        yield table(("field", "number", "type", ""), rows)
    for number, nested in enumerate(message.nested_type):
        if nested.name not in maps:
            yield from _message(
                nested, (*place, _NESTED, number), comments, f"{name}.{nested.name}"
            )


def _enum(kind: EnumDescriptorProto, comment: str) -> Iterator[str]:
    yield f"### {kind.name}"
    yield comment
    yield ", ".join(f"`{each.name}` = {each.number}" for each in kind.value)


def _type(field: FieldDescriptorProto, maps: dict[str, DescriptorProto]) -> str:
    name = field.type_name.rpartition(".")[2]
    if name in maps:
        key, value = maps[name].field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    word = f"`{name}`" if name else field.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"repeated {word}" if field.label == field.LABEL_REPEATED else word


def _stream(name: str, *, is_stream: bool) -> str:
    return f"{'stream of ' if is_stream else ''}`{name.rpartition('.')[2]}`"
