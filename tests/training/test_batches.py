import math
import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
from upt_testing.backbones import WORDS
from upt_training.batches import UNTAGGED, Feature, batches_of, features_of, loss_of
from upt_training.data import Example
from upt_training.gold import GoldSpans, GoldTags, join_words
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.tokenization import Tokenizer, TokenRow


@pytest.fixture(scope="module")
def tokenizer(backbone: Backbone) -> Tokenizer:
    return Tokenizer(backbone.tokenizer_file)


def features_of_lengths(lengths: list[int]) -> list[Feature]:
    """One feature a length; its target is its number."""
    return [
        Feature(row=TokenRow(ids=[0] * length, type_ids=[0] * length), target=number)
        for number, length in enumerate(lengths)
    ]


# Order


@given(
    lengths=st.lists(st.integers(1, 60), max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_feature_once_and_full_batches_but_one(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    features = features_of_lengths(lengths)
    batches = batches_of(features, batch_size, seed=seed, epoch=epoch)
    assert Counter(f.target for batch in batches for f in batch) == Counter(range(len(lengths)))
    full, rest = divmod(len(lengths), batch_size)
    sizes = [batch_size] * full + [rest] * bool(rest)
    assert sorted(map(len, batches), reverse=True) == sizes


def test_the_order_follows_from_seed_and_epoch() -> None:
    features = features_of_lengths([5] * 200)
    first = batches_of(features, 8, seed=1, epoch=0)
    assert batches_of(list(features), 8, seed=1, epoch=0) == first
    assert batches_of(features, 8, seed=2, epoch=0) != first
    assert batches_of(features, 8, seed=1, epoch=1) != first


def test_rows_of_similar_lengths_stand_together_and_batches_do_not_come_by_length() -> None:
    features = features_of_lengths([1 + number % 100 for number in range(400)])
    batches = batches_of(features, 8, seed=1, epoch=0)
    spans = [
        (min(lengths), max(lengths))
        for lengths in ([len(f.row.ids) for f in batch] for batch in batches)
    ]
    assert max(longest - shortest for shortest, longest in spans) <= 3
    firsts = [shortest for shortest, _ in spans]
    assert any(one > other for one, other in pairwise(firsts))
    assert any(one < other for one, other in pairwise(firsts))


# Targets


def test_labels_and_values_are_the_targets(tokenizer: Tokenizer) -> None:
    examples = [Example(texts=("a good film",), gold=1), Example(texts=("a",), gold=0)]
    features = features_of(examples, tiny_spec(), tokenizer)
    assert [feature.target for feature in features] == [1, 0]
    assert [len(feature.row.ids) for feature in features] == [5, 3]


@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_answer_is_found_in_each_window_that_has_it_whole(
    tokenizer: Tokenizer, length: int
) -> None:
    """At every place of a context of several windows, cut by the edges of some."""
    spec = tiny_spec(head=SPAN)  # windows of 32 tokens that share 8
    words = random.Random(0).choices(WORDS, k=80)
    context, cut = " ".join(words), 0
    for first in range(len(words) - length + 1):
        text = " ".join(words[first : first + length])
        start = len(" ".join([*words[:first], ""]))
        end = start + len(text)
        gold = GoldSpans(texts=(text, words[0]), starts=(start, 0))
        features = features_of(
            [Example(texts=("who wrote it ?", context), gold=gold)], spec, tokenizer
        )
        found = 0
        for row, target in ((feature.row, feature.target) for feature in features):
            offsets = row.offsets or ()
            held = [offset for offset in offsets if offset is not None]
            if held[0][0] <= start and end <= held[-1][1]:
                found += 1
                assert isinstance(target, tuple)
                assert (offsets[target[0]], offsets[target[1]]) == (
                    (start, start + len(words[first])),
                    (end - len(words[first + length - 1]), end),
                )
            else:
                cut += held[0][0] < end and start < held[-1][1]
                assert target == (0, 0)
        assert found >= 1
    assert (cut > 0) == (length > 1)


def tagged(words: list[str], *tags: str) -> Example:
    text, places = join_words(words)
    numbers = tuple(TAGS.index(tag) for tag in tags)
    return Example(texts=(text,), gold=GoldTags(words=places, tags=numbers))


def test_the_first_token_of_each_word_has_its_tag() -> None:
    """What the tokenizer splits goes on with the entity that it began."""
    words = ["Ada", "saw", "unbelievably", "U.S.", "rivers", "."]
    example = tagged(words, "B-PER", "O", "B-PER", "B-LOC", "I-LOC", "O")
    (feature,) = features_of(
        [example], tiny_spec(head=TOKENS), Tokenizer(resolve_backbone().tokenizer_file)
    )
    assert isinstance(feature.target, tuple)
    said = [
        (example.texts[0][slice(*word)], TAGS[tag])
        for word, tag in zip(feature.row.offsets or (), feature.target, strict=True)
        if word is not None
    ]
    assert said == [
        ("Ada", "B-PER"),
        ("saw", "O"),
        ("unbelievably", "B-PER"),
        ("U", "B-LOC"),
        (".", "I-LOC"),
        ("S", "I-LOC"),
        (".", "I-LOC"),
        ("rivers", "I-LOC"),
        (".", "O"),
    ]
    untagged = [tag for tag in feature.target if tag == UNTAGGED]
    assert len(untagged) == len(feature.row.ids) - len(said) > 3  # [CLS], [SEP], pieces of words


def test_a_long_text_has_a_feature_for_each_window(tokenizer: Tokenizer) -> None:
    words = random.Random(1).choices([word for word in WORDS if word.isalpha()], k=80)
    tags = random.Random(2).choices(TAGS, k=80)
    features = features_of([tagged(words, *tags)], tiny_spec(head=TOKENS), tokenizer)
    assert len(features) > 2
    given = {
        (word, TAGS[tag])
        for feature in features
        if isinstance(feature.target, tuple)
        for word, tag in zip(feature.row.offsets or (), feature.target, strict=True)
        if word is not None
    }
    places = join_words(words)[1]
    assert given == set(zip(places, tags, strict=True))


def test_a_pair_to_embed_is_one_feature_with_a_share_of_the_scale(tokenizer: Tokenizer) -> None:
    pairs = [("a film", "the film"), ("a book", "a river is old"), ("a", "a")]
    examples = [
        Example(texts=texts, gold=value) for texts, value in zip(pairs, (4.0, 1.0, 5), strict=True)
    ]
    features = features_of(examples, tiny_spec(head=EMBEDDING), tokenizer)
    assert [feature.target for feature in features] == [0.75, 0.0, 1.0]
    assert [len(f.row.ids) for f in features] == [4, 4, 3]
    assert [len(f.other.ids) for f in features if f.other] == [4, 6, 3]
    same = features_of(examples[:1], tiny_spec(head=EMBEDDING), tokenizer)
    assert same[0].target == 0.0


# Loss


def test_the_loss_of_tags_is_the_mean_over_rows_of_that_over_words() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(length, 5, requires_grad=True) for length in (4, 3, 2)]
    targets = [(UNTAGGED, 1, 2, UNTAGGED), (UNTAGGED, 4, UNTAGGED), (UNTAGGED, UNTAGGED)]
    batch = [Feature(row=TokenRow(ids=[0], type_ids=[0]), target=target) for target in targets]
    spec = tiny_spec(head=TOKENS)
    loss = loss_of(spec, logits, batch, deviation=1.0)
    chances = [-torch.log_softmax(values, 1) for values in logits]
    expected = ((chances[0][1, 1] + chances[0][2, 2]) / 2 + chances[1][1, 4]) / 3
    assert loss.item() == pytest.approx(expected.item())
    parts = [loss_of(spec, logits[i : i + 1], batch[i : i + 1], deviation=1.0) for i in range(3)]
    assert loss.item() == pytest.approx(sum(part.item() for part in parts) / 3)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert all(values.grad is not None and values.grad.isfinite().all() for values in logits)


def test_the_loss_of_pairs_is_the_squared_error_of_their_cosine() -> None:
    vectors = [(1.0, 0.0), (3.0, 4.0), (0.0, 2.0), (6.0, 8.0)]  # of two rows, then of their others
    row = TokenRow(ids=[0], type_ids=[0])
    batch = [Feature(row=row, target=target, other=row) for target in (0.5, 0.25)]
    loss = loss_of(
        tiny_spec(head=EMBEDDING), [torch.tensor(each) for each in vectors], batch, deviation=9.0
    )
    assert float(loss) == pytest.approx((0.5**2 + 0.75**2) / 2)


def test_the_loss_of_labels_is_cross_entropy() -> None:
    logits = [torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0]), torch.tensor([0.0, 0.0])]
    batch = [Feature(row=TokenRow(ids=[0], type_ids=[0]), target=label) for label in (0, 0, 1)]
    terms = [math.log1p(math.exp(-2.0)), math.log1p(math.exp(1.5)), math.log(2.0)]
    loss = loss_of(tiny_spec(head=CLASSIFICATION), logits, batch, deviation=1.0)
    assert float(loss) == pytest.approx(sum(terms) / 3)


