"""One table in every format, and files that are not what their names say."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from upt_training.row_files import rows_of
from upt_zoo.errors import InvalidInput

ROWS = [
    {"text": 'a "film", dull\nand old', "label": "bad"},
    {"text": "größer | 🎵", "label": "good"},
    {"text": "", "label": "bad"},
]


def as_cells(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["text", "label"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_json_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", as_cells(ROWS)),
        ("with a byte order mark.csv", b"\xef\xbb\xbf" + as_cells(ROWS)),
        ("a.csv.gz", gzip.compress(as_cells(ROWS), mtime=0)),
        ("a.tsv", as_cells(ROWS, "\t")),
        ("a.jsonl", as_json_lines(ROWS)),
        ("a.jsonl", b"\xef\xbb\xbf" + as_json_lines(ROWS)),
        ("a.jsonl.gz", gzip.compress(as_json_lines(ROWS), mtime=0)),
        ("a.parquet", as_parquet(ROWS)),
    ],
)
def test_every_format_gives_the_same_rows(name: str, data: bytes) -> None:
    assert list(rows_of(Path(name), data)) == ROWS


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=1))
def test_any_text_comes_back_from_cells(texts: list[str]) -> None:
    rows = [{"text": text, "label": "x"} for text in texts]
    assert list(rows_of(Path("a.csv"), as_cells(rows))) == rows


def test_a_cell_may_be_a_whole_book() -> None:
    rows = [{"text": "x" * 200_000, "label": "good"}, {"text": "y", "label": "bad"}]
    assert list(rows_of(Path("a.csv"), as_cells(rows))) == rows


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.xlsx", b"", r"a\.xlsx: expected a file that ends in \.csv, \.tsv, \.jsonl, \.parquet"),
        ("a.csv", b"text,label\na,1\nb\n", r"a\.csv, row 2: expected 2 cells, got 1"),
        ("a.csv", b"text,label\na,1\n\nb,2,3\n", r"a\.csv, row 2: expected 2 cells, got 3"),
        ("a.csv", b"text,text\na,1\n", r"a\.csv: expected distinct columns, got text, text"),
        ("a.csv", b"text;label\na, b;1\n", r"a\.csv: is it separated by semicolons\? commas are"),
        ("a.csv", b'text,label\na,1\n"b,2\n', r"a\.csv, row 2: unexpected end of data"),
        ("a.csv", b"text,label\na,1\n\xff,2\n", r"a\.csv, line 3: expected UTF-8"),
        ("a.csv.gz", b"text,label\n", r"a\.csv\.gz: expected a gzip'ed file"),
        ("a.jsonl", b'{"text": "a"}\n["a"]\n', r"a\.jsonl, row 2: expected a JSON object, got li"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', r"a\.jsonl, row 2: expected a JSON object"),
        ("a.jsonl", b'{"text": "a \\ud83d"}\n', r"a\.jsonl, row 1: .*surrogates not allowed"),
        ("a.jsonl", b'{"text": "a \xed\xa0\xbd"}\n', r"a\.jsonl, row 1: expected a JSON object"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, row 1: expected a JSON object"),
        ("a.parquet", b"text,label\n", r"a\.parquet: expected a Parquet file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_row(
    name: str, data: bytes, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(rows_of(Path(name), data))


def test_a_file_without_a_header_has_no_rows() -> None:
    assert list(rows_of(Path("a.csv"), b"")) == []


# CoNLL


def test_sentences_of_conll_are_rows_of_words_and_tags() -> None:
    data = (
        "\ufeff-DOCSTART- -X- O O\r\n\r\nAda NNP B-NP B-PER\r\nwrote VBD B-VP O  \r\n\r\n\r\n"
        "New York\tNNP\tB-LOC\n. O\n-DOCSTART- O\n10\u00a0000\u2028 CD O\n"
    ).encode()
    assert list(rows_of(Path("a.conll"), data)) == [
        {"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"]},
        {"tokens": ["New York", "."], "tags": ["B-LOC", "O"]},
        {"tokens": ["10\u00a0000\u2028"], "tags": ["O"]},
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Ada B-PER\nwrote\n", "line 2: expected a word and its tag"),
        (b"Ada\t\n", "line 1: expected a word and its tag"),
        (b"\n\tB-PER\n", "line 2: expected a word and its tag"),
        (b"Ada B-PER\n\xff O\n", "line 2: expected UTF-8"),
    ],
)
def test_a_line_without_a_word_and_its_tag_is_named(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(rows_of(Path("a.conll"), data))
