"""Texts without answers, for continued pretraining: of tasks, of text files, of tables."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from upt_training.batches import Feature
from upt_training.data import Example, read_split
from upt_training.pretraining import Pretraining
from upt_training.recipe import find_any_task
from upt_training.row_files import rows_of
from upt_zoo.errors import DataNotFound, InvalidInput
from upt_zoo.spec import DataFile, TaskInput
from upt_zoo.tokenization import Tokenizer, TokenRow

_MAX_TOKENS = 128
_WHOLE = 2**31 - 1
_STRICTEST_FIRST = ("no", "unclear", "yes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Texts, one or two an example, and where they come from."""

    title: str
    licence: str
    commercial_use: Literal["yes", "no", "unclear"]
    files: tuple[DataFile, ...]
    examples: tuple[Example, ...]


def read_corpus(recipe: Pretraining, folder: Path | None) -> Corpus:
    """Read the texts of a recipe; ``folder`` is that of the tasks' rows or of the text files.

    Texts of several tasks are pooled as they come: each licence is named once, and commercial use
    is what the strictest one allows.

    Raises:
        DataNotFound: a file is missing.
        InvalidInput: a file does not have its format, or holds no texts.
        NotFound: the catalogue has no such task.
    """
    if recipe.texts:
        return _corpus_of_files(recipe, folder or Path())
    names = recipe.tasks if recipe.task is None else (recipe.task,)
    tasks = [find_any_task(name) for name in names]
    splits = [read_split(task, name, folder=folder) for task in tasks for name in recipe.files]
    return Corpus(
        title=recipe.title or " + ".join(task.title for task in tasks),
        licence="; ".join(dict.fromkeys(task.data_licence for task in tasks)),
        commercial_use=min((task.commercial_use for task in tasks), key=_STRICTEST_FIRST.index),
        files=tuple(split.file for split in splits),
        examples=tuple(example for split in splits for example in split.examples),
    )


def rows_for_masking(
    examples: Sequence[Example], tokenizer: Tokenizer, max_tokens: int | None
) -> list[Feature]:
    """Tokenise texts: a long single text becomes several rows, a long pair loses its end."""
    longest = max_tokens or _MAX_TOKENS
    return [
        Feature(row=row, target=0)
        for example in examples
        for row in _rows(example.texts, tokenizer, longest)
        if len(row.ids) > 2  # more than special tokens
    ]


def _rows(texts: tuple[str, ...], tokenizer: Tokenizer, longest: int) -> Iterator[TokenRow]:
    fields = ("text", "other")[: len(texts)]
    task = TaskInput(name="texts", fields=fields, max_tokens=longest, metric="masked_accuracy")
    if len(texts) > 1:
        yield from tokenizer.encode(task, texts, kind="classification")
        return
    whole = task.model_copy(update={"max_tokens": _WHOLE})
    (row,) = tokenizer.encode(whole, texts, kind="classification")
    first, inner, last = row.ids[:1], row.ids[1:-1], row.ids[-1:]
    room = longest - 2
    for start in range(0, len(inner), room):
        ids = first + inner[start : start + room] + last
        yield replace(row, ids=ids, type_ids=[0] * len(ids))


def _corpus_of_files(recipe: Pretraining, folder: Path) -> Corpus:
    files, examples = [], []
    for name in recipe.texts:
        file = folder / name
        if not file.is_file():
            raise DataNotFound(f"texts: expected the file {file}")
        data = file.read_bytes()
        found = [Example(texts=(text,), gold=0) for text in _texts(file, data, recipe.column)]
        if not found:
            raise InvalidInput(f"{file}: expected texts, got none")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        files.append(DataFile(name=name, digest=digest, rows=len(found)))
        examples += found
    return Corpus(
        title=recipe.title or recipe.name,
        licence=recipe.licence,
        commercial_use=recipe.commercial_use,
        files=tuple(files),
        examples=tuple(examples),
    )


def _texts(file: Path, data: bytes, column: str) -> Iterator[str]:
    if file.suffix == ".txt":
        try:
            lines = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{file}: expected UTF-8 ({error.reason})") from error
        yield from (line for line in lines if line.strip())
        return
    for number, row in enumerate(rows_of(file, data), 1):
        text = row.get(column)
        if not isinstance(text, str):
            got = type(text).__name__ if column in row else f"the columns {', '.join(row)}"
            raise InvalidInput(f"{file}, row {number}, column {column}: expected a text, got {got}")
        if text.strip():
            yield text
