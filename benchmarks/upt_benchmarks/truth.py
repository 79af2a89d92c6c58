"""What a server must answer: each adapter's answer to each text, computed alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray

from upt_server.results import Output
from upt_server.runner import Runner
from upt_zoo.answers import LabelAnswer, answer
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.tokenization import Tokenizer

# torch's answers depend on the batch by rounding; the native runners' do not
_TOLERANCE = 1e-4
# how long an alias may still lead where it led before: its new version is loaded first
_FOLLOW_S = 15.0


@dataclass(slots=True, kw_only=True)
class Truth:
    """Scores by digest and text, and where references led, with the time of each move."""

    scores: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    size_bytes: int = 0
    _led_to: dict[Reference, list[tuple[float, str]]] = field(default_factory=dict)

    def learn(
        self,
        store: Store,
        adapters: Iterable[StoredAdapter],
        texts: Sequence[str],
        *,
        runner: Runner,
        tokenizer: Tokenizer,
    ) -> None:
        """Run every adapter on every text, one row at a time."""
        for stored in adapters:
            spec, arrays = store.load(stored)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            adapter = runner.prepare(spec, tensors)
            self.size_bytes += adapter.size_bytes()
            for text in texts:
                rows = tokenizer.encode(spec.task, (text,), kind="classification")
                run = [Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter) for row in rows]
                answered = answer(spec, (text,), rows, runner.run(run))
                assert isinstance(answered, LabelAnswer)
                self.scores[stored.digest, text] = np.array(answered.scores)

    def means(self, reference: Reference, digest: str) -> None:
        """Note what a reference has always led to."""
        self._led_to[reference] = [(-inf, digest)]

    def moved(self, reference: Reference, digest: str) -> None:
        """Note that from here on a reference leads to a digest."""
        self._led_to[reference].append((monotonic(), digest))

    def fault_in(
        self, output: Output, reference: Reference, text: str, asked_at_s: float
    ) -> str | None:
        """Say what is wrong with an answer; None if nothing."""
        digest = output.adapter.digest
        if digest not in self._possible(reference, asked_at_s):
            return f"{reference}: answered by {digest}, which it did not mean"
        if not isinstance(output.answer, LabelAnswer):
            return f"{reference}: answered with a {type(output.answer).__name__}"
        far = float(np.abs(np.array(output.answer.scores) - self.scores[digest, text]).max())
        return f"{reference}: {far:.1e} from a single run" if far > _TOLERANCE else None

    def _possible(self, reference: Reference, asked_at_s: float) -> set[str]:
        moves = self._led_to[reference]
        before = [digest for at_s, digest in moves if at_s <= asked_at_s - _FOLLOW_S]
        since = [digest for at_s, digest in moves if at_s > asked_at_s - _FOLLOW_S]
        return {*before[-1:], *since}
