"""Heads that read every token or only pool, by every way that a server can be asked."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest
import torch

from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.oip import open_inference_pb2_grpc
from upt_server.client import AsyncClient
from upt_server.inputs import Options
from upt_server.native import library
from upt_server.native.library import NUMBERS, Number
from upt_server.native.runner import NativeRunner
from upt_server.results import Output
from upt_server.runner import Runner, TorchRunner
from upt_server.scoring.lines import answer_line
from upt_testing.adapters import CLASSIFICATION, EMBEDDING, SPAN, TAGS, TOKENS
from upt_testing.backbones import HIDDEN, write_tiny_backbone
from upt_testing.serving import Publisher, Served, make_settings, serving
from upt_zoo.answers import EmbeddingAnswer, EntitiesAnswer, answer
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidInput
from upt_zoo.local.store import Store
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.spec import Head
from upt_zoo.tokenization import Tokenizer

FILM = "a man wrote the old book , not the woman"
LONG = "the woman painted a house by the river . " * 12  # several windows of 32 tokens
TEXTS = (FILM, LONG, "this film is good")
HEADS = {
    "people": TOKENS,
    "plain": Head(kind="token_classification", outputs=3, labels=("PER", "O", "LOC"), layers=2),
    "vectors": EMBEDDING,
    "states": EMBEDDING.model_copy(update={"normalised": False, "pooling": "cls"}),
    "sst2": CLASSIFICATION,
    "squad": SPAN,
}


@pytest.fixture
def store(publish: Publisher) -> Store:
    for seed, (name, head) in enumerate(HEADS.items()):
        publish(name, head, seed=seed)
    return publish.store


@pytest.fixture
async def served(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Served]:
    async with serving(make_settings(store.root), backbone, runner) as started:
        yield started


def in_process(store: Store, backbone: Backbone, name: str, text: str) -> object:
    """The answer of a forward pass of this row alone."""
    spec, arrays = store.load(store.resolve(Reference.parse(name)))
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    adapter = prepare(spec, tensors, dtype=torch.float32)
    rows = Tokenizer(backbone.tokenizer_file).encode(spec.task, (text,), kind=spec.head.kind)
    runner = TorchRunner(load_encoder(backbone))
    logits = [
        runner.run([Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter)])[0] for row in rows
    ]
    return answer(spec, (text,), rows, logits)


def agree(one: object, other: object) -> bool:
    if isinstance(one, EmbeddingAnswer) and isinstance(other, EmbeddingAnswer):
        return np.allclose(one.vector, other.vector, atol=1e-4)
    assert isinstance(one, EntitiesAnswer)
    assert isinstance(other, EntitiesAnswer)
    facts = [
        [(each.label, each.text, each.start, each.end) for each in given.entities]
        for given in (one, other)
    ]
    if facts[0] != facts[1]:
        return False
    pairs = zip(one.entities, other.entities, strict=True)
    return all(abs(ours.score - theirs.score) < 1e-4 for ours, theirs in pairs)


async def test_a_mixed_call_answers_each_text_as_alone(
    served: Served, store: Store, backbone: Backbone
) -> None:
    asked = [(name, [text]) for name in HEADS if name != "squad" for text in TEXTS]
    asked.append(("squad", ["who wrote it ?", LONG]))

    async def each() -> AsyncIterator[tuple[str, list[str]]]:
        for one in asked:
            yield one

    async with AsyncClient(served.target) as client:
        outputs = (await client.predict_many(asked)).outputs
        streamed: dict[int, Output] = {}
        async for place, output in client.predict_stream(each()):
            assert isinstance(output, Output)
            streamed[place] = output
    for place, ((name, texts), output) in enumerate(zip(asked, outputs, strict=True)):
        if name not in ("squad", "sst2"):
            assert output.labels == ()
            assert agree(output.answer, in_process(store, backbone, name, texts[0]))
            assert agree(output.answer, streamed[place].answer)
            assert not (output.is_truncated and HEADS[name].is_per_token)
    found = outputs[1].answer
    assert isinstance(found, EntitiesAnswer)
    assert outputs[1].windows > 3
    assert found.entities
    assert all(LONG[each.start : each.end] == each.text for each in found.entities)
    length = np.linalg.norm(outputs[6].answer.vector)  # type: ignore[union-attr]  # it is one
    assert length == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("number", NUMBERS)
async def test_a_server_answers_to_the_bit_alike_in_any_batch(
    store: Store, tmp_path: Path, number: Number
) -> None:
    if reason := library.missing_for(number):
        pytest.skip(reason)
    wide = write_tiny_backbone(tmp_path / "wide", heads=2)  # the kernel has no heads of 8 numbers
    publish = Publisher(store=Store(tmp_path / "other"), backbone=wide)
    for seed, (name, head) in enumerate(HEADS.items()):
        publish(name, head, seed=seed)
    runner: Runner = NativeRunner(load_encoder(wide), number, threads=1)
    asked = [(name, (text,)) for name in HEADS if name != "squad" for text in TEXTS]
    async with (
        serving(make_settings(publish.store.root), wide, runner) as served,
        AsyncClient(served.target) as client,
    ):
        together = (await client.predict_many(asked)).outputs
        for (name, texts), output in zip(asked, together, strict=True):
            assert (await client.predict(name, *texts)).answer == output.answer


async def test_options_that_fit_are_taken_and_others_refused(served: Served) -> None:
    async with AsyncClient(served.target) as client:
        few = await client.predict("people", LONG)
        many = await client.predict("people", LONG, options=Options(max_tokens=12, stride=5))
        assert many.windows > few.windows
        raw = await client.predict("people", FILM, options=Options(has_logits=True))
        assert len(raw.logits) == len(FILM.split()) * len(TAGS)
        vector = await client.predict("states", FILM, options=Options(has_logits=True))
        assert vector.answer == EmbeddingAnswer(vector=vector.logits)
        gates = await client.predict("vectors", FILM, options=Options(has_gates=True))
        assert len(gates.gates) == 2
        for name, what in (("people", "all entities"), ("vectors", "a vector")):
            with pytest.raises(InvalidInput, match=f"{name} answers {what}"):
                await client.predict(name, FILM, options=Options(top_k=2))
        with pytest.raises(InvalidInput, match="stride is for spans and entities"):
            await client.predict("vectors", FILM, options=Options(stride=4))
        with pytest.raises(InvalidInput, match="has more"):
            await client.predict("vectors", LONG, options=Options(is_truncation_refused=True))


async def test_adapters_say_how_much_they_give(served: Served) -> None:
    async with AsyncClient(served.target) as client:
        about = {name: await client.adapter(name) for name in HEADS}
    assert {name: each.outputs for name, each in about.items()} == {
        "people": 5,
        "plain": 3,
        "vectors": HIDDEN,
        "states": HIDDEN,
        "sst2": 2,
        "squad": 2,
    }
    assert about["people"].labels == TAGS
    assert (about["people"].head, about["vectors"].head) == ("token_classification", "embedding")


async def test_the_same_over_http_in_json(served: Served) -> None:
    def ask(path: str, body: object) -> Any:
        request = Request(f"http://{served.http}{path}", data=json.dumps(body).encode())
        with urlopen(request, timeout=30) as response:
            return json.load(response)

    inputs = [{"adapter": name, "texts": [LONG]} for name in ("people", "vectors")]
    entities, vector = (await asyncio.to_thread(ask, "/v1/predict", {"inputs": inputs}))["outputs"]
    async with AsyncClient(served.target) as client:
        expected = (await client.predict("people", LONG)).answer
        numbers = (await client.predict("vectors", LONG)).answer
    assert isinstance(expected, EntitiesAnswer)
    assert isinstance(numbers, EmbeddingAnswer)
    found = [(each["label"], each["start"]) for each in entities["entities"]["entities"]]
    assert found == [(each.label, each.start) for each in expected.entities]
    assert vector["embedding"]["vector"] == pytest.approx(numbers.vector, abs=1e-5)
    tensor = {"name": "sentence", "datatype": "BYTES", "shape": [2], "data": [LONG, FILM]}
    first = await asyncio.to_thread(ask, "/v2/models/people/infer", {"inputs": [tensor]})
    (output,) = first["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("entities", "BYTES", [2])
    told = json.loads(output["data"][0])
    assert [(each["label"], each["start"]) for each in told] == found
    assert all(each["text"] == LONG[each["start"] : each["end"]] for each in told)
    second = await asyncio.to_thread(ask, "/v2/models/vectors/infer", {"inputs": [tensor]})
    (output,) = second["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == (
        "embedding",
        "FP32",
        [2, HIDDEN],
    )
    assert output["data"][:HIDDEN] == pytest.approx(numbers.vector, abs=1e-5)


async def test_the_open_inference_protocol_says_and_gives_their_tensors(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.target) as channel:
        stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, outputs in {
            "people": {"entities": [-1]},
            "vectors": {"embedding": [-1, HIDDEN]},
        }.items():
            metadata = await stub.ModelMetadata(oip.ModelMetadataRequest(name=name))
            assert {each.name: list(each.shape) for each in metadata.outputs} == outputs
            config = await stub.ModelConfig(oip.ModelConfigRequest(name=name))
            assert {each.name: list(each.dims) for each in config.config.output} == outputs
        message = oip.ModelInferRequest(model_name="states")
        tensor = message.inputs.add(name="sentence", datatype="BYTES", shape=[1])
        message.raw_input_contents.append(len(FILM).to_bytes(4, "little") + FILM.encode())
        given = await stub.ModelInfer(message)
        assert tensor.name == "sentence"
        numbers = np.frombuffer(given.raw_output_contents[0], "<f4")
    async with AsyncClient(served.target) as client:
        expected = (await client.predict("states", FILM)).answer
    assert isinstance(expected, EmbeddingAnswer)
    assert numbers == pytest.approx(np.array(expected.vector), abs=1e-5)


async def test_lines_of_scores_hold_them(served: Served) -> None:
    async with AsyncClient(served.target) as client:
        entities, vector = [await client.predict(name, LONG) for name in ("people", "vectors")]
    assert isinstance(entities.answer, EntitiesAnswer)
    line = json.loads(answer_line(3, entities))
    assert line["row"] == 3
    assert line["windows"] == entities.windows
    first = entities.answer.entities[0]
    assert line["entities"][0] == {
        "label": first.label,
        "text": first.text,
        "start": first.start,
        "end": first.end,
        "score": pytest.approx(first.score, rel=1e-6),
    }
    assert isinstance(vector.answer, EmbeddingAnswer)
    assert json.loads(answer_line(1, vector))["embedding"] == pytest.approx(vector.answer.vector)
