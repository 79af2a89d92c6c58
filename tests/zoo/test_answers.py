"""From logits to labels, numbers, spans, entities and vectors."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from upt_testing.adapters import (
    CLASSIFICATION,
    EMBEDDING,
    MULTI_LABEL,
    REGRESSION,
    SPAN,
    TAGS,
    TOKENS,
    tiny_spec,
)
from upt_zoo.answers import (
    MAX_ANSWER_TOKENS,
    EmbeddingAnswer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    SpanAnswer,
    ValueAnswer,
    answer,
    best_span,
    best_spans,
    span_logits,
    word_logits,
)
from upt_zoo.entities import Entity
from upt_zoo.errors import Overflowed
from upt_zoo.spec import Head
from upt_zoo.tokenization import TokenRow

CONTEXT = "Zoë wrote it in 1984 and sold it in 1999."
WORDS = [(0, 3), (4, 9), (10, 12), (13, 15), (16, 20), (21, 24), (25, 29), (30, 32), (33, 35)]
bounded = settings(max_examples=60, deadline=None, derandomize=True)


def label_of(head: Head, *logits: float) -> LabelAnswer:
    found = answer(
        tiny_spec(head=head), ("a film",), [row(())], [np.array(logits, dtype=np.float32)]
    )
    assert isinstance(found, LabelAnswer)
    return found


def labels_of(head: Head, *logits: float) -> LabelSetAnswer:
    found = answer(
        tiny_spec(head=head), ("a film",), [row(())], [np.array(logits, dtype=np.float32)]
    )
    assert isinstance(found, LabelSetAnswer)
    return found


def row(offsets: Sequence[tuple[int, int] | None]) -> TokenRow:
    return TokenRow(ids=[0] * len(offsets), type_ids=[0] * len(offsets), offsets=tuple(offsets))


def window(words: Sequence[tuple[int, int]]) -> TokenRow:
    """[CLS] question [SEP] words [SEP]"""
    return row([None, None, None, *words, None])


def logits(
    window: TokenRow, starts: dict[int, float], ends: dict[int, float]
) -> NDArray[np.float32]:
    """Zero but for the given places, counted from the window's first word."""
    values = np.zeros((len(window.ids), 2), dtype=np.float32)
    for column, chosen in enumerate((starts, ends)):
        for place, value in chosen.items():
            values[3 + place, column] = value
    return values


def ask(*windows: tuple[TokenRow, NDArray[np.float32]], context: str = CONTEXT) -> SpanAnswer:
    return best_span(context, [one for one, _ in windows], [values for _, values in windows])


# Labels


def test_the_most_probable_label_is_given_with_all_probabilities() -> None:
    found = label_of(CLASSIFICATION, 1.0, 1.0 + math.log(3))
    assert found == LabelAnswer(
        label="positive", index=1, score=found.scores[1], scores=found.scores
    )
    assert found.scores == pytest.approx((0.25, 0.75))


def test_the_first_of_equally_probable_labels_is_given() -> None:
    found = label_of(CLASSIFICATION, 2.0, 2.0)
    assert (found.index, found.label, found.score) == (0, "negative", 0.5)


def test_temperature_divides_the_logits() -> None:
    warm = CLASSIFICATION.model_copy(update={"temperature": 2.0})
    assert label_of(warm, 0.0, 2 * math.log(3)).scores == pytest.approx((0.25, 0.75))
    warm = MULTI_LABEL.model_copy(update={"temperature": 2.0})
    scores = labels_of(warm, 0.0, 2 * math.log(3), -2 * math.log(3)).scores
    assert scores == pytest.approx((0.5, 0.75, 0.25))


def test_every_label_that_reaches_the_threshold_is_given() -> None:
    found = labels_of(MULTI_LABEL, math.log(0.4 / 0.6) + 1e-4, math.log(0.4 / 0.6) - 1e-4, 5.0)
    assert found.labels == ("a", "c")
    assert found.scores == pytest.approx((0.4, 0.4, 1 / (1 + math.exp(-5))), abs=1e-3)


def test_no_threshold_means_one_half_which_counts_as_reached() -> None:
    head = MULTI_LABEL.model_copy(update={"threshold": None})
    found = labels_of(head, 0.0, -0.01, 0.01)
    assert found.labels == ("a", "c")
    assert found.scores == pytest.approx((0.5, 0.4975, 0.5025), abs=1e-4)


