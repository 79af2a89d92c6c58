"""The compiled kernel: its structures, and whether this machine can run it.

It is compiled twice, for AVX-512 and for AVX2, which has fp32 only. ``kernel.cpp`` is the other
half of every structure here; the order of the fields is the contract.
"""

import ctypes
import hashlib
import os
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Number = Literal["fp32", "bf16", "int8"]

SITES = ("attention_in", "attention_out", "ffn_up", "ffn_down", "bottleneck")
NUMBERS: tuple[Number, ...] = ("fp32", "bf16", "int8")
READINGS = ("cls", "mean", "each token")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "gelu_new")
LANES = 16
TILE_PANEL = 32  # outputs of a panel of bf16 or int8 for AMX
TILE_WORDS = 16  # of a row of an AMX tile

_FOLDER = Path(__file__).parent
SOURCES = tuple(_FOLDER / name for name in ("tiles.h", "vectors.h", "kernel.cpp"))
# what compilers take x86-64-v3 and -v4 to have
_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_FEATURES: dict[Number, frozenset[str]] = {
    "fp32": _AVX2,
    "bf16": _AVX512 | {"avx512_bf16"},
    "int8": _AVX512 | {"avx512_vnni"},
}
_TILE_FEATURES = frozenset({"avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"})
ALL_FEATURES = _TILE_FEATURES.union(*_FEATURES.values())
_Floats = POINTER(c_float)
FloatPointer: TypeAlias = "ctypes._Pointer[c_float]"


class Linear(ctypes.Structure):
    """A packed linear layer."""

    _fields_ = (
        ("weight", POINTER(c_uint32)),
        ("bias", _Floats),
        ("scale", _Floats),
        ("sum", _Floats),
        ("inputs", c_int32),
        ("outputs", c_int32),
    )


class LayerNorm(ctypes.Structure):
    """A LayerNorm's weights."""

    _fields_ = (("weight", _Floats), ("bias", _Floats))


class Layer(ctypes.Structure):
    """One transformer layer."""

    _fields_ = (
        ("qkv", Linear),
        ("attention_out", Linear),
        ("ffn_up", Linear),
        ("ffn_down", Linear),
        ("attention_norm", LayerNorm),
        ("ffn_norm", LayerNorm),
    )


class Encoder(ctypes.Structure):
    """The backbone; ``precision`` and ``activation`` index NUMBERS and ACTIVATIONS.

    Where ``is_tiled``, AMX multiplies.
    """

    _fields_ = (
        ("word", _Floats),
        ("position", _Floats),
        ("type", _Floats),
        ("embedding_norm", LayerNorm),
        ("layers", POINTER(Layer)),
        ("eps", c_float),
        ("precision", c_int32),
        ("activation", c_int32),
        ("layer_count", c_int32),
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("heads", c_int32),
        ("is_tiled", c_int32),
    )


class LowRank(ctypes.Structure):
    """A component of an adapter at one site; all zero where there is none."""

    _fields_ = (
        ("down", c_void_p),
        ("bias", _Floats),
        ("up", c_void_p),
        ("rank", c_int32),
        ("gates", c_int32),
        ("lora_gates", c_int32),
        ("parts", c_int32),
        ("part_rank", c_int32),
        ("part_start", c_int32 * 3),
    )


class AdapterLayer(ctypes.Structure):
    """One layer of an adapter."""

    _fields_ = (
        ("sites", LowRank * len(SITES)),
        ("prefix_keys", c_void_p),
        ("prefix_values", c_void_p),
    )


class AdapterHead(ctypes.Structure):
    """An adapter's head; ``reading`` indexes READINGS."""

    _fields_ = (
        ("dense", _Floats),
        ("dense_bias", _Floats),
        ("out", _Floats),
        ("out_bias", _Floats),
        ("outputs", c_int32),
        ("reading", c_int32),
    )


class Adapter(ctypes.Structure):
    """An adapter; ``activation`` is the bottleneck's, a ``c_void_p`` is fp16 where ``is_half``."""

    _fields_ = (
        ("layers", POINTER(AdapterLayer)),
        ("head", AdapterHead),
        ("prompt", c_void_p),
        ("prefix_length", c_int32),
        ("prefix_gates", c_int32),
        ("activation", c_int32),
        ("is_bottleneck_gated", c_int32),
        ("is_half", c_int32),
    )


