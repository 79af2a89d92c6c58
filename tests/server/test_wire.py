from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upt_protos.v1 import inference_pb2 as pb
from upt_server import wire
from upt_server.inputs import Input, Options
from upt_server.results import (
    AdapterDescription,
    AdapterIdentity,
    BatchFacts,
    Output,
    Prediction,
    Timings,
)
from upt_zoo.answers import (
    Answer,
    EmbeddingAnswer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    SpanAnswer,
    ValueAnswer,
)
from upt_zoo.entities import Entity
from upt_zoo.errors import (
    AdapterNotFound,
    Corrupt,
    InvalidInput,
    InvalidReference,
    Overloaded,
    Unavailable,
    UptError,
)
from upt_zoo.references import Reference
from upt_zoo.spec import HeadKind

texts = st.text(max_size=20)
counts = st.integers(0, 2**31)
floats = st.floats(width=32, allow_nan=False)
doubles = st.floats(allow_nan=False)
identities = st.builds(AdapterIdentity, name=texts, version=texts, digest=texts)
values = st.builds(ValueAnswer, value=floats)
spans = st.builds(SpanAnswer, text=texts, start=counts, end=counts, score=floats)
entity = st.builds(Entity, label=texts, text=texts, start=counts, end=counts, score=floats)
entities = st.builds(EntitiesAnswer, entities=st.lists(entity, max_size=3).map(tuple))
vectors = st.builds(EmbeddingAnswer, vector=st.lists(floats, min_size=1, max_size=4).map(tuple))


@st.composite
def outputs(draw: st.DrawFn) -> Output:
    labels = tuple(draw(st.lists(texts, min_size=1, max_size=4)))
    scores = st.tuples(*[floats] * len(labels))
    label = st.builds(
        LabelAnswer, label=st.sampled_from(labels), index=counts, score=floats, scores=scores
    )
    given = st.lists(st.sampled_from(labels), max_size=3).map(tuple)
    label_set = st.builds(LabelSetAnswer, labels=given, scores=scores)
    answer: Answer = draw(st.one_of(label, label_set, values, spans, entities, vectors))
    has_labels = isinstance(answer, LabelAnswer | LabelSetAnswer)
    return Output(
        answer=answer,
        labels=labels if has_labels else (),
        adapter=draw(identities),
        task=draw(texts),
        tokens=draw(counts),
        is_truncated=draw(st.booleans()),
        windows=draw(counts),
        candidates=tuple(draw(st.lists(spans, max_size=2))),
        logits=tuple(draw(st.lists(floats, max_size=3))),
        gates=tuple(draw(st.lists(st.dictionaries(texts, floats, max_size=2), max_size=2))),
    )


predictions = st.builds(
    Prediction,
    outputs=st.lists(outputs(), max_size=3).map(tuple),
    backbone_digest=texts,
    precision=st.sampled_from(["exact", "fast"]),
    timings=st.builds(
        Timings,
        load_ms=doubles,
        tokenize_ms=doubles,
        queue_ms=doubles,
        forward_ms=doubles,
        total_ms=doubles,
    ),
    batches=st.lists(
        st.builds(
            BatchFacts, rows=counts, tokens=counts, distinct_adapters=counts, forward_ms=doubles
        ),
        max_size=2,
    ).map(tuple),
)
descriptions = st.builds(
    AdapterDescription,
    identity=identities,
    task=texts,
    description=texts,
    method=texts,
    fields=st.lists(texts, max_size=2).map(tuple),
    max_tokens=counts,
    head=st.sampled_from(get_args(HeadKind)),
    labels=st.lists(texts, max_size=3).map(tuple),
    outputs=counts,
    metric=texts,
    metrics=st.dictionaries(texts, doubles, max_size=3),
    backbone_hub_id=texts,
    backbone_digest=texts,
    trained_parameters=counts,
    served_parameters=counts,
    head_parameters=counts,
    licence=texts,
    data=texts,
    data_licence=texts,
    commercial_use=texts,
    is_resident=st.booleans(),
)
inputs = st.builds(
    Input,
    adapter=st.sampled_from(["sst2", "sst2:1.0.0", "sst2@sha256:" + "0" * 64]).map(Reference.parse),
    texts=st.lists(texts, max_size=2).map(tuple),
    fields=st.dictionaries(texts, texts, max_size=2),
    options=st.builds(
        Options,
        is_truncation_refused=st.booleans(),
        max_tokens=st.none() | st.integers(1, 2**31),
        stride=st.none() | st.integers(1, 2**31),
        top_k=st.none() | st.integers(1, 2**31),
        has_logits=st.booleans(),
        has_gates=st.booleans(),
    ),
)


