"""AdapterHub's ``adapters`` with transformers' ``Trainer``: UniPELT+Prompt, a few steps at a time.

What is computed is what ``upt-train`` does: flat prefix, a linear head on [CLS], dropout on hidden
states and none on attention's weights. A run takes steps over the same rows from fresh optimiser
states; the steps are timed, what comes before the first and after the last is not.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from adapters import (
    AdapterTrainer,
    AutoAdapterModel,
    ConfigUnion,
    PrefixTuningConfig,
    PromptTuningConfig,
    UniPELTConfig,
)
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from worker import padded, work

PROMPT_LENGTH = PREFIX_LENGTH = 10
NAME = "task"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Rows to learn from; ``is_grouped`` puts rows of like lengths into a batch."""

    checkpoint: str
    rows: Sequence[list[int]]
    type_ids: Sequence[list[int]]
    labels: Sequence[int]
    batch_size: int
    dropout: float
    bf16: bool
    is_grouped: bool
    threads: int


class Watch(TrainerCallback):
    """Milliseconds from before the first step to after the last."""

    def __init__(self) -> None:
        self._started: float | None = None
        self.ms = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Start with the first."""
        if self._started is None:
            self._started = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Read off."""
        if self._started is not None:
            self.ms = (time.perf_counter() - self._started) * 1000


def prepare(lesson: Lesson) -> Callable[[], float]:
    """Load the model with an adapter that learns, its rows beside it."""
    model = AutoAdapterModel.from_pretrained(
        lesson.checkpoint,
        hidden_dropout_prob=lesson.dropout,
        attention_probs_dropout_prob=0.0,
    )
    prefix = PrefixTuningConfig(flat=True, prefix_length=PREFIX_LENGTH)
    config = ConfigUnion(
        *UniPELTConfig(prefix_tuning=prefix).configs,
        PromptTuningConfig(prompt_length=PROMPT_LENGTH),
    )
    model.add_adapter(NAME, config=config)
    model.add_classification_head(NAME, num_labels=2, layers=1, use_pooler=False)
    model.train_adapter(NAME)
    pad = model.config.pad_token_id
    examples = [
        {"input_ids": ids, "token_type_ids": types, "labels": label}
        for ids, types, label in zip(lesson.rows, lesson.type_ids, lesson.labels, strict=True)
    ]

    def collate(batch: Sequence[Mapping[str, object]]) -> dict[str, torch.Tensor]:
        types = padded([each["token_type_ids"] for each in batch], 0)["input_ids"]
        labels = torch.tensor([each["labels"] for each in batch])
        inputs = padded([each["input_ids"] for each in batch], pad)
        return {**inputs, "token_type_ids": types, "labels": labels}

    def run() -> float:
        watch = Watch()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=lesson.batch_size,
                num_train_epochs=1,
                group_by_length=lesson.is_grouped,
                bf16=lesson.bf16,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            trainer = AdapterTrainer(
                model, arguments, collate, train_dataset=examples, callbacks=[watch]
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return watch.ms

    return run


if __name__ == "__main__":
    work(prepare, ("adapters", "transformers", "accelerate", "torch"), setup=Lesson)
