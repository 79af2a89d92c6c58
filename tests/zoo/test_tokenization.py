"""Rows of token ids: whole inputs, shared room, windows; most with the embedded backbone's file."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import ByteLevel as ByteLevelEnds

from upt_testing.backbones import WORDS, write_tiny_backbone
from upt_zoo.backbone import resolve_backbone
from upt_zoo.errors import Corrupt, InvalidText
from upt_zoo.spec import TaskInput
from upt_zoo.tokenization import Tokenizer, TokenRow

CLS, SEP = 101, 102
QUESTION = "who wrote it?"
# non-BMP letters, an emoji of five code points, an accent as one and as two code points
CONTEXT = "𐍈 naïve cafe\u0301 owner 👩\u200d👩\u200d👧 met José in 東京 and wrote it."
bounded = settings(max_examples=30, deadline=None, derandomize=True)
texts = st.text(alphabet=st.sampled_from("ab é𐍈 東.?'\u0301\n[SEP]"), max_size=60)


@pytest.fixture(scope="module")
def file() -> Path:
    return resolve_backbone().tokenizer_file


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer(file)


@pytest.fixture(scope="module")
def library(file: Path) -> RustTokenizer:
    """The library's own encoding of whole inputs."""
    plain = RustTokenizer.from_file(str(file))
    plain.no_truncation()
    plain.no_padding()
    return plain


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("roberta")
    return Tokenizer(write_tiny_backbone(directory, "roberta").tokenizer_file)


def task(fields: int = 1, *, max_tokens: int = 128, stride: int | None = None) -> TaskInput:
    return TaskInput(
        name="tiny",
        fields=("first", "second")[:fields],
        max_tokens=max_tokens,
        stride=stride,
        metric="accuracy",
    )


def encode(tokenizer: Tokenizer, *parts: str, max_tokens: int = 128) -> TokenRow:
    (row,) = tokenizer.encode(task(len(parts), max_tokens=max_tokens), parts, kind="classification")
    return row


def windows(
    tokenizer: Tokenizer,
    question: str,
    context: str,
    *,
    max_tokens: int = 16,
    stride: int | None = 4,
) -> list[TokenRow]:
    asked = task(2, max_tokens=max_tokens, stride=stride)
    return tokenizer.encode(asked, (question, context), kind="span")


def spans(row: TokenRow) -> list[tuple[int, int]]:
    return [offset for offset in row.offsets or () if offset is not None]


# Whole inputs


def test_the_files_own_limit_and_padding_of_128_are_off(file: Path, tokenizer: Tokenizer) -> None:
    settings_of_the_file = json.loads(file.read_bytes())
    assert settings_of_the_file["truncation"]["max_length"] == 128
    assert settings_of_the_file["padding"]["strategy"] == {"Fixed": 128}
    row = encode(tokenizer, "film " * 298, max_tokens=512)
    assert len(row.ids) == 300
    assert not row.is_truncated
    assert len(encode(tokenizer, "film").ids) == 3


@bounded
@given(text=texts)
def test_a_text_that_fits_is_encoded_as_the_library_does(
    tokenizer: Tokenizer, library: RustTokenizer, text: str
) -> None:
    expected = library.encode(text)
    assert encode(tokenizer, text) == TokenRow(ids=expected.ids, type_ids=expected.type_ids)


@bounded
@given(first=texts, second=texts)
def test_a_pair_that_fits_is_encoded_as_the_library_does(
    tokenizer: Tokenizer, library: RustTokenizer, first: str, second: str
) -> None:
    expected = library.encode(first, second)
    assert encode(tokenizer, first, second) == TokenRow(
        ids=expected.ids, type_ids=expected.type_ids
    )


def test_the_texts_of_a_pair_have_types_0_and_1(tokenizer: Tokenizer) -> None:
    row = encode(tokenizer, "a film", "good")
    assert row.ids == [CLS, 1037, 2143, SEP, 2204, SEP]
    assert row.type_ids == [0, 0, 0, 0, 1, 1]


def test_a_roberta_pair_has_two_separators_and_one_type(roberta: Tokenizer) -> None:
    first, last, word = 0, 2, 5 + WORDS.index("film")
    row = encode(roberta, "film film", "film")
    assert row.ids == [first, word, word, last, last, word, last]
    assert row.type_ids == [0] * 7


def test_an_empty_text_is_a_row_of_special_tokens(tokenizer: Tokenizer) -> None:
    assert encode(tokenizer, "").ids == [CLS, SEP]
    assert encode(tokenizer, "", "").ids == [CLS, SEP, SEP]
    assert encode(tokenizer, "", "film").ids == [CLS, SEP, 2143, SEP]


# Truncation


