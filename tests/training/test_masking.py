"""What is hidden, in which numbers, and the head that guesses it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from torch.nn import functional

from upt_testing.adapters import LORA, PREFIX, PROMPT, tiny_spec
from upt_testing.backbones import write_tiny_backbone
from upt_testing.reference import reference_hidden_states
from upt_training.batches import Feature
from upt_training.learner import AdapterLearner
from upt_training.masking import (
    MaskedLoss,
    Vocabulary,
    checkpoint_names,
    head_logits,
    mask_row,
    read_head,
    read_vocabulary,
    start_head,
)
from upt_training.recipe import Recipe
from upt_zoo.backbone import Backbone, open_backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.encoder import load_encoder, load_tensors
from upt_zoo.spec import Family
from upt_zoo.tokenization import TokenRow

MASK, FIRST, LAST = 4, 2, 3
WORDS = Vocabulary(
    size=100,
    mask_id=MASK,
    special_ids=frozenset(range(5)),
    continuing_ids=frozenset(range(50, 100)),
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("masking"))


# Masks


def test_words_are_the_tokens_that_belong_together() -> None:
    ids = [FIRST, 10, 60, 61, 20, LAST, 70, 71, LAST]
    # behind a special token, even what continues a word begins one
    assert WORDS.words(ids) == [[1, 2, 3], [4], [6, 7]]


@given(
    inner=st.lists(st.integers(5, 99), min_size=1, max_size=60),
    share=st.floats(0.05, 0.5),
    whole_words=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_mask_hides_its_share_and_never_a_special_token(
    inner: list[int], share: float, whole_words: bool, seed: int
) -> None:
    ids = [FIRST, *inner, LAST]
    hidden, places = mask_row(
        ids, WORDS, share=share, whole_words=whole_words, generator=seeded(seed)
    )
    assert len(hidden) == len(ids)
    assert places == sorted(set(places))
    assert 1 <= places[0] <= places[-1] < len(ids) - 1
    changed = {place for place in range(len(ids)) if hidden[place] != ids[place]}
    assert changed <= set(places)
    wanted = max(1, round(share * len(inner)))
    if whole_words:
        words = WORDS.words(ids)
        assert sorted(p for w in words if w[0] in places for p in w) == places
        longest = max(map(len, words))
        assert len(places) <= max(wanted, longest)
    else:
        assert len(places) == wanted
    again = mask_row(ids, WORDS, share=share, whole_words=whole_words, generator=seeded(seed))
    assert again == (hidden, places)


def test_of_the_chosen_tokens_eight_in_ten_are_masked_and_one_stays() -> None:
    ids = [FIRST, *[7] * 2000, LAST]
    hidden, places = mask_row(ids, WORDS, share=0.5, whole_words=False, generator=seeded(0))
    kinds = Counter(
        "masked" if hidden[p] == MASK else "same" if hidden[p] == 7 else "other" for p in places
    )
    assert len(places) == 1000
    # a random token is the mask or the same one in 2 of 100 cases
    assert kinds["masked"] == pytest.approx(801, abs=40)
    assert kinds["same"] == pytest.approx(101, abs=30)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_vocabulary_is_read_from_the_tokenizer(tmp_path: Path, family: Family) -> None:
    backbone = write_tiny_backbone(tmp_path, family)
    vocabulary = read_vocabulary(backbone.tokenizer_file)
    assert vocabulary.size == backbone.config.vocab_size
    assert vocabulary.special_ids == frozenset(range(5))
    assert vocabulary.mask_id == 4


@pytest.mark.parametrize(
    ("tokens", "continuing"),
    [(("[MASK]", "play", "##ing"), {"##ing"}), (("<mask>", "Ġplay", "ing"), {"ing", "<mask>"})],
)
def test_parts_of_words_are_known_by_their_marks(
    tmp_path: Path, tokens: tuple[str, ...], continuing: set[str]
) -> None:
    ids = {token: number for number, token in enumerate(tokens)}
    RustTokenizer(WordLevel(ids, unk_token=tokens[0])).save(str(tmp_path / "t.json"))
    vocabulary = read_vocabulary(tmp_path / "t.json")
    assert vocabulary.continuing_ids == {ids[token] for token in continuing}


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    RustTokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "t.json"))
    with pytest.raises(InvalidSpec, match=r"expected a token \[MASK\] or <mask>"):
        read_vocabulary(tmp_path / "t.json")


# Head and loss


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_head_is_found_in_a_checkpoint_that_has_one(tmp_path: Path, family: Family) -> None:
    plain = write_tiny_backbone(tmp_path, family)
    assert read_head(plain) is None
    head = start_head(plain.config.hidden_size, plain.config.vocab_size)
    tensors = load_file(plain.weights_file) | checkpoint_names(head, family)
    save_file(tensors, plain.weights_file)
    found = read_head(plain)
    assert found is not None
    assert found.keys() == head.keys()
    assert all(torch.equal(found[name], head[name]) for name in head)
    again = open_backbone(tmp_path, hub_id=plain.identity.hub_id)
    assert again.identity == plain.identity  # a head is no part of a backbone


def test_the_loss_is_that_of_the_hidden_tokens_of_a_slow_reference(backbone: Backbone) -> None:
    spec = tiny_spec(backbone=backbone.identity, lora=LORA, prefix=PREFIX, prompt=PROMPT)
    torch.manual_seed(0)
    encoder = load_encoder(backbone)
    learner = AdapterLearner(Recipe(task="sst2"), spec, encoder, start_ids=range(10, 20))
    head = start_head(backbone.config.hidden_size, backbone.config.vocab_size)
    vocabulary = read_vocabulary(backbone.tokenizer_file)
    rows = ([2, 7, 9, 30, 3], [2, 40, 3], [2, *range(5, 30), 3])
    batch = [
        Feature(row=TokenRow(ids=list(ids), type_ids=[0] * len(ids)), target=0) for ids in rows
    ]
    loss = MaskedLoss(
        model=learner.model,
        head=head,
        vocabulary=vocabulary,
        share=0.3,
        whole_words=False,
        dropout=0.0,
    )
    torch.manual_seed(5)
    value = loss(batch)
    torch.manual_seed(5)
    terms = []
    for ids in rows:
        hidden, places = mask_row(ids, vocabulary, share=0.3, whole_words=False)
        states = reference_hidden_states(
            load_tensors(backbone), "bert", spec, learner.served_tensors(), hidden
        )
        logits = head_logits(
            head, states[places].float(), encoder.embeddings.word, eps=1e-12
        ).log_softmax(1)
        terms += [-logits[index, ids[place]] for index, place in enumerate(places)]
    assert value.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-4)


def test_a_head_alone_learns_and_nothing_beside_it(backbone: Backbone) -> None:
    spec = tiny_spec(backbone=backbone.identity, lora=LORA)
    learner = AdapterLearner(Recipe(task="sst2"), spec, load_encoder(backbone), start_ids=[])
    head = start_head(backbone.config.hidden_size, backbone.config.vocab_size)
    both = MaskedLoss(
        model=learner.model,
        head=head,
        vocabulary=read_vocabulary(backbone.tokenizer_file),
        share=0.2,
        whole_words=True,
        dropout=0.0,
    )
    batch = [Feature(row=TokenRow(ids=[2, 7, 9, 30, 3], type_ids=[0] * 5), target=0)]
    replace(both, is_head_alone=True)(batch).backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None for weight in head.values())
    assert all(weight.grad is None for weight in learner.weights.values())
    both(batch).backward()  # type: ignore[no-untyped-call]
    assert learner.weights["lora.q.b"].grad is not None
    assert both.score(batch, 4, seed=1) == both.score(batch, 4, seed=1)


def test_the_heads_formula_is_berts() -> None:
    torch.manual_seed(1)
    head = start_head(8, 11)
    states, words = torch.randn(3, 8), torch.randn(11, 8)
    inner = functional.gelu(states @ head["mlm.dense.weight"].T)
    normed = (inner - inner.mean(1, keepdim=True)) / inner.std(1, correction=0, keepdim=True)
    found = head_logits(head, states, words, eps=0.0)
    assert torch.allclose(found, normed @ words.T, atol=1e-4)
