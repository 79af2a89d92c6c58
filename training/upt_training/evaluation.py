"""Answers to labelled examples, computed in this process or by a running server.

Both take the same way from text to answer: the tokenizer, the heads and ``upt_zoo.answers``.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import torch

from upt_zoo.answers import Answer, answer
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.forward import forward
from upt_zoo.nn.gates import mean_gates
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec
from upt_zoo.tokenization import Tokenizer, TokenRow

if TYPE_CHECKING:
    from upt_server.results import Prediction

_BATCH_TOKENS = 2048
_CALL_INPUTS = 32  # with the longest SQuAD context far below the bounds of a server's call


class Asking(Protocol):
    """A server's client, as far as evaluation needs it: ``upt_server.client.Client``."""

    def predict_many(self, inputs: Iterable[tuple[str, Sequence[str]]]) -> "Prediction":
        """Answer pairs of adapter and texts in one call."""
        ...


def answers_in_process(
    encoder: Encoder,
    adapter: PreparedAdapter,
    spec: AdapterSpec,
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, ...]],
) -> list[Answer]:
    """Answer all inputs, in batches of similar lengths."""
    encoded = [
        tokenizer.encode(spec.task, fields, is_span=spec.head.kind == "span") for fields in texts
    ]
    rows = [row for windows in encoded for row in windows]
    logits = [torch.empty(0)] * len(rows)
    with torch.inference_mode():
        for batch in _batches(rows, adapter.prompt_length):
            packed = [
                Row(ids=rows[i].ids, type_ids=rows[i].type_ids, adapter=adapter) for i in batch
            ]
            for index, values in zip(batch, forward(encoder, packed), strict=True):
                logits[index] = values
    remaining = iter(logits)
    return [
        answer(
            spec,
            fields,
            windows,
            [values.float().numpy() for values in islice(remaining, len(windows))],
        )
        for fields, windows in zip(texts, encoded, strict=True)
    ]


def gates_in_process(
    encoder: Encoder,
    adapter: PreparedAdapter,
    spec: AdapterSpec,
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, ...]],
) -> list[dict[str, float]]:
    """Return each layer's gates by name, the mean over all inputs' token rows."""
    is_span = spec.head.kind == "span"
    rows = [row for fields in texts for row in tokenizer.encode(spec.task, fields, is_span=is_span)]
    sums: list[dict[str, float]] = [{} for _ in encoder.layers]
    for batch in _batches(rows, adapter.prompt_length):
        packed = [Row(ids=rows[i].ids, type_ids=rows[i].type_ids, adapter=adapter) for i in batch]
        for layer, gates in zip(sums, mean_gates(encoder, spec, packed), strict=True):
            for name, value in gates.items():
                layer[name] = layer.get(name, 0.0) + value * len(batch) / len(rows)
    return sums


def answers_of_server(
    client: Asking, reference: str, texts: Sequence[tuple[str, ...]]
) -> list[Answer]:
    """Let a running server answer all inputs.

    Raises:
        UptError: what the server says.
    """
    answers: list[Answer] = []
    for start in range(0, len(texts), _CALL_INPUTS):
        inputs = [(reference, fields) for fields in texts[start : start + _CALL_INPUTS]]
        answers += [output.answer for output in client.predict_many(inputs).outputs]
    return answers


def _batches(rows: Sequence[TokenRow], prompt_length: int) -> Iterator[list[int]]:
    """Yield indices of rows, shortest first, at most ``_BATCH_TOKENS`` tokens at once."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        size = len(rows[index].ids) + prompt_length
        if batch and tokens + size > _BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += size
    if batch:
        yield batch
