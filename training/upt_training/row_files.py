"""Rows of a file: CSV, TSV, JSON lines, Parquet and CoNLL, told apart by the file's name.

A row maps columns to values; those of CSV and TSV are all texts. CoNLL has a word a line and a
blank line behind each row. Knows nothing of tasks.

Source: Tjong Kim Sang and De Meulder 2003 (CoNLL-2003) for the latter.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from upt_zoo.errors import DataNotFound, InvalidInput

Row = Mapping[str, object]
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".conll")
_DOCUMENT = "-DOCSTART-"  # the first word of a line between documents
_MAX_CELL_CHARS = 2**31 - 1  # the most that csv takes everywhere; the file is in memory anyway


def read_rows(file: Path) -> list[Row]:
    """Read all rows of a file.

    Raises:
        DataNotFound: there is no such file.
        InvalidInput: as ``rows_of``.
    """
    if not file.is_file():
        raise DataNotFound(f"expected the file {file}")
    return list(rows_of(file, file.read_bytes()))


def rows_of(file: Path, data: bytes) -> Iterator[Row]:
    """Yield the rows of ``file``, whose bytes are ``data``; all but Parquet may be gzip'ed.

    Raises:
        InvalidInput: another suffix, or bytes that are not what the suffix says; rows count from 1.
    """
    name = file.name.removesuffix(".gz")
    if name != file.name:
        data = _unzipped(file, data)
    if name.endswith(".jsonl"):
        return _json_rows(file, data)
    if name.endswith(".parquet"):
        return iter(_parquet_rows(file, data))
    if name.endswith(".conll"):
        return _tagged_rows(file, data)
    if name.endswith((".csv", ".tsv")):
        return _cell_rows(file, data, delimiter="," if name.endswith(".csv") else "\t")
    raise InvalidInput(f"{file}: expected a file that ends in {', '.join(SUFFIXES)}")


def _unzipped(file: Path, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{file}: expected a gzip'ed file ({error})") from error


def _json_rows(file: Path, data: bytes) -> Iterator[Row]:
    lines = io.BytesIO(data)  # bytes, because text has more line ends than \n
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf-8-sig"))
            if b"\\u" in line:  # which may be half of a pair: no text, nobody can write it
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{file}, row {number}: expected a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise InvalidInput(
                f"{file}, row {number}: expected a JSON object, got {type(row).__name__}"
            )
        yield row


def _decoded(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{file}, line {line}: expected UTF-8 ({error.reason})") from error


def _tagged_rows(file: Path, data: bytes) -> Iterator[Row]:
    """Yield the words of the first column as ``tokens``, the tags of the last as ``tags``."""
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate((*_decoded(file, data).split("\n"), ""), 1):
        # not at any white space: words may hold some, such as blanks that do not break
        cells = line.strip(" \r").split("\t" if "\t" in line else " ")
        if line.strip() and cells[0] != _DOCUMENT:
            if len(cells) < 2 or not cells[0] or not cells[-1]:
                raise InvalidInput(f"{file}, line {number}: expected a word and its tag")
            words.append(cells[0])
            tags.append(cells[-1])
        elif words:
            yield {"tokens": words, "tags": tags}
            words, tags = [], []


def _cell_rows(file: Path, data: bytes, *, delimiter: str) -> Iterator[Row]:
    text = io.StringIO(_decoded(file, data), newline="")
    header = text.readline()
    if delimiter == "," and ";" in header and "," not in header:
        raise InvalidInput(
            f"{file}: is it separated by semicolons? commas are expected, or a .tsv file with tabs"
        )
    text.seek(0)
    csv.field_size_limit(_MAX_CELL_CHARS)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    number = 0
    try:
        columns = next(reader, [])
        if len(set(columns)) != len(columns):
            raise InvalidInput(f"{file}: expected distinct columns, got {', '.join(columns)}")
        for number, cells in enumerate((cells for cells in reader if cells), 1):
            if len(cells) != len(columns):
                raise InvalidInput(
                    f"{file}, row {number}: expected {len(columns)} cells, got {len(cells)}"
                )
            yield dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise InvalidInput(f"{file}, row {number + 1}: {error}") from error


def _parquet_rows(file: Path, data: bytes) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(f"{file}: expected a Parquet file ({error})") from error
    rows: list[Row] = table.to_pylist()
    return rows
