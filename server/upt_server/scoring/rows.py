"""The rows of a JSONL or CSV file, one at a time; a row that is none is an error, not the end."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from upt_zoo.errors import InvalidInput, InvalidText

ScoredRow = tuple[str, ...] | InvalidText  # the texts in the order of the columns, or why not
SUFFIXES = (".jsonl", ".csv")
_MAX_ROW_BYTES = 2 * 1024**2  # far beyond what a server takes, far below what gRPC refuses
_MAX_CELL_CHARS = 8 * _MAX_ROW_BYTES  # what is longer looks like a quote that is never closed


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[ScoredRow]:
    """Read the texts of the named columns, row by row; other columns are left out.

    JSONL: an object a line. CSV: the first row names the columns.

    Raises:
        InvalidInput: another kind of file, a column that the CSV lacks, or cells out of step.
        OSError: the file cannot be read.
    """
    if file.suffix == ".jsonl":
        return _json_rows(file, columns)
    if file.suffix == ".csv":
        return _cell_rows(file, columns)
    raise InvalidInput(f"{file}: expected a file that ends in {' or '.join(SUFFIXES)}")


def _json_rows(file: Path, columns: Sequence[str]) -> Iterator[ScoredRow]:
    with file.open("rb") as lines:  # bytes, because text has more line ends than \n
        for line in lines:
            yield _texts_of(line, columns)


def _texts_of(line: bytes, columns: Sequence[str]) -> ScoredRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return InvalidText("expected a JSON object")
    if not isinstance(row, dict):
        return InvalidText(f"expected a JSON object, got {type(row).__name__}")
    for column in columns:
        if column not in row:
            return InvalidText(
                f"row has no field `{column}`; it has {_shown(row)}; --columns names others"
            )
        if not isinstance(row[column], str):
            return InvalidText(f"expected text in {column}, got {type(row[column]).__name__}")
    return _checked(tuple(row[column] for column in columns))


def _cell_rows(file: Path, columns: Sequence[str]) -> Iterator[ScoredRow]:
    # what is no UTF-8 becomes half characters, which ``_checked`` finds in its row
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        csv.field_size_limit(_MAX_CELL_CHARS)
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            if not header:
                raise InvalidInput(f"{file}: expected the columns' names, got an empty file")
            places = [_place(file, header, column) for column in columns]
            for cells in filter(None, reader):
                if len(cells) == len(header):
                    yield _checked(tuple(cells[place] for place in places))
                else:
                    yield InvalidText(f"expected {len(header)} cells, got {len(cells)}")
        except csv.Error as error:  # the rows behind it cannot be told apart
            raise InvalidInput(f"{file}, line {reader.line_num}: {error}") from error


def _place(file: Path, header: Sequence[str], column: str) -> int:
    places = [place for place, name in enumerate(header) if name == column]
    if len(places) != 1:
        raise InvalidInput(
            f"{file}: expected one column `{column}`, got {_shown(header)}; {_advice(header)}"
        )
    return places[0]


def _advice(header: Sequence[str]) -> str:
    if len(header) == 1 and ";" in header[0]:
        return "is it separated by semicolons? commas are expected"
    return "--columns NAME,NAME names others, in the order of the task's fields"


def _shown(names: Iterable[str]) -> str:
    """Write names for a message, which stays short and UTF-8 whatever they are."""
    shown = ", ".join(f"`{name}`" for name in islice(names, 20))[:400]
    return shown.encode(errors="replace").decode() or "none"


def _checked(texts: tuple[str, ...]) -> ScoredRow:
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError:
        return InvalidText("expected UTF-8")
    if size > _MAX_ROW_BYTES:
        return InvalidText(f"expected at most {_MAX_ROW_BYTES} bytes of text, got {size}")
    return texts