def test_no_label_may_reach_the_threshold() -> None:
    assert labels_of(MULTI_LABEL, -5.0, -5.0, -5.0).labels == ()


def test_huge_logits_give_probabilities_of_0_and_1() -> None:
    assert label_of(CLASSIFICATION, -1e4, 1e4).scores == (0.0, 1.0)
    assert labels_of(MULTI_LABEL, -1e4, 1e4, 0.0).scores == (0.0, 1.0, 0.5)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("head", [CLASSIFICATION, MULTI_LABEL, REGRESSION, SPAN, TOKENS, EMBEDDING])
def test_what_is_not_a_number_is_no_answer(head: Head, number: float) -> None:
    shape = (2, head.outputs) if head.is_per_token else (head.outputs,)
    logits = np.zeros(shape, np.float32)
    logits[..., 0] = number
    with pytest.raises(Overflowed, match="expected finite logits"):
        answer(tiny_spec(head=head), ("q", "a film"), [row([None, (0, 1)])], [logits])


def test_a_regression_answers_its_logit() -> None:
    found = answer(
        tiny_spec(head=REGRESSION), ("a",), [row(())], [np.array([3.25], dtype=np.float32)]
    )
    assert found == ValueAnswer(value=3.25)


# Spans


def test_a_span_is_cut_out_of_the_context_by_code_points() -> None:
    one = window(WORDS)
    found = ask((one, logits(one, {0: 9.0}, {1: 9.0})))
    assert (found.text, found.start, found.end) == ("Zoë wrote", 0, 9)
    assert found.score > 0.99
    emoji = "👩\u200d👧 Zoë"
    assert ask((window([(4, 7)]), np.zeros((5, 2), np.float32)), context=emoji).text == "Zoë"


def test_the_best_span_over_all_windows_is_given() -> None:
    first, second = window(WORDS[:5]), window(WORDS[4:])
    weak = (first, logits(first, {1: 4.0}, {1: 4.0}))
    strong = (second, logits(second, {0: 5.0}, {1: 5.0}))
    for windows in ((weak, strong), (strong, weak)):
        assert ask(*windows).text == "1984 and"


def test_a_span_that_two_windows_see_keeps_its_probability() -> None:
    one = window(WORDS)
    seen = (one, logits(one, {4: 12.0}, {4: 12.0}))
    assert ask(seen, seen) == ask(seen)
    assert ask(seen, seen).score > 0.9


def test_the_better_view_of_a_span_counts() -> None:
    one = window(WORDS)
    clear, dim = ((one, logits(one, {4: value}, {4: value})) for value in (12.0, 3.0))
    assert ask(clear, dim) == ask(dim, clear) == ask(clear)


def test_a_span_never_ends_before_it_starts() -> None:
    one = window(WORDS)
    found = ask((one, logits(one, {5: 9.0}, {2: 9.0, 6: 1.0})))
    assert found.text == "and sold"


@pytest.mark.parametrize(("extra", "is_found"), [(0, True), (1, False)])
def test_a_span_has_thirty_tokens_at_most(extra: int, *, is_found: bool) -> None:
    words = [(2 * place, 2 * place + 1) for place in range(40)]
    one, last = window(words), MAX_ANSWER_TOKENS - 1 + extra
    found = ask((one, logits(one, {0: 9.0}, {last: 9.0})), context="a " * 40)
    assert MAX_ANSWER_TOKENS == 30
    assert ((found.start, found.end) == (0, 2 * last + 1)) == is_found


def test_question_and_special_tokens_are_never_answers() -> None:
    one = window(WORDS[:2])
    values = np.full((6, 2), 9.0, dtype=np.float32)
    values[3:5] = [[-9.0, -9.0], [-8.0, -8.0]]
    assert ask((one, values)).text == "wrote"


def test_an_empty_context_gives_the_empty_span() -> None:
    empty = SpanAnswer(text="", start=0, end=0, score=0.0)
    assert ask((window([]), np.ones((4, 2), np.float32)), context="") == empty


def test_a_window_without_words_does_not_disturb_another() -> None:
    one = window(WORDS)
    seen = (one, logits(one, {4: 9.0}, {4: 9.0}))
    assert ask((window([]), np.ones((4, 2), np.float32)), seen) == ask(seen)


def test_a_span_head_of_all_zeros_still_finds_a_word() -> None:
    one = window(WORDS)
    assert ask((one, logits(one, {}, {}))).text == "Zoë"


