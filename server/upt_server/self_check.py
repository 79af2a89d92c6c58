"""Whether an adapter answers its own example here as it did where it was published."""

import logging
from collections.abc import Sequence

import numpy as np

from upt_server.batcher import Batcher, Job
from upt_server.precision import TOLERANCES, Precision
from upt_zoo.answers import Logits
from upt_zoo.errors import WrongAnswer
from upt_zoo.local.store import StoredAdapter
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.nn.example import example_rows
from upt_zoo.tokenization import Tokenizer

_LOGGER = logging.getLogger(__name__)


class SelfCheck:
    """Runs adapters' examples through the queue, as if a caller asked."""

    def __init__(self, tokenizer: Tokenizer, batcher: Batcher, precision: Precision) -> None:
        self._tokenizer, self._batcher, self._precision = tokenizer, batcher, precision

    async def check(self, stored: StoredAdapter, adapter: PreparedAdapter) -> None:
        """Compare an adapter's example with its answer here; one without an example passes.

        Raises:
            Overloaded: the queue is full.
            WrongAnswer: it answers otherwise.
        """
        example = stored.spec.example
        if example is None:
            _LOGGER.info("%s has no example: not checked", stored.reference)
            return
        rows = example_rows(stored.spec, example.texts, adapter, self._tokenizer)
        computed = await self._batcher.compute(
            [Job(row=row, adapter=stored.digest) for row in rows]
        )
        far = distance(example.logits, computed.logits)
        if not far <= TOLERANCES[self._precision]:  # nor is a NaN
            raise WrongAnswer(
                f"{stored.reference}@{stored.digest} answers its own example otherwise here than "
                f"where it was published: {far:.2g} of its largest logit away, expected "
                f"{TOLERANCES[self._precision]:g} at most; pull it again, or try another --runner"
            )


def distance(expected: Sequence[float], got: Sequence[Logits]) -> float:
    """Return the largest difference as a share of the largest expected logit, of 1 at least.

    It is infinite where there are more or fewer logits than expected.
    """
    flat, wanted = np.concatenate([logits.ravel() for logits in got]), np.array(expected)
    if flat.shape != wanted.shape:
        return float("inf")
    return float(np.abs(flat - wanted).max() / max(1.0, np.abs(wanted).max()))
