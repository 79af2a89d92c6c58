"""Hugging Face transformers, the way most people run an encoder: sdpa, padded rows."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.utils import logging

Run = Callable[[], object]
Ids = Sequence[list[int]]

_CHUNKINGS = (2, 4, 8)  # into how many batches of like lengths
_TRIES = 3


class HuggingFace:
    """One bare model; its inputs are tensors before the clock starts, unlike ours."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: str) -> None:
        # a bar, and the news that the checkpoint has a pooler
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it ships untyped
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it ships untyped
        model = AutoModel.from_pretrained(
            directory, attn_implementation="sdpa", dtype=dtype, add_pooling_layer=False
        )
        self._model, self._device = model.eval().to(device), device
        self._pad = int(model.config.pad_token_id)

    def padded(self, rows: Ids) -> Run:
        """Run all rows at once, padded to the longest."""
        return self.one_by_one([rows])

    def one_by_one(self, batches: Sequence[Ids]) -> Run:
        """Run batches one after the other, each padded to its longest."""
        inputs = [
            {name: tensor.to(self._device) for name, tensor in _padded(rows, self._pad).items()}
            for rows in batches
        ]

        def run() -> None:
            with torch.inference_mode():
                for each in inputs:
                    self._model(**each)
            if self._device != "cpu":
                torch.cuda.synchronize()

        return run

    def length_sorted(self, rows: Ids, clock: Callable[[Run], float]) -> Run:
        """Run like lengths together, in as many batches as are fastest by ``clock``."""
        ordered = sorted(rows, key=len)
        runs = [
            self.one_by_one([ordered[at : at + len(rows) // parts] for at in _starts(rows, parts)])
            for parts in _CHUNKINGS
        ]
        return min(runs, key=lambda run: min(clock(run) for _ in range(_TRIES)))


def full_models(directory: Path, rows: Ids, models: int, device: str) -> Run:
    """Run a fully fine-tuned model a task, each on its own rows."""
    runs = [
        HuggingFace(directory, torch.float32, device).padded(rows[index::models])
        for index in range(min(models, len(rows)))
    ]
    return lambda: [run() for run in runs]


def _starts(rows: Ids, parts: int) -> range:
    return range(0, len(rows), len(rows) // parts)


def _padded(rows: Ids, pad: int) -> dict[str, Tensor]:
    longest = max(len(row) for row in rows)
    ids = [row + [pad] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