@given(predictions)
def test_a_prediction_arrives_as_it_was_sent(prediction: Prediction) -> None:
    data = wire.write_prediction(prediction).SerializeToString()
    assert wire.read_prediction(pb.PredictResponse.FromString(data)) == prediction


@given(descriptions)
def test_a_description_arrives_as_it_was_sent(description: AdapterDescription) -> None:
    data = wire.write_adapter(description).SerializeToString()
    assert wire.read_adapter(pb.Adapter.FromString(data)) == description


@given(st.lists(inputs, max_size=3))
def test_a_request_arrives_as_it_was_sent(call: list[Input]) -> None:
    data = wire.write_request(call).SerializeToString()
    assert wire.read_inputs(pb.PredictRequest.FromString(data)) == call


@given(inputs, st.integers(1, 4))
def test_an_input_for_several_adapters_arrives_as_one_for_each(shared: Input, count: int) -> None:
    request = wire.write_shared([shared] * count)
    assert len(request.inputs) == 1
    assert wire.count_inputs(request) == count
    given = wire.read_inputs(pb.PredictRequest.FromString(request.SerializeToString()))
    assert given == [shared] * count
    assert [each.path for each in given] == [f"inputs[0].adapters[{n}]" for n in range(count)]


def test_an_adapter_is_named_in_one_way() -> None:
    request = pb.PredictRequest(inputs=[pb.Input(adapter="sst2", adapters=["cola"])])
    with pytest.raises(InvalidInput, match="either adapter or adapters") as caught:
        wire.read_inputs(request)
    assert caught.value.__notes__ == ["inputs[0]"]


@pytest.mark.parametrize(
    "error",
    [
        AdapterNotFound("no adapter nobody"),
        Overloaded("full", retry_after_s=2.5),
        Unavailable("draining", retry_after_s=0.25),
        TimeoutError("no answer within 1 s"),
    ],
)
def test_a_failure_arrives_as_the_error_it_was(error: Exception) -> None:
    data = wire.write_failure(error).SerializeToString()
    given = wire.read_failure(pb.Failure.FromString(data))
    assert type(given) is type(error)
    assert str(given) == str(error)
    assert getattr(given, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def test_a_failure_says_nothing_of_a_fault() -> None:
    failure = wire.write_failure(RuntimeError("secret"))
    assert (failure.status, failure.reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in str(failure)
    assert type(wire.read_failure(failure)) is UptError


def test_a_status_of_a_later_server_is_an_error_all_the_same() -> None:
    given = wire.read_failure(pb.Failure(status="LATER", reason="LATER", message="what"))
    assert (type(given), str(given)) == (UptError, "what")


def test_a_reference_that_does_not_parse_is_located() -> None:
    request = pb.PredictRequest(inputs=[pb.Input(adapter="sst2"), pb.Input(adapter="No Such")])
    with pytest.raises(InvalidReference) as caught:
        wire.read_inputs(request)
    assert caught.value.__notes__ == ["inputs[1]"]


@pytest.mark.parametrize(
    "response",
    [
        pb.PredictResponse(precision=pb.PRECISION_EXACT, outputs=[pb.Output()]),
        pb.PredictResponse(),
    ],
)
def test_what_a_later_server_means_is_not_guessed(response: pb.PredictResponse) -> None:
    with pytest.raises(Corrupt, match="later client"):
        wire.read_prediction(response)
