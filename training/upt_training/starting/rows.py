"""Rows of a table as rows of a task: texts and an answer as ``upt_training.data`` reads them. Pure.

A row without one of its texts or without an answer is left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from upt_training.row_files import Row
from upt_training.starting.columns import value_of
from upt_training.starting.detection import Layout, parts_of

TaskRow = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A row to learn from.

    ``place`` is its number, from 1 without a header, and its file, ``split`` what the column of
    splits says, ``cells`` are those to write.
    """

    place: str
    split: str | None
    texts: tuple[str, ...]
    answer: str
    cells: TaskRow


def labelled_rows(layout: Layout, file: str, rows: Iterable[Row]) -> list[Labelled]:
    """Return the rows that have texts and an answer; a place is as in ``row 12 of file``."""
    found = (
        _labelled(layout, f"row {number} of {file}", row) for number, row in enumerate(rows, 1)
    )
    return [each for each in found if each is not None]


def _labelled(layout: Layout, place: str, row: Row) -> Labelled | None:
    cells: TaskRow = {}
    for field in layout.fields:
        cells[field] = _text(layout, row.get(field))
    gold = _gold(layout, row)
    if gold is None or not all(cells.values()):
        return None
    texts = tuple(
        " ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in cells.values()
    )
    split = None if layout.split is None else str(row.get(layout.split)).strip().lower()
    cells[layout.gold] = gold
    return Labelled(place=place, split=split, texts=texts, answer=str(gold), cells=cells)


def _text(layout: Layout, cell: object) -> JsonValue:
    """Return a text as it is written, of a token classification a list of words."""
    if layout.head == "token_classification":
        words = value_of(cell)
        if not isinstance(words, list) or any(value_of(word) is None for word in words):
            return None
        return [str(word) for word in words]
    return None if cell is None or not str(cell).strip() else str(cell)


def _gold(layout: Layout, row: Row) -> JsonValue:
    """Return the answer as the task's reader takes it, None where there is none."""
    value = value_of(row.get(layout.gold))
    if value is None:
        return None
    if layout.head == "span":
        return _span(layout, row, value)
    if layout.head == "multi_label":
        return list(parts_of(value, layout.separator))
    if layout.head == "token_classification":
        tags, words = parts_of(value), value_of(row.get(layout.fields[0]))
        return list(tags) if isinstance(words, list) and len(words) == len(tags) else None
    if layout.head == "classification":
        return next(iter(parts_of(value)), None)
    return value if isinstance(value, int | float) else None


def _span(layout: Layout, row: Row, value: object) -> JsonValue:
    """Return SQuAD's form; a plain text stands where the row says, else where it is found first."""
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        is_whole = isinstance(texts, list) and isinstance(starts, list) and bool(texts)
        return {"text": texts, "answer_start": starts} if is_whole else None
    text, context = str(row[layout.gold]), str(row.get(layout.fields[1]))
    start = value_of(row.get(layout.start)) if layout.start else context.find(text)
    if not isinstance(start, int) or start < 0 or not context.startswith(text, start):
        return None
    return {"text": [text], "answer_start": [start]}