def test_a_row_counts_as_much_as_its_label() -> None:
    logits = [torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.0])]
    batch = [Feature(row=TokenRow(ids=[0], type_ids=[0]), target=label) for label in (0, 1)]
    weights = torch.tensor([3.0, 0.5])
    loss = loss_of(
        tiny_spec(head=CLASSIFICATION), logits, batch, deviation=1.0, class_weights=weights
    )
    expected = (3.0 * math.log1p(math.exp(-2.0)) + 0.5 * math.log(2.0)) / 2
    assert float(loss) == pytest.approx(expected)


def test_smoothed_labels_give_a_share_of_each_target_to_all() -> None:
    logits = [torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.0])]
    batch = [Feature(row=TokenRow(ids=[0], type_ids=[0]), target=label) for label in (0, 1)]
    loss = loss_of(
        tiny_spec(head=CLASSIFICATION), logits, batch, deviation=1.0, label_smoothing=0.2
    )
    right, wrong = math.log1p(math.exp(-2.0)), math.log1p(math.exp(2.0))
    assert float(loss) == pytest.approx((0.9 * right + 0.1 * wrong + math.log(2.0)) / 2)


def test_of_a_set_the_labels_that_a_row_has_are_weighed() -> None:
    row = TokenRow(ids=[0], type_ids=[0])
    batch = [Feature(row=row, target=frozenset({0})), Feature(row=row, target=frozenset({0, 2}))]
    loss = loss_of(
        tiny_spec(head=MULTI_LABEL),
        [torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])],
        batch,
        deviation=1.0,
        class_weights=torch.tensor([3.0, 0.5, 2.0]),
    )
    terms = [3.0 * math.log1p(math.exp(-1.0)), math.log1p(math.exp(-1.0)), math.log(2.0)]
    terms += [3.0 * math.log(2.0), math.log(2.0), 2.0 * math.log1p(math.exp(-2.0))]
    assert float(loss) == pytest.approx(sum(terms) / 6)


