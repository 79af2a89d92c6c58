"""Rows of a task: from a folder of ``<task>/<split>.jsonl.gz``, the hub, or a user's own files."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upt_training.gold import Gold, gold_of, join_words, tags_of
from upt_training.row_files import rows_of
from upt_zoo.close_names import did_you_mean
from upt_zoo.errors import DataNotFound, InvalidInput, InvalidSpec
from upt_zoo.spec import DataFile
from upt_zoo.tasks import FileSource, HubSource, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One labelled input: texts in the order of the task's fields, and its gold answer."""

    texts: tuple[str, ...]
    gold: Gold


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The rows of one file and the file's identity."""

    file: DataFile
    examples: tuple[Example, ...]

    @property
    def name(self) -> str:
        """The split's: ``dev`` of ``sst2/dev``."""
        return self.file.name.rpartition("/")[2]


def read_split(task: Task, split: str, *, folder: Path | None) -> Split:
    """Read a split of the task from ``folder`` (``UPT_DATA_DIR``), or from the hub without one.

    The files of a user's own task are named relative to ``folder``.

    Raises:
        DataNotFound: no such file, or no folder and no copy on the hub.
        InvalidInput: the file does not have its format or has no rows, or a row lacks a field or a
            valid gold answer; file, row (from 1) and column are named.
    """
    source = find_split(task, split, folder=folder)
    if isinstance(source, HubSource):
        return _read_hub(task, split, source)
    data = source.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return _split(task, split, rows_of(source, data), digest=digest, source=str(source))


def find_split(task: Task, split: str, *, folder: Path | None) -> Path | HubSource:
    """Say where ``read_split`` reads a split, without opening it; the hub is not asked.

    Raises:
        DataNotFound: no such file, or no folder and no copy on the hub.
    """
    if task.files is not None:
        file = (folder or Path()) / _path(task, task.files, split)
    elif folder is not None:
        file = folder / task.name / f"{split}.jsonl.gz"
    elif task.hub is not None:
        return task.hub
    else:
        raise DataNotFound(
            f"task {task.name} has no copy on the hub: set UPT_DATA_DIR to a folder that holds "
            f"{task.name}/{split}.jsonl.gz"
        )
    if not file.is_file():
        raise DataNotFound(f"task {task.name}: expected the file {file}")
    return file


def splits_in(task: Task, *, folder: Path | None) -> tuple[str, ...]:
    """Return the names of the evaluation splits at hand: dev files, then test files."""
    if task.files is not None:
        names = set(task.files.paths)
    elif folder is not None:
        files = (folder / task.name).glob("*.jsonl.gz")
        names = {file.name.removesuffix(".jsonl.gz") for file in files}
    else:
        return ("dev",) if task.hub else ()
    return tuple(
        sorted(
            (name for name in names if not name.startswith("train")),
            key=lambda name: (name.startswith("test"), name),
        )
    )


def _path(task: Task, files: FileSource, split: str) -> str:
    if split not in files.paths:
        raise DataNotFound(
            f"task {task.name}: no file for {split}{did_you_mean(split, files.paths) or ';'} "
            f"files has {', '.join(files.paths)}"
        )
    return files.paths[split]


def _read_hub(task: Task, split: str, hub: HubSource) -> Split:
    import datasets

    name = hub.dev_split if split == "dev" else split
    try:
        rows = datasets.load_dataset(hub.path, hub.name, split=name)
    except Exception as error:  # the library's errors have no common root
        raise DataNotFound(
            f"task {task.name}: {hub.path} could not be read from the hub "
            f"({type(error).__name__}); set UPT_DATA_DIR to read local files"
        ) from error
    return _split(task, split, rows, digest=_rows_digest(rows), source=f"{hub.path}/{split}")


def _rows_digest(rows: Iterable[Mapping[str, object]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _split(
    task: Task, split: str, rows: Iterable[Mapping[str, object]], *, digest: str, source: str
) -> Split:
    examples = tuple(_example(task, source, number, row) for number, row in enumerate(rows, 1))
    if not examples:
        raise InvalidInput(f"{source}: expected rows, got none")
    file = DataFile(name=f"{task.name}/{split}", digest=f"sha256:{digest}", rows=len(examples))
    return Split(file=file, examples=examples)


def _example(task: Task, source: str, number: int, row: Mapping[str, object]) -> Example:
    column = _gold_column(task)
    missing = {*task.fields, column} - row.keys()
    if missing:
        raise InvalidInput(
            f"{source}, row {number}: expected the columns {', '.join((*task.fields, column))}, "
            f"got {', '.join(row)}"
        )
    if task.kind == "token_classification":
        return _tagged_example(task, f"{source}, row {number}", row)
    for field in task.fields:
        if not isinstance(row[field], str):
            raise InvalidInput(
                f"{source}, row {number}, column {field}: expected a text, "
                f"got {type(row[field]).__name__}"
            )
    texts = tuple(str(row[field]) for field in task.fields)
    try:
        return Example(texts=texts, gold=gold_of(task, row[column], texts))
    except ValueError as error:
        raise InvalidInput(f"{source}, row {number}, column {column}: {error}") from error


def _tagged_example(task: Task, place: str, row: Mapping[str, object]) -> Example:
    (words,), tags = task.fields, _gold_column(task)
    column = words
    try:
        text, places = join_words(row[words])
        column = tags
        return Example(texts=(text,), gold=tags_of(task, row[tags], places))
    except ValueError as error:
        raise InvalidInput(f"{place}, column {column}: {error}") from error


def _gold_column(task: Task) -> str:
    if task.files is not None:
        return task.files.gold
    return "answers" if task.kind == "span" else "label"


def hold_out(
    examples: Sequence[Example], rows: int, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split into (train, holdout) of about ``rows`` examples, drawn by ``seed``.

    Examples that share a text, or that others join by shared texts, stay together: the holdout is
    then as foreign to the training as a dev file is. A group of more than ``rows`` is learnt from.

    Raises:
        InvalidSpec: all groups are larger.
    """
    group_of = groups_of([example.texts for example in examples])
    sizes = Counter(group_of)
    order = sorted(group for group, size in sizes.items() if size <= rows)
    if rows and not order:
        raise InvalidSpec(
            f"holdout_rows: expected {min(sizes.values())} or more, since rows that share a text "
            f"stay together, got {rows}; leave it out to learn from all rows"
        )
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


def draw(examples: Sequence[Example], rows: int, *, seed: int) -> list[Example]:
    """Draw ``rows`` examples by ``seed``, in their own order.

    Raises:
        InvalidSpec: there are fewer.
    """
    if rows > len(examples):
        raise InvalidSpec(
            f"train_rows: expected at most the {len(examples)} rows that are not held out, "
            f"got {rows}"
        )
    kept = random.Random(f"draw/{seed}").sample(range(len(examples)), rows)
    return [examples[index] for index in sorted(kept)]


def groups_of(rows: Sequence[tuple[str, ...]]) -> list[int]:
    """Number each row's group: the first row that its texts are joined to by shared texts."""
    first_with: dict[str, int] = {}
    parents = list(range(len(rows)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for index, texts in enumerate(rows):
        for text in texts:
            one, other = root(first_with.setdefault(text, index)), root(index)
            parents[max(one, other)] = min(one, other)
    return [root(index) for index in range(len(rows))]
