"""Predictions that nobody made, for what counts them."""

from upt_server.results import AdapterIdentity, Output, Prediction, Timings
from upt_zoo.answers import ValueAnswer


def make_prediction(
    name: str, *, tokens: int = 3, total_ms: float = 0.0, inputs: int = 1
) -> Prediction:
    """A call of one adapter, whose task is called as it is; ``tokens`` are those of an input."""
    output = Output(
        answer=ValueAnswer(value=1),
        labels=(),
        adapter=AdapterIdentity(name=name, version="1.0.0", digest="sha256:"),
        task=name,
        tokens=tokens,
        is_truncated=False,
        windows=1,
    )
    return Prediction(
        outputs=(output,) * inputs,
        backbone_digest="",
        precision="exact",
        timings=Timings(load_ms=0, tokenize_ms=0, queue_ms=0, forward_ms=0, total_ms=total_ms),
        batches=(),
    )
