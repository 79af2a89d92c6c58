"""An adapter's own example: one input and its logits, by which any machine can check itself."""

import torch

from upt_zoo.errors import Overflowed
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec, Example
from upt_zoo.tokenization import Tokenizer

# no row of a data set, whose licence would come with it
_TEXTS = ("Who wrote the report?", "The report was written by Ada in the spring of last year.")

_DECIMALS = 4


def record_example(
    encoder: Encoder, spec: AdapterSpec, adapter: PreparedAdapter, tokenizer: Tokenizer
) -> Example:
    """Answer the example, to four decimals; encoder and adapter are in fp32.

    Further digits differ between two runs of torch on one machine, and so would the digest.

    Raises:
        Overflowed: a logit is not finite.
    """
    texts = _TEXTS[-len(spec.task.fields) :]
    with torch.inference_mode():
        logits = forward(encoder, example_rows(spec, texts, adapter, tokenizer))
    flat = torch.cat([each.flatten() for each in logits])
    if not flat.isfinite().all():
        raise Overflowed(f"{spec.task.name}: its numbers overflow at the example {texts}")
    return Example(texts=texts, logits=tuple(round(each, _DECIMALS) for each in flat.tolist()))


def example_rows(
    spec: AdapterSpec, texts: tuple[str, ...], adapter: PreparedAdapter, tokenizer: Tokenizer
) -> list[Row]:
    """Return the rows of an example's texts; their logits, one behind the other, are its own."""
    rows = tokenizer.encode(spec.task, texts, kind=spec.head.kind)
    return [Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter) for row in rows]
