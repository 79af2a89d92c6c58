"""A task of one's own, described in a recipe or in a small YAML file of its own.

It holds what the catalogue says of its tasks, and a file for each split.
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from upt_zoo.spec import LABELLED, MAX_FIELDS, Count, HeadKind, Name
from upt_zoo.tasks import TASKS, FileSource, Metric, Task

_METRICS: dict[HeadKind, tuple[Metric, ...]] = {
    "classification": ("macro_f1", "accuracy", "micro_f1", "f1", "matthews_correlation"),
    "multi_label": ("micro_f1", "macro_f1", "accuracy"),
    "regression": ("pearson", "spearmanr"),
    "span": ("f1", "exact_match"),
    "token_classification": ("f1", "precision", "recall"),
    "embedding": ("spearmanr", "pearson"),
}
_USUAL: dict[HeadKind, int] = {"token_classification": 3}  # metrics without being named
_GOLD: dict[HeadKind, str] = {"span": "answers", "token_classification": "tags"}


class UserTask(BaseModel):
    """A task that the catalogue does not have.

    ``fields`` are the columns of its texts, of a token classification the one with lists of words,
    of an embedding the two with texts to compare. ``gold`` is the column of its answers (without
    one ``answers`` for spans, ``tags`` for words, else ``label``). ``labels`` stand in the order of
    their numbers. The first of ``metrics`` decides; without any they are the usual ones of the
    head. ``files`` names a CSV, TSV, JSON lines, Parquet or CoNLL file for each split, relative to
    the file that describes the task; splits whose names start with ``train`` are learnt from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    name: Name
    fields: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_FIELDS)]
    files: dict[str, str]
    head: HeadKind = "classification"
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    gold: str | None = None
    metrics: tuple[Metric, ...] = ()
    title: str | None = None
    description: str = ""
    licence: str = "not stated"
    commercial_use: Literal["yes", "no", "unclear"] = "unclear"
    adapter_licence: str = "not stated"
    max_tokens: Annotated[int, Field(ge=8)] = 128
    stride: Count | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_quoted(cls, labels: object) -> object:
        if isinstance(labels, list) and any(isinstance(label, bool) for label in labels):
            raise ValueError('YAML reads yes, no, true and false as truth values: write "yes"')
        return labels

    @field_validator("commercial_use", mode="before")
    @classmethod
    def _yes_needs_no_quotes(cls, value: object) -> object:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _is_a_task_of_its_own(self) -> Self:
        if self.name in TASKS:
            raise ValueError(f"the catalogue has a task {self.name}: take another name")
        if not any(split.startswith("train") for split in self.files):
            raise ValueError(
                f"files: expected a split train, got {', '.join(self.files) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit_the_head(self) -> Self:
        if (self.head in LABELLED) != (self.labels is not None):
            wanted = "no labels" if self.labels else "labels, in the order of their numbers"
            raise ValueError(f"labels: a {self.head} head has {wanted}")
        if len(set(self.labels or ())) != len(self.labels or ()):
            raise ValueError("labels: expected distinct ones")
        if self.head == "span" and len(self.fields) != MAX_FIELDS:
            raise ValueError("fields: a span head has two, the question and the context")
        if self.head == "embedding" and len(self.fields) != MAX_FIELDS:
            raise ValueError("fields: an embedding learns from two, the texts to compare")
        if self.head == "token_classification" and len(self.fields) != 1:
            raise ValueError("fields: a token classification has one, the words")
        return self

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns = (*self.fields, self._gold_column)
        if len(set(columns)) < len(columns):
            raise ValueError(
                f"fields: expected columns that differ from each other and from that of the "
                f"answers, got {', '.join(self.fields)} and {self._gold_column}"
            )
        return self

    @model_validator(mode="after")
    def _metrics_fit_the_head(self) -> Self:
        known = _METRICS[self.head]
        if not set(self.metrics) <= set(known):
            raise ValueError(f"metrics: a {self.head} head has {', '.join(known)}")
        if self.head == "classification" and "f1" in self.metrics and len(self.labels or ()) != 2:
            raise ValueError("metrics: f1 is of the second of two labels; take macro_f1")
        return self

    def task(self) -> Task:
        """Return it as the catalogue would have it."""
        return Task(
            name=self.name,
            title=self.title or self.name,
            fields=self.fields,
            metrics=self.metrics or _METRICS[self.head][: _USUAL.get(self.head, 2)],
            labels=self.labels,
            kind=self.head,
            data_licence=self.licence,
            commercial_use=self.commercial_use,
            description=self.description,
            max_tokens=self.max_tokens,
            stride=self.stride,
            adapter_licence=self.adapter_licence,
            files=FileSource(
                paths=dict(self.files),
                gold=self._gold_column,
            ),
        )

    @property
    def _gold_column(self) -> str:
        return self.gold or _GOLD.get(self.head, "label")

    def moved(self, folder: PurePosixPath) -> Self:
        """Return it with the files of ``folder``, where its own description stands."""
        files = {split: str(folder / file) for split, file in self.files.items()}
        return self.model_copy(update={"files": files})
