"""Adapter tensors to bytes and back: safetensors with numpy only, float32 and float16.

    8 bytes   N, the length of the header, little-endian
    N bytes   JSON: {name: {"dtype": "F32", "shape": [..], "data_offsets": [first, last]}, ..}
    the rest  the tensors' bytes, little-endian, row-major, without gap or overlap

Equal tensors give equal bytes, the same that the safetensors library writes. It knows no adapter;
which tensors there must be is said by ``upt_zoo.layout``.

Source: the format description in the README of huggingface/safetensors.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from upt_zoo.errors import Corrupt, InvalidInput
from upt_zoo.json_text import check_json
from upt_zoo.spec import Count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float16 | np.float32]
else:
    Array = Any  # numpy comes with the first tensors: a list of adapters needs none

_MAX_HEADER_BYTES = 1024 * 1024  # an adapter has at most some forty tensors of 100 bytes each
_MAX_AXES = 8  # numpy gives up at 64, adapters need 3
_DTYPES: dict[Literal["F16", "F32"], str] = {"F16": "<f2", "F32": "<f4"}
_NAMES: dict[str, Literal["F16", "F32"]] = {"float16": "F16", "float32": "F32"}


class _TensorEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dtype: Literal["F16", "F32"]
    shape: Annotated[tuple[Count, ...], Field(max_length=_MAX_AXES)]
    data_offsets: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * int(_DTYPES[self.dtype][-1])


class _Header(BaseModel):
    """All keys but the free-text metadata are tensors."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, _TensorEntry] = Field(init=False)

    free_text: dict[str, str] | None = Field(default=None, alias="__metadata__")


def read_tensors(source: bytes | Path) -> dict[str, Array]:
    """Read all tensors; each is a writable copy of its own.

    No length that the file states is believed before it was compared with the file's own length.

    Raises:
        Corrupt: the bytes do not follow the format, hold another type than float16 and float32, or
            a number that is not finite.
    """
    data = memoryview(source.read_bytes() if isinstance(source, Path) else source)
    start = _data_start(data)
    entries = _parse_header(bytes(data[8:start]))
    _check_coverage(entries, len(data) - start)
    return {name: _tensor(name, entry, data[start:]) for name, entry in sorted(entries.items())}


def write_tensors(tensors: Mapping[str, Array]) -> bytes:
    """Serialise; the order of the mapping and the memory layout of the arrays do not matter.

    Raises:
        InvalidInput: a tensor is neither float16 nor float32, or a number is not finite.
    """
    import numpy as np

    entries: dict[str, dict[str, object]] = {}
    parts: list[bytes] = []
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        dtype = _NAMES.get(tensor.dtype.name)
        if dtype is None:
            raise InvalidInput(
                f"tensor {name}: expected float16 or float32, got {tensor.dtype}; convert it"
            )
        if not np.isfinite(tensor).all():
            raise InvalidInput(f"tensor {name}: expected finite numbers; train it again")
        data = tensor.astype(_DTYPES[dtype]).tobytes()
        entries[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + len(data)],
        }
        parts.append(data)
        position += len(data)
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # the data starts at a multiple of eight bytes
    return b"".join([struct.pack("<Q", len(header)), header, *parts])


def _data_start(data: memoryview) -> int:
    if len(data) < 8:
        raise Corrupt(f"tensors: expected at least 8 bytes, got {len(data)}")
    (length,) = struct.unpack("<Q", data[:8])
    limit = min(_MAX_HEADER_BYTES, len(data) - 8)
    if length > limit:
        raise Corrupt(f"tensors: expected a header of at most {limit} bytes, got {length}")
    return 8 + int(length)


def _parse_header(header: bytes) -> dict[str, _TensorEntry]:
    try:
        entries = _Header.model_validate_json(header).__pydantic_extra__
        check_json(header)
        return entries
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]
        raise Corrupt(f"tensors: malformed header: {reason['loc']}: {reason['msg']}") from error
    except ValueError as error:
        raise Corrupt(f"tensors: malformed header: {error}") from error


def _check_coverage(entries: Mapping[str, _TensorEntry], size_bytes: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        expected = (position, position + entry.size_bytes)
        if entry.data_offsets != expected:
            raise Corrupt(f"tensor {name}: expected offsets {expected}, got {entry.data_offsets}")
        position = expected[1]
    if position != size_bytes:
        raise Corrupt(f"tensors: expected {position} bytes of data, got {size_bytes}")


def _tensor(name: str, entry: _TensorEntry, data: memoryview) -> Array:
    import numpy as np

    first, last = entry.data_offsets
    stored = np.frombuffer(data[first:last], dtype=_DTYPES[entry.dtype])
    tensor: Array = stored.reshape(entry.shape).copy()
    if not np.isfinite(tensor).all():
        raise Corrupt(f"tensor {name}: expected finite numbers")
    return tensor