def test_the_loss_of_sets_is_that_of_each_label_by_itself() -> None:
    logits = [torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])]
    row = TokenRow(ids=[0], type_ids=[0])
    batch = [Feature(row=row, target=frozenset({0, 1})), Feature(row=row, target=frozenset())]
    signs = [1, 1, -1, -1, -1, -1]
    values = torch.cat(logits).tolist()
    terms = [math.log1p(math.exp(-s * value)) for s, value in zip(signs, values, strict=True)]
    loss = loss_of(tiny_spec(head=MULTI_LABEL), logits, batch, deviation=1.0)
    assert float(loss) == pytest.approx(sum(terms) / 6)


def test_the_loss_of_values_is_squared_error_in_units_of_their_deviation() -> None:
    logits = [torch.tensor([3.0]), torch.tensor([-1.0])]
    batch = [Feature(row=TokenRow(ids=[0], type_ids=[0]), target=value) for value in (5, 0.5)]
    loss = loss_of(tiny_spec(head=REGRESSION), logits, batch, deviation=2.0)
    assert float(loss) == pytest.approx((2.0**2 + 1.5**2) / 2 / 2.0**2)


def test_the_loss_of_spans_is_cross_entropy_over_each_rows_own_tokens() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(length, 2, requires_grad=True) for length in (7, 3, 5)]
    targets = [(1, 6), (0, 0), (2, 2)]
    batch = [Feature(row=TokenRow(ids=[0], type_ids=[0]), target=target) for target in targets]
    loss = loss_of(tiny_spec(head=SPAN), logits, batch, deviation=1.0)
    terms = [
        -torch.log_softmax(values, 0)[target[side], side]
        for values, target in zip(logits, targets, strict=True)
        for side in (0, 1)
    ]
    expected = torch.stack(terms).mean()
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for values in logits:
        assert values.grad is not None
        assert torch.isfinite(values.grad).all()
