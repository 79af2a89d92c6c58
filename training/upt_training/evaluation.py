"""Answers to labelled examples, computed in this process or by a running server.

Both take the same way from text to answer: the tokenizer, the heads and ``upt_zoo.answers``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from upt_zoo.answers import Answer, EmbeddingAnswer, ValueAnswer, answer
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
    """Answer all inputs, in batches of similar lengths; pairs to embed as ``cosines_of`` does."""
    if spec.head.kind == "embedding" and any(len(fields) > 1 for fields in texts):

        def ask(alone: Sequence[tuple[str, ...]]) -> list[Answer]:
            return answers_in_process(encoder, adapter, spec, tokenizer, alone)

        return cosines_of(texts, ask)
    encoded = [tokenizer.encode(spec.task, fields, kind=spec.head.kind) for fields in texts]
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
            [values.float().cpu().numpy() for values in islice(remaining, len(windows))],
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
    kind = spec.head.kind
    if kind == "embedding":
        texts = [(text,) for fields in texts for text in fields]
    rows = [row for fields in texts for row in tokenizer.encode(spec.task, fields, kind=kind)]
    sums: list[dict[str, float]] = [{} for _ in encoder.layers]
    for batch in _batches(rows, adapter.prompt_length):
        packed = [Row(ids=rows[i].ids, type_ids=rows[i].type_ids, adapter=adapter) for i in batch]
        for layer, gates in zip(sums, mean_gates(encoder, spec, packed), strict=True):
            for name, value in gates.items():
                layer[name] = layer.get(name, 0.0) + value * len(batch) / len(rows)
    return sums


def cosines_of(
    pairs: Sequence[tuple[str, ...]], ask: Callable[[Sequence[tuple[str, ...]]], list[Answer]]
) -> list[Answer]:
    """Answer each pair of texts with the cosine of their embeddings, for which ``ask`` is asked."""
    answers = ask([(text,) for pair in pairs for text in pair])
    vectors = [np.array(each.vector) for each in answers if isinstance(each, EmbeddingAnswer)]
    units = [vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in vectors]
    return [
        ValueAnswer(value=float(one @ other))
        for one, other in zip(units[::2], units[1::2], strict=True)
    ]


def answers_of_server(
    client: Asking,
    reference: str,
    texts: Sequence[tuple[str, ...]],
    *,
    is_embedding: bool = False,
) -> list[Answer]:
    """Let a running server answer all inputs; pairs to embed as ``cosines_of`` does.

    Raises:
        UptError: what the server says.
    """
    if is_embedding:
        return cosines_of(texts, partial(answers_of_server, client, reference))
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