def test_a_span_is_found_where_the_best_starts_stand_behind_the_best_ends() -> None:
    words = [(2 * place, 2 * place + 1) for place in range(50)]
    one = window(words)
    rising = {place: float(place) for place in range(50)}
    falling = {place: -1.5 * place for place in range(50)}
    assert ask((one, logits(one, rising, falling)), context="a " * 50).end == 1


def test_an_answer_of_the_span_head_is_its_best_span() -> None:
    one = window(WORDS)
    values = logits(one, {4: 3.0}, {4: 3.0})
    spec = tiny_spec(head=SPAN)
    assert answer(spec, ("when?", CONTEXT), [one], [values]) == ask((one, values))
    cold = tiny_spec(head=SPAN.model_copy(update={"temperature": 0.5}))
    assert answer(cold, ("when?", CONTEXT), [one], [values]) == ask((one, 2 * values))


@bounded
@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(0, 50), min_size=1, max_size=3))
def test_the_best_span_is_that_of_trying_all(seed: int, counts: list[int]) -> None:
    source = np.random.RandomState(seed)
    rows, values, expected = [], [], -math.inf
    for count in counts:
        first = source.randint(0, 50)
        rows.append(window([(2 * place, 2 * place + 1) for place in range(first, first + count)]))
        values.append(source.standard_normal((count + 4, 2)).astype(np.float32))
        starts, ends = values[-1][3:-1].T
        for start in range(count):
            for end in range(start, min(start + 30, count)):
                expected = max(expected, float(starts[start] + ends[end]))
    found = best_span("a " * 100, rows, values)
    best = max(_scores_of(found, rows, values), default=-math.inf)
    assert best == expected
    assert 0 <= found.score <= 1


def _scores_of(
    found: SpanAnswer, rows: Sequence[TokenRow], values: Sequence[NDArray[np.float32]]
) -> list[float]:
    """The found span's score in each window that holds it."""
    scores = []
    for one, seen in zip(rows, values, strict=True):
        offsets = one.offsets or ()
        starts = [i for i, offset in enumerate(offsets) if offset and offset[0] == found.start]
        ends = [i for i, offset in enumerate(offsets) if offset and offset[1] == found.end]
        scores += [float(seen[i, 0] + seen[j, 1]) for i in starts for j in ends]
    return scores


def test_the_best_spans_are_ranked_over_all_windows() -> None:
    first, second = window(WORDS[:5]), window(WORDS[3:])
    given = [logits(first, {0: 9.0}, {0: 9.0}), logits(second, {5: 8.0}, {5: 8.0})]
    spans = best_spans(CONTEXT, [first, second], given, 2)
    assert [(each.start, each.end) for each in spans] == [(0, 3), (33, 35)]
    assert spans[0] == best_span(CONTEXT, [first, second], given)
    assert spans[0].score > spans[1].score


def test_a_span_of_several_windows_counts_once() -> None:
    first, second = window(WORDS[:5]), window(WORDS[3:])
    given = [logits(first, {4: 5.0}, {4: 5.0}), logits(second, {1: 9.0}, {1: 9.0})]
    spans = best_spans(CONTEXT, [first, second], given, 1000)
    assert len({(each.start, each.end) for each in spans}) == len(spans)
    assert (spans[0].start, spans[0].end) == WORDS[4]
    assert sum(each.score for each in spans) == pytest.approx(1, abs=1e-5)
    assert span_logits(spans[0], [first, second], given) == (9.0, 9.0)


def test_no_span_has_no_logits() -> None:
    empty = window([])
    given = [logits(empty, {}, {})]
    (span,) = best_spans("", [empty], given, 3)
    assert span == best_span("", [empty], given)
    assert span_logits(span, [empty], given) is None


# Entities

PEOPLE = "Ada met Zoë in New York."
PLACES = [(0, 3), (4, 7), (8, 11), (12, 14), (15, 18), (19, 23), (23, 24)]  # of its words


def tagged(
    places: Sequence[tuple[int, int]], *tags: str, sure: float = 4.0
) -> tuple[TokenRow, NDArray[np.float32]]:
    """[CLS] words [SEP], each word of one token with the logit of its tag."""
    found = row([None, *places, None])
    values = np.zeros((len(found.ids), len(TAGS)), dtype=np.float32)
    for place, tag in enumerate(tags, 1):
        values[place, TAGS.index(tag)] = sure
    return found, values


