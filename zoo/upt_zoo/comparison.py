"""What differs between two adapters: facts of their specs, and their tensors. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import Array

Verdict = Literal["equal", "differs", "shape", "only in the first", "only in the second"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """A field of the spec, spelt with dots, and its two values; None is absent."""

    field: str
    first: JsonValue
    second: JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """How two tensors of one name relate.

    ``relative`` is |a - b| / max(|a|, |b|) in the Frobenius norm: 0 for equal values, 2 at most;
    None where the shapes differ.
    """

    name: str
    verdict: Verdict
    relative: float | None = None


def compare_specs(first: AdapterSpec, second: AdapterSpec) -> tuple[FactChange, ...]:
    """Return the fields that differ, sorted."""
    one = dict(_flatten("", first.model_dump(mode="json")))
    other = dict(_flatten("", second.model_dump(mode="json")))
    return tuple(
        FactChange(field=field, first=one.get(field), second=other.get(field))
        for field in sorted(one.keys() | other.keys())
        if one.get(field) != other.get(field)
    )


def compare_tensors(
    first: Mapping[str, Array], second: Mapping[str, Array]
) -> tuple[TensorChange, ...]:
    """Compare the tensors of each name that one of the two has, sorted."""
    return tuple(
        _compare(name, first.get(name), second.get(name))
        for name in sorted(first.keys() | second.keys())
    )


def _compare(name: str, first: Array | None, second: Array | None) -> TensorChange:
    import numpy as np

    if first is None or second is None:
        where: Verdict = "only in the first" if second is None else "only in the second"
        return TensorChange(name=name, verdict=where)
    if first.shape != second.shape:
        return TensorChange(name=name, verdict="shape")
    one, other = first.astype(np.float64), second.astype(np.float64)
    size = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    distance = float(np.linalg.norm(one - other))
    relative = distance / size if size else 0.0
    return TensorChange(name=name, verdict="differs" if distance else "equal", relative=relative)


def _flatten(prefix: str, value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else key, each)
    else:
        yield prefix, value