@pytest.mark.parametrize("pair", [False, True])
def test_a_row_is_cut_only_beyond_the_limit(tokenizer: Tokenizer, *, pair: bool) -> None:
    def row(first: int) -> TokenRow:
        parts = ("film " * first, "good " * 5) if pair else ("film " * first,)
        return encode(tokenizer, *parts, max_tokens=20)

    fits = 12 if pair else 18
    assert not row(fits).is_truncated
    assert row(fits + 1).is_truncated
    assert len(row(fits).ids) == len(row(fits + 1).ids) == 20


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (9, 9, (9, 9)),
        (30, 3, (15, 3)),
        (3, 30, (3, 15)),
        (30, 30, (9, 9)),
        (10, 9, (9, 9)),
        (9, 30, (9, 9)),
        (0, 30, (0, 18)),
    ],
)
def test_the_longer_text_of_a_pair_loses_its_end_first(
    roberta: Tokenizer, first: int, second: int, kept: tuple[int, int]
) -> None:
    row = encode(roberta, "film " * first, "song " * second, max_tokens=22)
    film, song = (5 + WORDS.index(word) for word in ("film", "song"))
    assert (row.ids.count(film), row.ids.count(song)) == kept
    assert row.ids == [0, *[film] * kept[0], 2, 2, *[song] * kept[1], 2]
    assert row.is_truncated == (kept != (first, second))


@pytest.mark.parametrize(("first", "kept"), [(30, (9, 8)), (9, (9, 8)), (8, (8, 9)), (7, (7, 10))])
def test_odd_room_is_used_to_the_last_token(
    tokenizer: Tokenizer, first: int, kept: tuple[int, int]
) -> None:
    row = encode(tokenizer, "film " * first, "good " * 30, max_tokens=20)
    assert (row.ids.count(2143), row.ids.count(2204)) == kept
    assert row.type_ids == [0] * (kept[0] + 2) + [1] * (kept[1] + 1)


def test_the_end_of_a_cut_text_is_a_separator(tokenizer: Tokenizer) -> None:
    row = encode(tokenizer, "a film and " + "good " * 30, max_tokens=8)
    assert row.ids == [CLS, 1037, 2143, 1998, 2204, 2204, 2204, SEP]


def test_very_long_pairs_cost_no_more_than_their_length(tokenizer: Tokenizer) -> None:
    # cut by the library itself, this pair takes ten seconds and gigabytes
    half = "a " * 25_000
    assert len(encode(tokenizer, half, half).ids) == 128
    assert len(windows(tokenizer, half, half, max_tokens=384, stride=128)) > 100


# Windows of a span task


def test_a_context_that_fits_is_one_window(tokenizer: Tokenizer, library: RustTokenizer) -> None:
    (row,) = windows(tokenizer, QUESTION, CONTEXT, max_tokens=64)
    expected = library.encode(QUESTION, CONTEXT)
    assert (row.ids, row.type_ids) == (expected.ids, expected.type_ids)
    assert not row.is_truncated


def test_offsets_count_the_contexts_code_points(tokenizer: Tokenizer) -> None:
    (row,) = windows(tokenizer, QUESTION, CONTEXT, max_tokens=64)
    words = [CONTEXT[start:end] for start, end in spans(row)]
    assert words[:5] == ["𐍈", "naïve", "cafe", "owner", "👩\u200d👩\u200d👧"]
    assert {"José", "東", "京", "wrote", "."} <= set(words)


def test_only_tokens_of_the_context_have_offsets(tokenizer: Tokenizer) -> None:
    (row,) = windows(tokenizer, "it [SEP] it", "it was", max_tokens=64)
    assert row.offsets == (None, None, None, None, None, (0, 2), (3, 6), None)


def test_a_classification_row_has_no_offsets(tokenizer: Tokenizer) -> None:
    assert encode(tokenizer, QUESTION, CONTEXT).offsets is None