class Batch(ctypes.Structure):
    """The rows of one forward pass."""

    _fields_ = (
        ("adapters", POINTER(POINTER(Adapter))),
        ("starts", POINTER(c_int32)),
        ("row_of_token", POINTER(c_int32)),
        ("ids", POINTER(c_int32)),
        ("positions", POINTER(c_int32)),
        ("types", POINTER(c_int32)),
        ("reals", POINTER(c_int32)),
        ("answers", POINTER(c_int64)),
        ("rows", c_int32),
        ("tokens", c_int32),
        ("columns", c_int32),
        ("most_keys", c_int32),
        ("sites", c_int32),
    )


@cache
def load_kernel() -> ctypes.CDLL:
    """Load the compiled kernel.

    Raises:
        OSError: there is none, it is of another source, or this system cannot load it.
    """
    kernel = ctypes.CDLL(str(_library()))
    try:
        kernel.upt_source.restype = ctypes.c_char_p
        source = kernel.upt_source().decode()
    except AttributeError:
        source = ""
    if source != hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest():
        raise OSError("it was built from another source")
    kernel.upt_workspace.argtypes = (POINTER(Encoder), POINTER(Batch), c_int32)
    kernel.upt_workspace.restype = c_int64
    kernel.upt_answer.argtypes = (POINTER(Encoder), POINTER(Batch), _Floats, _Floats, c_int32)
    kernel.upt_answer.restype = None
    kernel.upt_request_tiles.argtypes = ()
    kernel.upt_request_tiles.restype = c_int32
    return kernel


def missing_for(number: Number) -> str | None:
    """Say what this machine lacks to run the kernel on such numbers; None if nothing."""
    if not _library().is_file():
        return "the native kernel was not built: install again where a C++ compiler is found"
    if lacking := _FEATURES[number] - _flags_in(_cpu_facts()):
        return f"the CPU lacks {', '.join(sorted(lacking))}"
    if number != "fp32" and not _is_wide(_cpu_facts()):
        return "the native kernel was not built for AVX-512: install again with a newer compiler"
    try:
        load_kernel()
    except OSError as error:
        return f"the native kernel cannot be loaded, install again: {error}"
    return None


def has_tiles() -> bool:
    """Say whether the CPU has AMX and the system lets this process use it."""
    if not _is_wide(_cpu_facts()) or _TILE_FEATURES - _flags_in(_cpu_facts()):
        return False
    return int(load_kernel().upt_request_tiles()) == 0


def unit() -> str:
    """Return what multiplies on this CPU."""
    if has_tiles():
        return "AMX"
    return "AVX-512" if _is_wide(_cpu_facts()) else "AVX2"


def panel() -> int:
    """Return how many outputs a panel of weights has: as many as the registers hold."""
    return 32 if _is_wide(_cpu_facts()) else 16


def digest() -> str:
    """Return a digest of the compiled kernel, empty if there is none."""
    library = _library()
    return hashlib.sha256(library.read_bytes()).hexdigest() if library.is_file() else ""


def machine() -> list[str]:
    """Return what tells this machine's CPU from another's."""
    lines = _cpu_facts().splitlines()
    models = {line for line in lines if line.startswith(("model name", "flags"))}
    return [*sorted(models), str(os.cpu_count())]


def floats(array: NDArray[np.generic]) -> "FloatPointer":
    """Point at an array of fp32; it has to be kept alive."""
    return array.ctypes.data_as(_Floats)


def _library() -> Path:
    return _built_for("avx512" if _is_wide(_cpu_facts()) else "avx2")


def _built_for(machine: str) -> Path:
    return _FOLDER / f"libupt_kernel_{machine}.so"


@cache
def _is_wide(facts: str) -> bool:
    """Say whether it is the library for AVX-512 that is used; not every compiler can make it."""
    return _flags_in(facts) >= _AVX512 and _built_for("avx512").is_file()


@cache
def _flags_in(facts: str) -> frozenset[str]:
    return frozenset(facts.split())


@cache
def _cpu_facts() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