def entities_of(
    *windows: tuple[TokenRow, NDArray[np.float32]], head: Head = TOKENS, text: str = PEOPLE
) -> list[tuple[str, str]]:
    found = answer(
        tiny_spec(head=head), (text,), [one for one, _ in windows], [each for _, each in windows]
    )
    assert isinstance(found, EntitiesAnswer)
    assert all(text[each.start : each.end] == each.text for each in found.entities)
    return [(each.label, each.text) for each in found.entities]


def test_words_with_tags_become_entities_with_their_characters() -> None:
    given = tagged(PLACES, "B-PER", "O", "B-PER", "O", "B-LOC", "I-LOC", "O")
    assert entities_of(given) == [("PER", "Ada"), ("PER", "Zoë"), ("LOC", "New York")]
    (window, values), spec = given, tiny_spec(head=TOKENS)
    found = answer(spec, (PEOPLE,), [window], [values])
    assert isinstance(found, EntitiesAnswer)
    likely = math.exp(4) / (math.exp(4) + 4)
    last = found.entities[-1]
    assert last == Entity(label="LOC", text="New York", start=15, end=23, score=last.score)
    assert last.score == pytest.approx(likely)


@pytest.mark.parametrize(
    ("tags", "texts"),
    [
        (("B-PER", "B-PER"), ["Ada", "met"]),  # a new one begins
        (("I-PER", "I-PER"), ["Ada met"]),  # an inner tag begins what nothing began
        (("B-PER", "I-LOC"), ["Ada", "met"]),  # what goes on has the same label
        (("B-PER", "O", "I-PER"), ["Ada", "Zoë"]),
        (("O", "O"), []),
    ],
)
def test_tags_out_of_order_are_read_as_conlleval_does(
    tags: tuple[str, ...], texts: list[str]
) -> None:
    assert [text for _, text in entities_of(tagged(PLACES, *tags))] == texts


def test_plain_tags_that_are_neighbours_are_one_entity() -> None:
    plain = Head(kind="token_classification", outputs=5, labels=("O", "PER", "LOC", "ORG", "B-"))
    tags = ("B-PER", "I-PER", "O", "B-LOC", "I-PER", "I-PER")  # PER LOC O ORG LOC LOC
    texts = [("PER", "Ada"), ("LOC", "met"), ("ORG", "in"), ("LOC", "New York")]
    assert entities_of(tagged(PLACES, *tags), head=plain) == texts


def test_the_score_of_an_entity_is_its_words_mean() -> None:
    window, values = tagged(PLACES, "O", "O", "O", "O", "B-LOC", "I-LOC")
    values[5] *= 2  # New
    warm = TOKENS.model_copy(update={"temperature": 2.0})
    for head in (TOKENS, warm):
        found = answer(tiny_spec(head=head), (PEOPLE,), [window], [values])
        assert isinstance(found, EntitiesAnswer)
        odds = [math.exp(logit / head.temperature) for logit in (8, 4)]
        expected = sum(each / (each + 4) for each in odds) / 2
        assert found.entities[0].score == pytest.approx(expected)


def test_of_two_windows_the_one_that_sees_more_around_a_word_counts() -> None:
    first = tagged(PLACES[:4], "B-PER", "O", "B-PER", "B-LOC")  # "in" is its last word
    second = tagged(PLACES[2:], "B-LOC", "O", "B-LOC", "I-LOC")  # "Zoë" is its first
    assert entities_of(first, second) == [("PER", "Ada"), ("PER", "Zoë"), ("LOC", "New York")]
    words, values = word_logits([first[0], second[0]], [first[1], second[1]])
    assert words == PLACES
    assert values.shape == (len(PLACES), len(TAGS))


def test_a_text_without_words_has_no_entities() -> None:
    empty = row([None, None])
    assert entities_of((empty, np.ones((2, len(TAGS)), np.float32)), text="  ") == []
    assert word_logits([empty], [np.ones((2, 3), np.float32)])[1].shape == (0, 3)


# Embeddings


@pytest.mark.parametrize(
    ("normalised", "given", "expected"),
    [(True, (3.0, -4.0), (0.6, -0.8)), (False, (3.0, -4.0), (3.0, -4.0)), (True, (0, 0), (0, 0))],
)
def test_a_vector_has_length_1_where_the_head_says_so(
    *, normalised: bool, given: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    spec = tiny_spec(head=EMBEDDING.model_copy(update={"normalised": normalised}))
    found = answer(spec, ("a",), [row(())], [np.array(given, np.float32)])
    assert isinstance(found, EmbeddingAnswer)
    assert found.vector == pytest.approx(expected)
