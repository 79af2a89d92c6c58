"""What a call can ask for, over a real channel, of the adapters that upt ships."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from upt_server.client import AsyncClient, Client
from upt_server.inputs import Limits, Options
from upt_server.native import library
from upt_server.native.runner import NativeRunner
from upt_server.results import Output
from upt_server.runner import Runner, TorchRunner
from upt_testing.serving import Served, make_settings, serving
from upt_zoo.answers import LabelAnswer, SpanAnswer, ValueAnswer
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.errors import InvalidInput, InvalidText
from upt_zoo.local.store import Store
from upt_zoo.nn.encoder import Encoder, load_encoder
from upt_zoo.references import Reference
from upt_zoo.tokenization import Tokenizer

PATIENCE_S = 200.0  # a long document on a busy machine
FILM = "a gripping, funny film that never lets go"
PAIR = ("A man is playing a guitar.", "Someone plays an instrument.")
SENTENCES = [
    "The committee met in the old hall on the second day of the month.",
    "Nobody could say why the doors had been left open that evening.",
    "Several of the members had travelled a long way to be there.",
    "A small orchestra played in the garden until it grew dark.",
]
QUESTION = "Who invented the glass harmonica?"
FACT = "The glass harmonica was invented by Benjamin Franklin in 1761. "


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return resolve_backbone()


@pytest.fixture(scope="module")
def encoder(embedded: Backbone) -> Encoder:
    return load_encoder(embedded)


@pytest.fixture(scope="module")
def fastest(encoder: Encoder) -> Runner:
    """The native kernel where this machine has it."""
    if library.missing_for("fp32"):
        return TorchRunner(encoder)
    return NativeRunner(encoder, "fp32", threads=1)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store, source = Store(tmp_path_factory.mktemp("home")), embedded_catalogue()
    for name in ("sst2", "cola", "mrpc", "stsb", "squad"):
        store.copy_from(source, Reference(name=name))
    return store


@pytest.fixture
async def served(catalogue: Store, embedded: Backbone, fastest: Runner) -> AsyncIterator[Served]:
    settings = make_settings(catalogue.root, limits=Limits(max_gate_rows=3, timeout_s=PATIENCE_S))
    async with serving(settings, embedded, fastest) as started:
        yield started


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.target, timeout_s=PATIENCE_S) as client:
        yield client


def document(chars: int, place: float) -> str:
    """English of that length with the fact at a place from 0 to 1."""
    filler = " ".join(SENTENCES) + " "
    before = filler * (chars // len(filler) + 1)
    cut = int((chars - len(FACT)) * place)
    return (before[:cut] + FACT + before)[:chars]


@pytest.fixture
def shipped(tmp_path: Path) -> tuple[Store, list[Reference]]:
    """A store with all that upt ships."""
    store, source = Store(tmp_path), embedded_catalogue()
    references = [Reference(name=name) for name in source.listing().versions]
    for reference in references:
        store.copy_from(source, reference)
    return store, references


async def test_all_that_are_shipped_answer_their_own_examples(
    shipped: tuple[Store, list[Reference]],
    embedded: Backbone,
    fastest: Runner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    store, references = shipped
    async with serving(make_settings(store.root), embedded, fastest) as served:
        await served.engine.preload(references)
        loaded = {each.stored.name for each in served.engine.lifecycle.resident()}
    assert loaded == {reference.name for reference in references}
    assert "not checked" not in caplog.text


# int8 as torch rounds it: the kernel's own needs AVX-512
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "is_int8"), [(torch.bfloat16, False), (torch.float32, True)], ids=["bf16", "int8"]
)
async def test_all_that_are_shipped_answer_their_own_examples_in_fast_numbers(
    shipped: tuple[Store, list[Reference]], embedded: Backbone, dtype: torch.dtype, *, is_int8: bool
) -> None:
    store, references = shipped
    runner = TorchRunner(load_encoder(embedded, dtype=dtype, is_int8=is_int8))
    settings = make_settings(store.root, precision="fast")
    async with serving(settings, embedded, runner) as served:
        await served.engine.preload(references)
        loaded = {each.stored.name for each in served.engine.lifecycle.resident()}
    assert loaded == {reference.name for reference in references}


async def test_each_adapter_answers_one_text_as_it_does_alone(client: AsyncClient) -> None:
    together = await client.predict_each(["sst2", "cola", "sst2:1.0.1"], FILM)
    assert [output.adapter.name for output in together.outputs] == ["sst2", "cola", "sst2"]
    for name, output in zip(["sst2", "cola", "sst2"], together.outputs, strict=True):
        alone = await client.predict(name, FILM)
        assert isinstance(output.answer, LabelAnswer)
        assert isinstance(alone.answer, LabelAnswer)
        assert output.answer.scores == pytest.approx(alone.answer.scores, abs=1e-5)


async def test_one_text_for_many_adapters_is_tokenised_once_a_format(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats: list[tuple[str, ...]] = []
    encode = Tokenizer.encode

    def counting(self: Tokenizer, task: object, texts: tuple[str, ...], **kinds: bool) -> object:
        formats.append(texts)
        return encode(self, task, texts, **kinds)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr(Tokenizer, "encode", counting)
    specs = [await client.adapter(name) for name in ("mrpc", "stsb", "squad")]
    prediction = await client.predict_each(["mrpc", "stsb", "squad", "mrpc:1.0.1"], *PAIR)
    distinct = {(about.max_tokens, about.head == "span") for about in specs}
    assert formats == [PAIR] * len(distinct)
    assert len(formats) < len(prediction.outputs)
    kinds = [type(output.answer) for output in prediction.outputs]
    assert kinds == [LabelAnswer, ValueAnswer, SpanAnswer, LabelAnswer]


async def test_an_error_names_the_adapters_place(client: AsyncClient) -> None:
    with pytest.raises(InvalidText, match=r"inputs\[0\]\.adapters\[1\]: task mrpc takes"):
        await client.predict_each(["sst2", "mrpc"], FILM)


async def test_what_is_too_long_is_refused_where_that_is_asked_for(client: AsyncClient) -> None:
    long = f"{FILM}, " * 200
    assert (await client.predict("sst2", long)).is_truncated
    refusing = Options(is_truncation_refused=True)
    with pytest.raises(InvalidText, match=r"inputs\[0\]: task sst2 takes \d+ tokens"):
        await client.predict("sst2", long, options=refusing)
    assert not (await client.predict("sst2", FILM, options=refusing)).is_truncated


async def test_fewer_tokens_equal_a_text_cut_by_hand(client: AsyncClient) -> None:
    words = ["a", "dull", "film", "with", "one", "very", "good", "scene", "near", "its", "end"]
    cut = await client.predict("sst2", " ".join(words), options=Options(max_tokens=8))
    by_hand = await client.predict("sst2", " ".join(words[:6]))
    assert (cut.tokens, cut.is_truncated) == (8, True)
    assert isinstance(cut.answer, LabelAnswer)
    assert isinstance(by_hand.answer, LabelAnswer)
    assert cut.answer.scores == pytest.approx(by_hand.answer.scores, abs=1e-5)


@pytest.mark.parametrize(
    ("adapter", "texts", "options", "message"),
    [
        ("sst2", [FILM], Options(max_tokens=7), "max_tokens 7: task sst2 takes 8 to"),
        ("sst2", [FILM], Options(max_tokens=513), "max_tokens 513"),
        ("sst2", [FILM], Options(stride=4), "stride is for spans and entities"),
        ("stsb", PAIR, Options(top_k=1), "top_k is for labels and spans"),
    ],
)
async def test_an_option_that_makes_no_sense_is_refused(
    client: AsyncClient, adapter: str, texts: Sequence[str], options: Options, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await client.predict(adapter, *texts, options=options)


async def test_a_larger_stride_makes_more_windows(client: AsyncClient) -> None:
    text = document(6000, 0.5)
    few = await client.predict("squad", QUESTION, text, options=Options(stride=8))
    many = await client.predict("squad", QUESTION, text, options=Options(stride=120))
    assert 1 < few.windows < many.windows


async def test_the_best_labels_come_first_and_raw_scores_give_the_probabilities(
    client: AsyncClient,
) -> None:
    everything = await client.predict("sst2", FILM, options=Options(has_logits=True))
    best = await client.predict("sst2", FILM, options=Options(top_k=1))
    ranked = await client.predict("sst2", FILM, options=Options(top_k=9))
    assert isinstance(everything.answer, LabelAnswer)
    assert isinstance(best.answer, LabelAnswer)
    assert isinstance(ranked.answer, LabelAnswer)
    powers = np.exp(np.array(everything.logits))
    assert powers / powers.sum() == pytest.approx(everything.answer.scores, abs=1e-5)
    assert best.labels == (everything.answer.label,)
    assert list(best.answer.scores) == pytest.approx([everything.answer.score], abs=1e-5)
    assert best.answer.index == everything.labels.index(everything.answer.label)
    assert sorted(ranked.labels) == sorted(everything.labels)
    assert ranked.answer.scores == tuple(sorted(ranked.answer.scores, reverse=True))
    assert best.logits == ()


async def test_candidates_are_the_best_spans_over_all_windows(client: AsyncClient) -> None:
    text = document(6000, 0.7)
    output = await client.predict(
        "squad", QUESTION, text, options=Options(top_k=5, has_logits=True)
    )
    scores = [each.score for each in output.candidates]
    assert output.windows > 1
    assert output.candidates[0] == output.answer
    assert len(output.candidates) == 5
    assert scores == sorted(scores, reverse=True)
    assert all(text[each.start : each.end] == each.text for each in output.candidates)
    assert len({(each.start, each.end) for each in output.candidates}) == 5
    assert len(output.logits) == 2


async def test_gates_are_the_means_of_the_forward_pass(
    client: AsyncClient, catalogue: Store, embedded: Backbone, encoder: Encoder
) -> None:
    output = await client.predict("sst2", FILM, options=Options(has_gates=True))
    assert len(output.gates) == len(encoder.layers)
    names = {"lora.q", "lora.v", "prefix", "bottleneck"}
    assert all(layer.keys() == names for layer in output.gates)
    assert all(0 < value < 1 for layer in output.gates for value in layer.values())
    # the first layer's LoRA gates by the formula of docs/architecture.md, section 3
    spec, arrays = catalogue.load(catalogue.resolve(Reference(name="sst2")))
    (row,) = Tokenizer(embedded.tokenizer_file).encode(spec.task, (FILM,), kind="classification")
    ids, types = torch.tensor(row.ids), torch.tensor(row.type_ids)
    real = encoder.embeddings(ids, torch.arange(len(row.ids)), types)
    hidden = torch.cat([torch.from_numpy(arrays["prompt"]).float(), real])
    for target in "qv":
        weight = torch.from_numpy(arrays[f"lora.{target}.gate.weight"])[0].float()
        bias = torch.from_numpy(arrays[f"lora.{target}.gate.bias"])[0].float()
        expected = float(torch.sigmoid(hidden @ weight + bias).mean())
        assert output.gates[0][f"lora.{target}"] == pytest.approx(expected, abs=1e-6)


async def test_gates_of_too_many_rows_are_refused(client: AsyncClient) -> None:
    inputs = [("sst2", [FILM])] * 4
    with pytest.raises(InvalidInput, match="the gates of 4 rows, expected 3 at most"):
        await client.predict_many(inputs, options=Options(has_gates=True))
    assert len((await client.predict_many(inputs)).outputs) == 4


@pytest.mark.slow
@pytest.mark.parametrize("place", [0.02, 0.61, 1.0])
async def test_an_answer_is_found_anywhere_in_a_hundred_thousand_characters(
    client: AsyncClient, place: float
) -> None:
    text = document(100_000, place)
    assert len(text) == 100_000
    output = await client.predict("squad", QUESTION, text, options=Options(top_k=3))
    assert isinstance(output.answer, SpanAnswer)
    assert "Franklin" in output.answer.text
    assert text[output.answer.start : output.answer.end] == output.answer.text
    assert abs(output.answer.start - text.index("Benjamin")) < len(FACT)
    assert output.windows > 50
    assert not output.is_truncated


async def test_a_document_beyond_the_bounds_is_refused_before_it_is_tokenised(
    client: AsyncClient,
) -> None:
    with pytest.raises(InvalidText, match="expected at most 101000 characters"):
        await client.predict("squad", QUESTION, document(101_000, 0.5))
    # 100,000 letters of which each is a token are more than the queue takes
    with pytest.raises(InvalidInput, match="the server takes 65536 at most"):
        await client.predict("squad", QUESTION, "東" * 100_000)


async def test_a_stream_answers_as_calls_do_and_survives_errors(client: AsyncClient) -> None:
    inputs = [
        ("squad", [QUESTION, document(900, 0.5)]),
        ("sst2", [FILM]),
        ("sst2", [""]),
        ("stsb", list(PAIR)),
        ("nobody", [FILM]),
    ] * 30  # more than one stream has at work at once

    async def source() -> AsyncIterator[tuple[str, Sequence[str]]]:
        for each in inputs[5:]:
            yield each

    answers = {place: answer async for place, answer in client.predict_stream(source())}
    assert sorted(answers) == list(range(len(inputs) - 5))
    for place, (adapter, texts) in enumerate(inputs[:5]):
        (expected,) = await asyncio.gather(client.predict(adapter, *texts), return_exceptions=True)
        for again in range(place, len(answers), 5):
            assert shown(answers[again]) == shown(expected)


def shown(answer: object) -> tuple[object, ...]:
    """What an answer says, but for rounding."""
    if not isinstance(answer, Output):
        return type(answer), str(answer)
    match answer.answer:
        case LabelAnswer(label=label, score=score):
            return label, round(score, 3)
        case ValueAnswer(value=value):
            return (round(value, 2),)
        case SpanAnswer(text=text, start=start):
            return text, start
    raise AssertionError(answer)


async def test_the_blocking_client_streams_too(served: Served) -> None:
    def ask() -> dict[int, object]:
        with Client(served.target) as client:
            pairs = [("sst2", [FILM]), ("cola", [FILM]), ("sst2", [""])]
            return dict(client.predict_stream(pairs, options=Options(top_k=1)))

    answers = await asyncio.to_thread(ask)
    assert sorted(answers) == [0, 1, 2]
    assert isinstance(answers[2], InvalidText)
    assert len(answers[0].labels) == 1  # type: ignore[attr-defined]  # it is an output


async def test_a_stream_to_nowhere_is_an_error(client: AsyncClient) -> None:
    async def source() -> AsyncIterator[tuple[str, Sequence[str]]]:
        yield "sst2", [FILM]

    async with AsyncClient("127.0.0.1:1") as nowhere:
        with pytest.raises(Exception, match="cannot reach"):
            async for _ in nowhere.predict_stream(source()):
                pass
