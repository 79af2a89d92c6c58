"""The files of foreign checkpoints: JSON and tensors in, JSON and safetensors out.

A pickled file (``.bin``) is read by torch with ``weights_only``, which runs no code; it is the one
place here that needs torch.
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from safetensors import SafetensorError, deserialize, safe_open

from upt_zoo.backbone import Backbone
from upt_zoo.errors import Conflict, Corrupt, InvalidInput, InvalidSpec
from upt_zoo.interop.settings import Settings
from upt_zoo.interop.weights import Wide
from upt_zoo.local.files import read_file
from upt_zoo.tensors import Array, write_tensors

_MAX_CONFIG_BYTES = 1024 * 1024
_MAX_WEIGHTS_BYTES = 1024 * 1024 * 1024  # as an adapter's own blobs
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
Linear = tuple[Wide, Wide]


def read_settings(file: Path) -> Settings:
    """Read a JSON object.

    Raises:
        Corrupt: it is too long or not a JSON object of finite numbers and whole characters.
        InvalidInput: there is no such file.
    """
    data = _read(file, _MAX_CONFIG_BYTES)
    try:
        values = json.loads(data, parse_constant=_refuse_constant)
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{file}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise Corrupt(f"{file}: expected a JSON object, got {type(values).__name__}")
    return Settings(values, file.name)


def read_weights(directory: Path, safe_name: str, pickled_name: str) -> dict[str, Array]:
    """Read all tensors as float32, from the safetensors file if there is one.

    Raises:
        Corrupt: the file does not have its format, or holds numbers that are not finite.
        InvalidInput: there is neither file, or a pickled one and no torch.
        InvalidSpec: a tensor does not hold floating-point numbers.
    """
    safe, pickled = directory / safe_name, directory / pickled_name
    if not safe.is_file() and not pickled.is_file():
        raise InvalidInput(f"{directory}: expected {safe_name} or {pickled_name}")
    tensors = _read_safe(safe) if safe.is_file() else _read_pickled(pickled)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise Corrupt(f"{directory.name}: tensor {name}: expected finite numbers")
    return tensors


def read_pooler(backbone: Backbone) -> Linear | None:
    """Read the pooler that lies beside the encoder, weight and bias; None if there is none.

    Raises:
        Corrupt: the file is damaged.
    """
    try:
        with safe_open(backbone.weights_file, framework="numpy") as file:
            for prefix in ("", f"{backbone.config.model_type}."):
                names = [f"{prefix}pooler.dense.{part}" for part in ("weight", "bias")]
                if set(names) <= set(file.keys()):
                    weight, bias = (file.get_tensor(name).astype(np.float64) for name in names)
                    return weight, bias
    except (SafetensorError, TypeError) as error:  # numpy has no bfloat16
        raise Corrupt(f"{backbone.weights_file}: the pooler cannot be read: {error}") from error
    return None


def write_checkpoint(
    directory: Path,
    configs: Mapping[str, Mapping[str, JsonValue]],
    weights: Mapping[str, Mapping[str, Array]],
    card: str,
) -> None:
    """Write a whole directory or none; ``card`` becomes its README.md.

    Raises:
        Conflict: there is something of that name other than an empty directory.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise Conflict(f"{directory} exists; choose another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    staging.mkdir()
    try:
        for name, config in configs.items():
            text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
            (staging / name).write_text(f"{text}\n", encoding="utf-8")
        for name, tensors in weights.items():
            (staging / name).write_bytes(write_tensors(tensors))
        (staging / "README.md").write_text(card, encoding="utf-8")
        staging.replace(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _read(file: Path, max_bytes: int) -> bytes:
    try:
        data = read_file(file, max_bytes)
    except FileNotFoundError as error:
        raise InvalidInput(f"expected the file {file}") from error
    if len(data) > max_bytes:
        raise Corrupt(f"{file}: expected at most {max_bytes} bytes")
    return data


def _refuse_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not a number of JSON")


def _read_safe(file: Path) -> dict[str, Array]:
    try:
        entries = deserialize(_read(file, _MAX_WEIGHTS_BYTES))  # type: ignore[no-untyped-call]  # it ships untyped
    except SafetensorError as error:
        raise Corrupt(f"{file}: not a valid safetensors file: {error}") from error
    return {name: _decode(file, name, entry) for name, entry in entries}


def _decode(file: Path, name: str, entry: Mapping[str, object]) -> Array:
    dtype, shape, data = entry["dtype"], entry["shape"], entry["data"]
    if dtype not in _DTYPES or not isinstance(shape, list) or not isinstance(data, bytearray):
        raise InvalidSpec(f"{file.name}: tensor {name}: expected floating point, got {dtype}")
    stored = np.frombuffer(data, dtype=_DTYPES[str(dtype)])
    if dtype == "BF16":  # the upper half of a float32
        stored = (stored.astype("<u4") << 16).view("<f4")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused with infinities
        return stored.astype(np.float32).reshape(shape)


def _read_pickled(file: Path) -> dict[str, Array]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{file}: reading this format needs torch; install it, or save as safetensors"
        ) from error
    if not 0 < file.stat().st_size <= _MAX_WEIGHTS_BYTES:
        raise Corrupt(f"{file}: expected 1 to {_MAX_WEIGHTS_BYTES} bytes")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Corrupt(f"{file}: not a file of tensors alone: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise Corrupt(f"{file}: expected named tensors, got {type(loaded).__name__}")
    return _to_numpy(file, loaded)


def _to_numpy(file: Path, loaded: Mapping[str, object]) -> dict[str, Array]:
    import torch

    tensors: dict[str, Array] = {}
    numbers = 0
    for name, tensor in loaded.items():
        if not isinstance(tensor, torch.Tensor):
            raise Corrupt(f"{file}: {name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise InvalidSpec(f"{file.name}: tensor {name}: expected floating point, dense")
        numbers += tensor.numel()  # a view of one number may claim any shape
        if numbers > _MAX_WEIGHTS_BYTES:
            raise Corrupt(f"{file}: its tensors claim more than {_MAX_WEIGHTS_BYTES} numbers")
        tensors[name] = tensor.detach().to(torch.float32).numpy().copy()
    return tensors
