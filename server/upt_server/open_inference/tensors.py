"""Tensors of the protocol: which ones a head gives, and their bytes. Knows no message."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from upt_server.results import Output
from upt_zoo.answers import (
    Answer,
    EmbeddingAnswer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    SpanAnswer,
    ValueAnswer,
)
from upt_zoo.errors import InvalidInput
from upt_zoo.spec import HeadKind

Values: TypeAlias = "NDArray[np.float32] | NDArray[np.int64] | list[bytes]"

# the outputs of each kind of head; -1 stands for the number of inputs, 0 for the head's outputs
OUTPUTS: Mapping[HeadKind, tuple[tuple[str, str, tuple[int, ...]], ...]] = {
    "classification": (
        ("label", "BYTES", (-1,)),
        ("score", "FP32", (-1,)),
        ("logits", "FP32", (-1, 0)),
    ),
    "multi_label": (("label", "BYTES", (-1,)), ("logits", "FP32", (-1, 0))),
    "regression": (("score", "FP32", (-1,)),),
    "span": (
        ("answer", "BYTES", (-1,)),
        ("start", "INT64", (-1,)),
        ("end", "INT64", (-1,)),
        ("score", "FP32", (-1,)),
    ),
    "token_classification": (("entities", "BYTES", (-1,)),),
    "embedding": (("embedding", "FP32", (-1, 0)),),
}
OUTPUT_NAMES = frozenset(name for outputs in OUTPUTS.values() for name, _, _ in outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One output of a call: BYTES as a list, the others as arrays, all of them flat."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Values

    def raw(self) -> bytes:
        """Return the elements behind each other, little-endian; BYTES with their lengths."""
        if isinstance(self.values, list):
            return b"".join(struct.pack("<I", len(value)) + value for value in self.values)
        return self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()


def split_raw(raw: bytes) -> Iterator[bytes]:
    """Yield the elements of raw BYTES, each behind its length in four bytes, little-endian.

    Raises:
        InvalidInput: the bytes end too early.
    """
    place = 0
    while place < len(raw):
        start = place + 4
        if start > len(raw):
            raise InvalidInput("raw contents end within a length")
        place = start + int.from_bytes(raw[place:start], "little")
        if place > len(raw):
            raise InvalidInput("raw contents end within a text")
        yield raw[start:place]


def make_tensors(outputs: Sequence[Output], wanted: Sequence[str]) -> tuple[Tensor, ...]:
    """Turn the answers of one adapter, which are of one kind, into the tensors asked for.

    All of them where ``wanted`` is empty.

    Raises:
        InvalidInput: the adapter's head gives no output of a name.
    """
    kind, columns = _columns(outputs)
    sizes = {-1: len(outputs), 0: len(outputs[0].logits)}
    tensors = {
        name: Tensor(
            name=name,
            datatype=datatype,
            shape=tuple(sizes[size] for size in shape),
            values=_WRITERS[datatype](columns[name]),
        )
        for name, datatype, shape in OUTPUTS[kind]
    }
    if unknown := [name for name in wanted if name not in tensors]:
        raise InvalidInput(f"no output {', '.join(unknown)}; there are {', '.join(tensors)}")
    return tuple(tensors[name] for name in wanted or tensors)


def _columns(outputs: Sequence[Output]) -> tuple[HeadKind, dict[str, list[object]]]:
    answers = [output.answer for output in outputs]
    logits: list[object] = [value for output in outputs for value in output.logits]
    match answers[0]:
        case LabelAnswer():
            kind: HeadKind = "classification"
            names = {"label": "label", "score": "score"}
        case LabelSetAnswer():
            labels: list[object] = [",".join(each.labels) for each in answers]  # type: ignore[union-attr]  # all of one kind
            return "multi_label", {"label": labels, "logits": logits}
        case ValueAnswer():
            kind, names = "regression", {"score": "value"}
        case EntitiesAnswer():
            lists: list[object] = [_write_entities(each) for each in answers]
            return "token_classification", {"entities": lists}
        case EmbeddingAnswer():
            numbers: list[object] = [value for each in answers for value in each.vector]  # type: ignore[union-attr]  # all of one kind
            return "embedding", {"embedding": numbers}
        case SpanAnswer():
            kind = "span"
            names = {"answer": "text", "start": "start", "end": "end", "score": "score"}
    columns = {name: [getattr(each, field) for each in answers] for name, field in names.items()}
    return kind, columns | {"logits": logits}


def _write_entities(answer: Answer) -> str:
    """Write entities as a JSON list of objects."""
    entities = answer.entities if isinstance(answer, EntitiesAnswer) else ()
    return json.dumps([asdict(entity) for entity in entities], ensure_ascii=False)


_WRITERS: Mapping[str, Callable[[list[object]], Values]] = {
    "BYTES": lambda values: [str(value).encode() for value in values],
    "FP32": lambda values: np.array(values, np.float32),
    "INT64": lambda values: np.array(values, np.int64),
}
