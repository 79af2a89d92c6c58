"""Both ways to an answer: in this process, and through a real server on loopback."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch

from upt_server.client import Client
from upt_server.results import Prediction, Timings
from upt_server.runner import TorchRunner
from upt_testing.adapters import CLASSIFICATION, REGRESSION, SPAN
from upt_testing.backbones import WORDS
from upt_testing.rows import question_rows, sentiment_rows, similarity_rows
from upt_testing.serving import Publisher, make_settings, serving
from upt_training.evaluation import answers_in_process, answers_of_server
from upt_zoo.answers import Answer, LabelAnswer, SpanAnswer, ValueAnswer
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder, load_encoder
from upt_zoo.spec import Head
from upt_zoo.tokenization import Tokenizer

Texts = list[tuple[str, ...]]


def texts_of(rows: Iterable[object], *fields: str) -> Texts:
    return [tuple(row[field] for field in fields) for row in rows]  # type: ignore[index]


SENTENCES = texts_of(sentiment_rows(40), "sentence")
QUESTIONS = texts_of(question_rows(12, distance=12), "question", "context")
HEADS: dict[str, tuple[Head, type, Texts]] = {
    "sst2": (CLASSIFICATION, LabelAnswer, SENTENCES),
    "stsb": (REGRESSION, ValueAnswer, texts_of(similarity_rows(40), "sentence1")),
    "squad": (SPAN, SpanAnswer, QUESTIONS),
}


@pytest.fixture(scope="module")
def encoder(backbone: Backbone) -> Encoder:
    return load_encoder(backbone)


@pytest.fixture(scope="module")
def publish(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Publisher:
    return Publisher(store=Store(tmp_path_factory.mktemp("home")), backbone=backbone)


@pytest.fixture(scope="module")
def adapters(publish: Publisher) -> dict[str, StoredAdapter]:
    return {name: publish(name, head, seed=3) for name, (head, _, _) in HEADS.items()}


def ready(store: Store, stored: StoredAdapter) -> PreparedAdapter:
    spec, arrays = store.load(stored)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return prepare(spec, tensors, dtype=torch.float32)


def assert_same(one: Answer, other: Answer) -> None:
    """Compare answers; other batches round the numbers differently in the sixth digit."""
    assert type(one) is type(other)
    if isinstance(one, LabelAnswer) and isinstance(other, LabelAnswer):
        assert one.label == other.label
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    elif isinstance(one, SpanAnswer) and isinstance(other, SpanAnswer):
        assert (one.text, one.start, one.end) == (other.text, other.start, other.end)
        assert one.score == pytest.approx(other.score, abs=1e-5)
    else:
        assert isinstance(one, ValueAnswer)
        assert isinstance(other, ValueAnswer)
        assert one.value == pytest.approx(other.value, abs=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_an_answer_does_not_depend_on_the_inputs_beside_it(
    backbone: Backbone,
    encoder: Encoder,
    publish: Publisher,
    adapters: dict[str, StoredAdapter],
    name: str,
) -> None:
    """More tokens than a batch takes, in windows of several rows for spans."""
    _, kind, texts = HEADS[name]
    stored, tokenizer = adapters[name], Tokenizer(backbone.tokenizer_file)
    adapter = ready(publish.store, stored)

    def ask(inputs: Sequence[tuple[str, ...]]) -> list[Answer]:
        return answers_in_process(encoder, adapter, stored.spec, tokenizer, inputs)

    together = ask(texts * 6)
    assert len(together) == 6 * len(texts)
    assert {type(answer) for answer in together} == {kind}
    for index in range(0, len(texts), 7):
        assert_same(together[index], ask([texts[index]])[0])
        assert_same(together[index], together[index + 5 * len(texts)])
    assert len(set(map(str, together[: len(texts)]))) > 1
    assert ask([]) == []


async def test_a_server_gives_the_same_answers(
    tmp_path: Path,
    backbone: Backbone,
    encoder: Encoder,
    publish: Publisher,
    adapters: dict[str, StoredAdapter],
) -> None:
    tokenizer = Tokenizer(backbone.tokenizer_file)
    settings = make_settings(publish.store.root)
    async with serving(settings, backbone, TorchRunner(encoder)) as served:
        for name, (_, _, texts) in HEADS.items():
            stored = adapters[name]
            adapter = ready(publish.store, stored)
            here = answers_in_process(encoder, adapter, stored.spec, tokenizer, texts)
            with Client(served.target) as client:
                there = await asyncio.to_thread(
                    answers_of_server, client, f"{name}@{stored.digest}", texts
                )
            assert len(there) == len(texts)
            for one, other in zip(here, there, strict=True):
                assert_same(one, other)


class Asked:
    """Keeps the calls; answers no more than they ask."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, Sequence[str]]]] = []

    def predict_many(self, inputs: Iterable[tuple[str, Sequence[str]]]) -> Prediction:
        self.calls.append(list(inputs))
        timings = Timings(load_ms=0, tokenize_ms=0, queue_ms=0, forward_ms=0, total_ms=0)
        return Prediction(
            outputs=(), backbone_digest="", precision="exact", timings=timings, batches=()
        )


def test_a_server_is_asked_in_order_and_for_a_bounded_number_at_once() -> None:
    texts: Texts = [(WORDS[number % len(WORDS)], str(number)) for number in range(100)]
    asked = Asked()
    answers_of_server(asked, "squad", texts)
    assert [each for call in asked.calls for each in call] == [("squad", text) for text in texts]
    assert all(len(call) <= 32 for call in asked.calls)
    answers_of_server(asked, "squad", [])
    assert sum(map(len, asked.calls)) == 100
