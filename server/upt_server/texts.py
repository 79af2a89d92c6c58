"""Both ends of an answer: from texts to token rows, and from logits to outputs. Pure.

It runs on the text threads, and knows neither queue nor protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from upt_server.batcher import Job
from upt_server.inputs import Input, Options, at_input, choose_format, order_texts
from upt_server.residency import Lease
from upt_server.results import AdapterIdentity, Gates, Output
from upt_server.scheduling import Priority
from upt_zoo.answers import (
    Answer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    Logits,
    SpanAnswer,
    answer,
    best_spans,
    scaled,
    span_logits,
    word_logits,
)
from upt_zoo.errors import InvalidInput, InvalidText
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.spec import HeadKind
from upt_zoo.tokenization import Tokenizer, TokenRow

_Labels = tuple[str, ...]
_Windows = HeadKind | None  # whose they are; None for one row
_Format = tuple[tuple[str, ...], int, int | None, _Windows]  # texts, max_tokens, stride, windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An input as token rows, with what its output is formed from."""

    lease: Lease
    texts: tuple[str, ...]
    rows: list[TokenRow]
    options: Options

    @property
    def tokens(self) -> int:
        """Tokens that the rows add to batches, prompt vectors included."""
        prompts = len(self.rows) * self.lease.prepared.prompt_length
        return sum(len(row.ids) for row in self.rows) + prompts

    def jobs(self, *, weight: int = 1, priority: Priority = "normal") -> list[Job]:
        """Return the rows as the batcher takes them."""
        adapter = self.lease.prepared
        return [
            Job(
                row=Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter),
                adapter=self.lease.stored.digest,
                weight=weight,
                priority=priority,
            )
            for row in self.rows
        ]


def encode(
    tokenizer: Tokenizer,
    inputs: Sequence[Input],
    held: Mapping[Reference, Lease],
    max_rows: int,
) -> list[Encoded]:
    """Tokenise a call; texts that come again in the same format are tokenised once.

    Raises:
        InvalidInput: an option is out of range, or not for this kind of task, or all inputs
            together have more than ``max_rows`` rows.
        InvalidText: the texts are not those of the task, or too long where that is refused, or one
            input alone has more than ``max_rows`` windows.
    """
    known: dict[_Format, list[TokenRow]] = {}
    encoded = []
    rows = 0
    for index, item in enumerate(inputs):
        lease, options = held[item.adapter], item.options
        head = lease.stored.spec.head
        with at_input(index, item.path):
            task = choose_format(lease.stored.spec.task, options, head.kind)
            texts = order_texts(task, item)
            windows = head.kind if head.is_per_token else None
            key = (texts, task.max_tokens, task.stride, windows)
            if key not in known:
                known[key] = tokenizer.encode(task, texts, kind=head.kind, max_rows=max_rows)
            rows += len(known[key])
            if rows > max_rows:
                raise InvalidInput(
                    f"expected at most {max_rows} rows and windows a call, got {rows} up to this "
                    f"input; split the call"
                )
            if options.is_truncation_refused and any(row.is_truncated for row in known[key]):
                raise InvalidText(
                    f"task {task.name} takes {task.max_tokens} tokens, special tokens included, "
                    f"and the input has more; shorten it, or let it be truncated"
                )
        encoded.append(Encoded(lease=lease, texts=texts, rows=known[key], options=options))
    return encoded


def form_outputs(
    encoded: Sequence[Encoded], logits: Sequence[Logits], gates: Mapping[int, Sequence[Gates]]
) -> tuple[Output, ...]:
    """Form the outputs; ``logits`` are those of all rows, input after input, ``gates`` by input."""
    remaining = iter(logits)
    return tuple(
        _form_output(item, list(islice(remaining, len(item.rows))), gates.get(index, ()))
        for index, item in enumerate(encoded)
    )


def _form_output(item: Encoded, logits: Sequence[Logits], gates: Sequence[Gates]) -> Output:
    spec = item.lease.stored.spec
    given = answer(spec, item.texts, item.rows, logits)
    given, labels = _keep_best(given, spec.head.labels or (), item.options.top_k)
    return Output(
        answer=given,
        labels=labels,
        adapter=AdapterIdentity.of(item.lease.stored),
        task=spec.task.name,
        tokens=sum(len(row.ids) for row in item.rows),
        is_truncated=any(row.is_truncated for row in item.rows),
        windows=len(item.rows),
        candidates=_candidates(item, logits),
        logits=_raw_scores(item, given, logits),
        gates=tuple(gates),
    )


def _keep_best(given: Answer, labels: _Labels, top_k: int | None) -> tuple[Answer, _Labels]:
    """Keep the most probable labels only, best first, if so many are asked for."""
    if not isinstance(given, LabelAnswer | LabelSetAnswer):
        return given, ()
    if top_k is None:
        return given, labels
    scores = given.scores
    best = sorted(range(len(scores)), key=lambda place: -scores[place])[:top_k]
    kept = replace(given, scores=tuple(scores[place] for place in best))
    return kept, tuple(labels[place] for place in best)


def _candidates(item: Encoded, logits: Sequence[Logits]) -> tuple[SpanAnswer, ...]:
    head, top_k = item.lease.stored.spec.head, item.options.top_k
    if top_k is None or head.kind != "span":
        return ()
    return best_spans(item.texts[1], item.rows, scaled(head, logits), top_k)


def _raw_scores(item: Encoded, given: Answer, logits: Sequence[Logits]) -> tuple[float, ...]:
    if not item.options.has_logits:
        return ()
    if isinstance(given, SpanAnswer):
        return span_logits(given, item.rows, logits) or ()
    if isinstance(given, EntitiesAnswer):
        return tuple(word_logits(item.rows, logits)[1].ravel().tolist())
    return tuple(logits[0].tolist())