@bounded
@given(words=st.integers(0, 90), max_tokens=st.integers(8, 40), stride=st.integers(1, 50))
def test_windows_overlap_by_the_stride_and_cover_the_context(
    tokenizer: Tokenizer, words: int, max_tokens: int, stride: int
) -> None:
    context = " ".join(["film"] * words)
    rows = windows(tokenizer, "who", context, max_tokens=max_tokens, stride=stride)
    size = max_tokens - 4  # [CLS] who [SEP] .. [SEP]
    overlap = min(stride, size // 2)
    places = [[start // 5 for start, _ in spans(row)] for row in rows]
    assert sorted({place for row in places for place in row}) == list(range(words))
    for one, other in pairwise(places):
        assert len(one) == size
        assert one[-overlap:] == other[:overlap]
        assert other[-1] > one[-1]
    assert all(len(row.ids) <= max_tokens for row in rows)


def test_every_window_repeats_the_question_with_its_types(tokenizer: Tokenizer) -> None:
    rows = windows(tokenizer, QUESTION, "film " * 40)
    question = [CLS, 2040, 2626, 2009, 1029, SEP]
    assert len(rows) > 3
    for row in rows:
        assert row.ids[:6] == question
        assert row.type_ids == [0] * 6 + [1] * (len(row.ids) - 6)
        assert row.ids[-1] == SEP
        assert not row.is_truncated


def test_no_last_window_holds_only_what_the_one_before_held(tokenizer: Tokenizer) -> None:
    # 9 tokens of room: 9 context tokens fill one window, the tenth needs another
    assert [len(windows(tokenizer, QUESTION, "film " * n)) for n in (9, 10, 14, 15)] == [1, 2, 2, 3]


def test_a_question_takes_half_of_the_room_at_most(tokenizer: Tokenizer) -> None:
    rows = windows(tokenizer, "who " * 50, "film " * 12)
    assert all(row.ids.count(2040) == 6 for row in rows)
    assert all(row.is_truncated for row in rows)
    assert sorted({span for row in rows for span in spans(row)}) == [
        (5 * n, 5 * n + 4) for n in range(12)
    ]


@pytest.mark.parametrize("context", ["", " \n "])
def test_an_empty_context_is_one_window_without_offsets(tokenizer: Tokenizer, context: str) -> None:
    (row,) = windows(tokenizer, QUESTION, context)
    assert row.ids == [CLS, 2040, 2626, 2009, 1029, SEP, SEP]
    assert spans(row) == []


def test_roberta_windows_have_its_separators(roberta: Tokenizer) -> None:
    rows = windows(roberta, "who", "film " * 20)
    assert len(rows) == 3
    for row in rows:
        assert row.ids[2:4] == [2, 2]
        assert row.ids[-1] == 2
        assert spans(row)[0][0] % 5 == 0


# Words of a token classification


def words(tokenizer: Tokenizer, text: str, *, max_tokens: int = 128) -> list[list[str]]:
    """What each window's words say."""
    rows = tokenizer.encode(task(max_tokens=max_tokens), (text,), kind="token_classification")
    assert not any(row.is_truncated for row in rows)
    assert all(len(row.ids) == len(row.offsets or ()) <= max_tokens for row in rows)
    return [[text[start:end] for start, end in spans(row)] for row in rows]


def test_a_word_stands_at_its_first_token_with_all_its_characters(tokenizer: Tokenizer) -> None:
    text = "Zoë met unbelievably  kind\nU.S. folk 👩\u200d👩"
    (row,) = tokenizer.encode(task(), (text,), kind="token_classification")
    said = [None if each is None else text[slice(*each)] for each in row.offsets or ()]
    assert said[:6] == [None, "Zoë", "met", "unbelievably", None, None]
    assert [each for each in said if each][2:] == [
        *("unbelievably", "kind", "U", ".", "S", ".", "folk"),
        "👩\u200d👩",
    ]
    assert said[-1] is None


def test_windows_of_one_text_hold_every_word(tokenizer: Tokenizer) -> None:
    found = words(tokenizer, " ".join(f"film{n}" for n in range(40)), max_tokens=16)
    assert len(found) > 3
    assert {word for each in found for word in each} == {f"film{n}" for n in range(40)}


def test_a_text_without_words_is_one_row(tokenizer: Tokenizer) -> None:
    assert words(tokenizer, "") == [[]]


def test_blanks_in_front_of_a_byte_level_word_are_none_of_it(tmp_path: Path) -> None:
    plain = RustTokenizer(BPE({each: n for n, each in enumerate(sorted(ByteLevel.alphabet()))}, []))
    plain.pre_tokenizer = ByteLevel(add_prefix_space=False)
    plain.post_processor = ByteLevelEnds(trim_offsets=True)
    plain.save(str(tmp_path / "tokenizer.json"))
    (found,) = words(Tokenizer(tmp_path / "tokenizer.json"), "  Ada  met Zoë.")
    assert found == ["Ada", "met", "Zoë", "."]


# Wrong input


def test_another_number_of_texts_than_fields_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidText, match="expected the fields first, second, got 1 texts"):
        tokenizer.encode(task(2), ("film",), kind="classification")


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidText, match="surrogate"):
        encode(tokenizer, "film \ud800")


@pytest.mark.parametrize("content", ["", "{}", "[", '{"model": {"type": "Other"}}'])
def test_a_file_that_is_no_tokenizer_is_corrupt(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(Corrupt, match="not a tokenizer file"):
        Tokenizer(file)
