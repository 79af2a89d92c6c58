"""The protocol's JSON: requests to messages, answers and messages to JSON.

Tensors may stand behind the JSON in a body, in binary, as Triton's extension "binary data" says:
the header ``Inference-Header-Content-Length`` is the length of the JSON.
"""

import json
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence
from typing import Annotated, TypeAlias, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from upt_protos.oip import open_inference_pb2 as pb
from upt_server.open_inference.answers import Inferred
from upt_server.open_inference.messages import facts_of
from upt_server.open_inference.tensors import Tensor, split_raw
from upt_zoo.errors import InvalidInput
from upt_zoo.reasons import first_reason

HEADER_LENGTH = "inference-header-content-length"
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Parameter: TypeAlias = bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | str
_Size: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


_Kind = TypeVar("_Kind", bound=_Body)


class InputTensor(_Body):
    """One text field of n inputs: ``data`` holds the texts, or they stand behind the JSON."""

    name: str
    datatype: str
    shape: list[_Size]
    parameters: dict[str, Parameter] = {}
    data: list[str] | list[list[str]] | None = None


class WantedOutput(_Body):
    """An output to answer with; the parameter ``binary_data`` puts it behind the JSON."""

    name: str
    parameters: dict[str, Parameter] = {}


class InferBody(_Body):
    """A request: n texts for one adapter.

    The parameter ``timeout`` is in microseconds; ``binary_data_output`` puts outputs behind the
    JSON where they do not say otherwise.
    """

    id: str = ""
    parameters: dict[str, Parameter] = {}
    inputs: list[InputTensor]
    outputs: list[WantedOutput] = []

    def is_binary(self, output: str) -> bool:
        """Tell whether an output shall stand behind the JSON."""
        default = self.parameters.get("binary_data_output", False)
        named = {each.name: each.parameters.get("binary_data", default) for each in self.outputs}
        return named.get(output, default) is True


class LoadBody(_Body):
    """What may come with a request to load or unload."""

    parameters: dict[str, Parameter] = {}


def parse_infer(data: bytes, header_length: str | None) -> tuple[InferBody, bytes]:
    """Read a request's JSON, and return what stands behind it.

    Raises:
        InvalidInput: not of this form.
    """
    if header_length is None:
        return _parse(InferBody, data), b""
    length = int(header_length) if header_length.isascii() and header_length.isdigit() else -1
    if not 0 < length <= len(data):
        raise InvalidInput(
            f"{HEADER_LENGTH}: expected the length of the JSON, at most {len(data)} bytes, got "
            f"{header_length[:20]}"
        )
    return _parse(InferBody, data[:length]), data[length:]


def parse_load(data: bytes) -> LoadBody:
    """Read the body of a request to load or unload, which may be empty.

    Raises:
        InvalidInput: not of this form.
    """
    return _parse(LoadBody, data or b"{}")


def make_request(name: str, version: str, body: InferBody, binary: bytes) -> pb.ModelInferRequest:
    """Turn a request into the message that asks for the same.

    Raises:
        InvalidInput: the bytes behind the JSON are not those that it tells of.
    """
    request = pb.ModelInferRequest(model_name=name, model_version=version, id=body.id)
    _set_parameters(request.parameters, body.parameters)
    rest = memoryview(binary)
    for each in body.inputs:
        tensor = request.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        _set_parameters(tensor.parameters, each.parameters)
        size = each.parameters.get("binary_data_size")
        if size is None:
            tensor.contents.bytes_contents.extend(text.encode() for text in _flat(each))
            continue
        if each.data is not None or type(size) is not int or not 0 <= size <= len(rest):
            raise InvalidInput(
                f"input {each.name}: expected data, or a binary_data_size of at most the "
                f"{len(rest)} bytes that are left behind the JSON"
            )
        tensor.contents.bytes_contents.extend(split_raw(bytes(rest[:size])))
        rest = rest[size:]
    if rest:
        raise InvalidInput(f"{len(rest)} bytes stand behind the JSON that no input tells of")
    for wanted in body.outputs:
        output = request.outputs.add(name=wanted.name)
        _set_parameters(output.parameters, wanted.parameters)
    return request


def write_inferred(name: str, body: InferBody, inferred: Inferred) -> tuple[bytes, int | None]:
    """Write an answer; return it with the length of its JSON where tensors stand behind that."""
    behind = []
    outputs: list[Json] = []
    for tensor in inferred.tensors:
        output: dict[str, Json] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if body.is_binary(tensor.name):
            behind.append(tensor.raw())
            output["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            output["data"] = _elements(tensor)
        outputs.append(output)
    answer: Json = {
        "model_name": name,
        "model_version": inferred.prediction.outputs[0].adapter.version,
        "id": body.id,
        "parameters": dict(facts_of(inferred.prediction)),
        "outputs": outputs,
    }
    text = json.dumps(answer, allow_nan=False).encode()
    return text + b"".join(behind), len(text) if behind else None


def plain(message: Message) -> dict[str, Json]:
    """Write a message with every field under its own name, whole numbers as numbers.

    protobuf's own JSON writes those of 64 bits as texts, which these clients do not read.
    """
    return {
        field.name: _plain(field.enum_type, getattr(message, field.name))  # type: ignore[arg-type]  # two kinds
        for field in message.DESCRIPTOR.fields
    }


def _plain(enum: EnumDescriptor | None, value: object) -> Json:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _plain(enum, each) for key, each in value.items()}
    if isinstance(value, MutableSequence):
        return [_plain(enum, each) for each in value]
    if enum is not None and isinstance(value, int):
        return enum.values_by_number[value].name
    assert isinstance(value, str | int | float)
    return value


def _parse(kind: type[_Kind], data: bytes) -> _Kind:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInput(f"the body: {first_reason(error)}") from error


def _set_parameters(
    target: MutableMapping[str, pb.InferParameter], parameters: Mapping[str, Parameter]
) -> None:
    for name, value in parameters.items():
        match value:
            case bool():
                target[name].bool_param = value
            case int():
                target[name].int64_param = value
            case float():
                target[name].double_param = value
            case str():
                target[name].string_param = value


def _flat(tensor: InputTensor) -> Iterator[str]:
    for each in tensor.data or []:
        yield from [each] if isinstance(each, str) else each


def _elements(tensor: Tensor) -> list[Json]:
    if isinstance(tensor.values, list):
        return [value.decode() for value in tensor.values]
    return list(tensor.values.tolist())
