"""Rows of a task, from a folder of ``<task>/<split>.jsonl.gz`` or from the Hugging Face hub."""

import gzip
import hashlib
import io
import json
import math
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upt_zoo.errors import DataNotFound, InvalidInput
from upt_zoo.spec import DataFile
from upt_zoo.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldSpans:
    """All accepted answers of a question; ``starts`` are code points of the context."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One labelled input: texts in the order of the task's fields, and its gold answer."""

    texts: tuple[str, ...]
    gold: int | float | GoldSpans


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The rows of one file and the file's identity."""

    file: DataFile
    examples: tuple[Example, ...]


def read_split(task: Task, split: str, *, folder: Path | None) -> Split:
    """Read a split of the task from ``folder`` (``UPT_DATA_DIR``), or from the hub without one.

    Raises:
        DataNotFound: no such file, or no folder and no copy on the hub.
        InvalidInput: the file is not gzip'ed JSON lines or has none, or a row lacks a field or a
            valid gold answer.
    """
    if folder is None:
        return _read_hub(task, split)
    file = folder / task.name / f"{split}.jsonl.gz"
    if not file.is_file():
        raise DataNotFound(f"task {task.name}: expected the file {file}")
    data = file.read_bytes()
    return _split(task, split, _json_rows(file, data), digest=hashlib.sha256(data).hexdigest())


def splits_in(task: Task, *, folder: Path | None) -> tuple[str, ...]:
    """Return the names of the evaluation splits at hand: dev files, then test files."""
    if folder is None:
        return ("dev",) if task.hub else ()
    names = {
        file.name.removesuffix(".jsonl.gz") for file in (folder / task.name).glob("*.jsonl.gz")
    }
    return tuple(
        sorted(
            (name for name in names if not name.startswith("train")),
            key=lambda name: (name.startswith("test"), name),
        )
    )


def _json_rows(file: Path, data: bytes) -> Iterator[Mapping[str, object]]:
    try:
        lines = io.BytesIO(gzip.decompress(data))  # bytes, because text has more line ends than \n
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{file}: expected gzip'ed JSON lines ({error})") from error
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{file}, row {number}: expected a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise InvalidInput(f"{file}, row {number}: expected a JSON object, got {row!r:.40}")
        yield row


def _read_hub(task: Task, split: str) -> Split:
    if task.hub is None:
        raise DataNotFound(
            f"task {task.name} has no copy on the hub: set UPT_DATA_DIR to a folder that holds "
            f"{task.name}/{split}.jsonl.gz"
        )
    import datasets

    name = task.hub.dev_split if split == "dev" else split
    try:
        rows = datasets.load_dataset(task.hub.path, task.hub.name, split=name)
    except Exception as error:  # the library's errors have no common root
        raise DataNotFound(
            f"task {task.name}: {task.hub.path} could not be read from the hub "
            f"({type(error).__name__}); set UPT_DATA_DIR to read local files"
        ) from error
    return _split(task, split, rows, digest=_rows_digest(rows))


def _rows_digest(rows: Iterable[Mapping[str, object]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _split(task: Task, split: str, rows: Iterable[Mapping[str, object]], *, digest: str) -> Split:
    examples = tuple(_example(task, split, number, row) for number, row in enumerate(rows))
    if not examples:
        raise InvalidInput(f"{task.name}/{split}: expected rows, got none")
    file = DataFile(name=f"{task.name}/{split}", digest=f"sha256:{digest}", rows=len(examples))
    return Split(file=file, examples=examples)


def _example(task: Task, split: str, number: int, row: Mapping[str, object]) -> Example:
    try:
        texts = tuple(_text(row[field]) for field in task.fields)
        return Example(texts=texts, gold=_gold(task, row, texts))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{task.name}/{split}, row {number}: expected the fields {', '.join(task.fields)} and "
            f"a gold answer, got {sorted(row)} ({error})"
        ) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _gold(task: Task, row: Mapping[str, object], texts: tuple[str, ...]) -> int | float | GoldSpans:
    if task.kind == "span":
        return _gold_spans(row["answers"], texts[-1])
    label = row["label"]
    if not isinstance(label, int | float) or not math.isfinite(label):
        raise ValueError(f"label {label!r} is not a number")
    if task.kind == "regression":
        return float(label)
    if label not in range(len(task.labels or ())):
        raise ValueError(f"label {label} is not the number of one of {task.labels}")
    return int(label)


def _gold_spans(answers: object, context: str) -> GoldSpans:
    if not isinstance(answers, Mapping) or not answers["text"]:
        raise ValueError("answers is not an object with text and answer_start of one or more")
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if context[start : start + len(text)] != text:
            raise ValueError(f"the answer {text!r} is not at character {start} of the context")
    return GoldSpans(texts=tuple(answers["text"]), starts=tuple(answers["answer_start"]))


def hold_out(
    examples: Sequence[Example], rows: int, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split into (train, holdout) of about ``rows`` examples, drawn by ``seed``.

    Examples that share a text, or that others join by shared texts, stay together: the holdout is
    then as foreign to the training as a dev file is.
    """
    group_of = _groups(examples)
    sizes = Counter(group_of)
    order = sorted(sizes)
    random.Random(f"holdout/{seed}").shuffle(order)
    held: set[int] = set()
    count = 0
    for group in order:
        if count >= rows:
            break
        held.add(group)
        count += sizes[group]
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example, group in zip(examples, group_of, strict=True):
        parts[group in held].append(example)
    return parts


def _groups(examples: Sequence[Example]) -> list[int]:
    """Number each example's group: the first example that its texts are joined to."""
    first_with: dict[str, int] = {}
    parents = list(range(len(examples)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for index, example in enumerate(examples):
        for text in example.texts:
            one, other = root(first_with.setdefault(text, index)), root(index)
            parents[max(one, other)] = min(one, other)
    return [root(index) for index in range(len(examples))]
