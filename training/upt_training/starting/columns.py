"""What the columns of a table hold, cell by cell. Pure; it knows neither heads nor tasks.

A cell of a CSV file is a text that may spell a number or JSON; other files have values of a type.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from upt_training.row_files import Row

_KEY_NAMES = ("id", "idx", "index", "key", "row", "uid", "guid", "uuid")
_NO_NUMBER = re.compile(r"[+-]?0\d|.*_")
_DATE = re.compile(  # with its time, and nothing behind: a line of a log is a text
    r"(\d{4}-\d\d?-\d\d?|\d\d?[./-]\d\d?[./-]\d{2,4})([T ][\d:.,+ -]*(Z|UTC|GMT|[AP]M)?)?", re.I
)
Kind = Literal["text", "number", "date", "list", "object", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column; ``values`` are its cells as ``value_of`` reads them, None where one is empty.

    ``distinct`` counts different values, of lists their different elements. ``words`` is the mean
    number of words of texts, 0 for all else.
    """

    name: str
    kind: Kind
    values: tuple[object, ...]
    filled: int
    distinct: int
    words: float

    @property
    def is_whole(self) -> bool:
        """Whether all its values are whole numbers."""
        return self.kind == "number" and all(
            float(value).is_integer() for value in self.values if isinstance(value, int | float)
        )

    @property
    def is_key(self) -> bool:
        """Whether it only names the rows: by its name, or whole numbers, each of them once."""
        name = self.name.lower()
        is_named = name in _KEY_NAMES or name.endswith("_id")
        return is_named or (self.is_whole and self.distinct == self.filled > 1)


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns in the order in which the rows name them."""
    names = dict.fromkeys(name for row in rows for name in row)
    return tuple(_column(name, [value_of(row.get(name)) for row in rows]) for name in names)


def value_of(cell: object) -> object:
    """Read a cell: a number, a list or an object is one however it is written, blanks are None.

    A text that spells JSON stays a text where that is no list or object. Truth values are the texts
    ``true`` and ``false``, whole numbers have no fraction.
    """
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int | float):
        return _number(cell)
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    read = _parsed(text) if text[:1] in ("[", "{") else _number(text)
    return read if read is not None else cell if text else None


def _column(name: str, values: list[object]) -> Column:
    filled = [value for value in values if value is not None]
    kinds = {_kind(value) for value in filled}
    kind: Kind = "text" if len(kinds) > 1 else next(iter(kinds), "nothing")
    if kind == "list":
        parts = {str(part) for value in filled if isinstance(value, list) for part in value}
    else:
        parts = {str(value) for value in filled}
    words = sum(len(str(value).split()) for value in filled) if kind == "text" else 0
    return Column(
        name=name,
        kind=kind,
        values=tuple(values),
        filled=len(filled),
        distinct=len(parts),
        words=words / max(1, len(filled)),
    )


def _kind(value: object) -> Kind:
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list):
        return "list"
    if isinstance(value, Mapping):
        return "object"
    return "date" if isinstance(value, date) or _DATE.fullmatch(str(value).strip()) else "text"


def _number(value: str | float) -> int | float | None:
    """Return the finite number that is meant, None if none is; codes such as 007 are none."""
    if isinstance(value, str) and _NO_NUMBER.match(value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    if not number.is_integer():
        return number
    try:
        return int(value)  # a float has 53 bits of it
    except ValueError:  # such as 1e3
        return int(number)


def _parsed(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None
