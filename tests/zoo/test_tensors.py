import json
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from upt_zoo.errors import Corrupt, InvalidInput
from upt_zoo.tensors import Array, read_tensors, write_tensors

WIDTHS: list[Literal[16, 32]] = [16, 32]
finite_arrays = st.sampled_from(WIDTHS).flatmap(
    lambda width: arrays.arrays(
        dtype=np.dtype(f"f{width // 8}"),
        shape=arrays.array_shapes(min_dims=0, max_dims=4, max_side=4),
        elements=st.floats(width=width, allow_nan=False, allow_infinity=False),
    )
)
tensor_maps = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    finite_arrays,
    max_size=5,
).filter(lambda tensors: all(_is_utf8(name) for name in tensors))


def _is_utf8(text: str) -> bool:
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def _file(header: object, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def _entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@given(tensor_maps)
def test_tensors_survive_a_round_trip_bit_by_bit(tensors: dict[str, Array]) -> None:
    read = read_tensors(write_tensors(tensors))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].tobytes() == tensor.tobytes()


@given(tensor_maps)
def test_the_bytes_are_those_of_the_safetensors_library(tensors: dict[str, Array]) -> None:
    assert write_tensors(tensors) == safetensors.numpy.save(dict(tensors))


def test_the_bytes_are_pinned() -> None:
    tensors: dict[str, Array] = {
        "half": np.array([1.0], dtype=np.float16),
        "b": np.array([[1.0, -2.0]], dtype=np.float32),
    }
    header = (
        b'{"b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        b'"half":{"dtype":"F16","shape":[1],"data_offsets":[8,10]}}       '
    )
    data = bytes.fromhex("0000803f000000c0003c")
    assert write_tensors(tensors) == struct.pack("<Q", len(header)) + header + data


def test_neither_order_nor_memory_layout_changes_the_bytes() -> None:
    first = np.arange(6, dtype=np.float32).reshape(2, 3)
    second = np.ones(2, dtype=np.float32)
    assert write_tensors({"a": first, "b": second}) == write_tensors(
        {"b": second, "a": np.asfortranarray(first)}
    )


def test_arrays_are_writable_and_independent_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(write_tensors({"a": np.zeros(2, dtype=np.float32)}))
    tensor = read_tensors(path)["a"]
    tensor += 1
    assert read_tensors(path)["a"].tolist() == [0, 0]


def test_the_free_text_metadata_of_other_writers_is_ignored() -> None:
    data = safetensors.numpy.save({"a": np.ones(2, dtype=np.float32)}, metadata={"made by": "x"})
    assert list(read_tensors(data)) == ["a"]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(number: float) -> None:
    tensors = {"a": np.array([1, number], dtype=np.float32)}
    with pytest.raises(InvalidInput, match="tensor a: expected finite"):
        write_tensors(tensors)
    with pytest.raises(Corrupt, match="tensor a: expected finite"):
        read_tensors(safetensors.numpy.save(tensors))


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_other_types_are_not_written(dtype: type[np.generic]) -> None:
    with pytest.raises(InvalidInput, match="expected float16 or float32"):
        write_tensors({"a": np.ones(2, dtype=dtype)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\x00",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10) + b"{}",
        struct.pack("<Q", 2**21) + b" " * 2**21,
        _file(b"{"),
        _file(b"\xff\xfe"),
        _file(b"[" * 100_000),
        _file(b'{"a":' * 1000 + b"1" + b"}" * 1000),
        _file([]),
        _file({"a": 1}),
        _file({"a": _entry()}),
        _file({"a": _entry()}, b"\0" * 7),
        _file({"a": _entry()}, b"\0" * 9),
        _file({"a": _entry(dtype="F64")}, b"\0" * 8),
        _file({"a": _entry(dtype="BOOL")}, b"\0" * 8),
        _file({"a": _entry(shape=[3])}, b"\0" * 8),
        _file({"a": _entry(shape=[-2])}, b"\0" * 8),
        _file({"a": _entry(shape=[0])}),
        _file({"a": _entry(shape=[2.0])}, b"\0" * 8),
        _file({"a": _entry(shape=[10**30])}, b"\0" * 8),
        _file({"a": _entry(shape=[2] + [1] * 8)}, b"\0" * 8),
        _file({"a": _entry(data_offsets=[8, 0])}, b"\0" * 8),
        _file({"a": _entry(data_offsets=[-8, 0])}, b"\0" * 8),
        _file({"a": _entry(data_offsets=[8, 16])}, b"\0" * 16),
        _file({"a": _entry(extra=1)}, b"\0" * 8),
        _file({"a": _entry(), "b": _entry()}, b"\0" * 8),
        _file({"a": _entry(), "b": _entry(data_offsets=[4, 12])}, b"\0" * 12),
        _file({"__metadata__": {"a": 1}}),
    ],
    ids=range(29),
)
def test_a_hostile_file_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="tensor"):
        read_tensors(data)


@given(tensor_maps, st.data())
def test_every_truncation_is_corrupt(tensors: dict[str, Array], draw: st.DataObject) -> None:
    data = write_tensors(tensors)
    with pytest.raises(Corrupt):
        read_tensors(data[: draw.draw(st.integers(0, len(data) - 1))])


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_corrupt(data: bytes) -> None:
    try:
        tensors = read_tensors(struct.pack("<Q", len(data)) + data)
    except Corrupt:
        return
    assert tensors == {}
