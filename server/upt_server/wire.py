"""Between our values and the messages of ``upt.v1``, in both directions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from grpc import StatusCode

from upt_protos.v1 import inference_pb2 as pb
from upt_server import statuses
from upt_server.inputs import Input, Options, at_input
from upt_server.precision import Precision
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
from upt_zoo.errors import Corrupt, InvalidInput, InvalidText, Overloaded, Unavailable
from upt_zoo.references import Reference
from upt_zoo.spec import MAX_FIELDS, HeadKind

K = TypeVar("K")
V = TypeVar("V")

_PRECISIONS: "Mapping[Precision, pb.Precision.ValueType]" = {
    "exact": pb.PRECISION_EXACT,
    "fast": pb.PRECISION_FAST,
}
_HEADS: "Mapping[HeadKind, pb.HeadKind.ValueType]" = {
    "classification": pb.HEAD_KIND_CLASSIFICATION,
    "multi_label": pb.HEAD_KIND_MULTI_LABEL,
    "regression": pb.HEAD_KIND_REGRESSION,
    "span": pb.HEAD_KIND_SPAN,
    "token_classification": pb.HEAD_KIND_TOKEN_CLASSIFICATION,
    "embedding": pb.HEAD_KIND_EMBEDDING,
}


def read_inputs(request: pb.PredictRequest) -> list[Input]:
    """Read what the caller asks for.

    Raises:
        InvalidInput: an input names an adapter in both ways.
        InvalidReference: an adapter reference does not parse.
        InvalidText: an input has more texts than any task has fields.
    """
    inputs: list[Input] = []
    for index, message in enumerate(request.inputs):
        with at_input(index):
            count = max(len(message.texts), len(message.fields))
            if count > MAX_FIELDS:
                raise InvalidText(f"a task takes 1 or {MAX_FIELDS} texts, got {count}")
            if message.adapter and message.adapters:
                raise InvalidInput("expected either adapter or adapters, got both")
        texts, fields = tuple(message.texts), dict(message.fields)
        options = _read_options(message.options)
        for place, name in enumerate(message.adapters or [message.adapter]):
            path = f"inputs[{index}].adapters[{place}]" if message.adapters else f"inputs[{index}]"
            with at_input(index, path):
                adapter = Reference.parse(name)
            inputs.append(
                Input(adapter=adapter, texts=texts, fields=fields, options=options, path=path)
            )
    return inputs


def count_inputs(request: pb.PredictRequest) -> int:
    """Count a call's inputs; one with several adapters counts for each of them."""
    return sum(len(message.adapters) or 1 for message in request.inputs)


def write_request(inputs: Sequence[Input]) -> pb.PredictRequest:
    """Write a call's inputs."""
    return pb.PredictRequest(
        inputs=[
            pb.Input(
                adapter=str(item.adapter),
                texts=item.texts,
                fields=item.fields,
                options=_write_options(item.options),
            )
            for item in inputs
        ]
    )


def write_shared(inputs: Sequence[Input]) -> pb.PredictRequest:
    """Write inputs that differ in their adapters only, the texts once."""
    request = write_request(inputs[:1])
    for message in request.inputs:  # one, or none
        message.ClearField("adapter")
        message.adapters.extend(str(item.adapter) for item in inputs)
    return request


def write_failure(error: Exception) -> pb.Failure:
    """Write what ended one request of a stream."""
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded | Unavailable) else 0.0
    code = statuses.code_of(error)
    return pb.Failure(
        status=code.name,
        reason="INTERNAL" if code is StatusCode.INTERNAL else statuses.reason_of(type(error)),
        message=statuses.message_of(error),
        retry_after_ms=retry_after_s * 1000,
    )


def read_failure(message: pb.Failure) -> Exception:
    """Read what ended one request of a stream, as the error that the server met."""
    code = StatusCode.__members__.get(message.status, StatusCode.UNKNOWN)
    return statuses.error_named(
        message.reason, code, message.message, retry_after_s=message.retry_after_ms / 1000
    )


def write_prediction(prediction: Prediction) -> pb.PredictResponse:
    """Write a call's answer."""
    timings = prediction.timings
    return pb.PredictResponse(
        outputs=[_write_output(output) for output in prediction.outputs],
        backbone_digest=prediction.backbone_digest,
        precision=_PRECISIONS[prediction.precision],
        timings=pb.Timings(
            load_ms=timings.load_ms,
            tokenize_ms=timings.tokenize_ms,
            queue_ms=timings.queue_ms,
            forward_ms=timings.forward_ms,
            total_ms=timings.total_ms,
        ),
        batches=[
            pb.Batch(
                rows=facts.rows,
                tokens=facts.tokens,
                distinct_adapters=facts.distinct_adapters,
                forward_ms=facts.forward_ms,
            )
            for facts in prediction.batches
        ],
    )


def read_prediction(response: pb.PredictResponse) -> Prediction:
    """Read a call's answer.

    Raises:
        Corrupt: the server speaks a later form of ``upt.v1``.
    """
    timings = response.timings
    return Prediction(
        outputs=tuple(_read_output(message) for message in response.outputs),
        backbone_digest=response.backbone_digest,
        precision=_key_of(response.precision, _PRECISIONS),
        timings=Timings(
            load_ms=timings.load_ms,
            tokenize_ms=timings.tokenize_ms,
            queue_ms=timings.queue_ms,
            forward_ms=timings.forward_ms,
            total_ms=timings.total_ms,
        ),
        batches=tuple(
            BatchFacts(
                rows=message.rows,
                tokens=message.tokens,
                distinct_adapters=message.distinct_adapters,
                forward_ms=message.forward_ms,
            )
            for message in response.batches
        ),
    )


def write_adapter(description: AdapterDescription) -> pb.Adapter:
    """Write an adapter's description."""
    return pb.Adapter(
        identity=_write_identity(description.identity),
        task=description.task,
        description=description.description,
        method=description.method,
        fields=description.fields,
        max_tokens=description.max_tokens,
        head=_HEADS[description.head],
        labels=description.labels,
        metric=description.metric,
        metrics=description.metrics,
        backbone_hub_id=description.backbone_hub_id,
        backbone_digest=description.backbone_digest,
        parameters=pb.Parameters(
            trained=description.trained_parameters,
            served=description.served_parameters,
            head=description.head_parameters,
        ),
        licence=description.licence,
        data=description.data,
        data_licence=description.data_licence,
        commercial_use=description.commercial_use,
        resident=description.is_resident,
        outputs=description.outputs,
    )


def write_adapters(descriptions: Iterable[AdapterDescription]) -> pb.ListAdaptersResponse:
    """Write what is known of adapters."""
    return pb.ListAdaptersResponse(adapters=map(write_adapter, descriptions))


def read_adapter(message: pb.Adapter) -> AdapterDescription:
    """Read an adapter's description.

    Raises:
        Corrupt: the server speaks a later form of ``upt.v1``.
    """
    return AdapterDescription(
        identity=_read_identity(message.identity),
        task=message.task,
        description=message.description,
        method=message.method,
        fields=tuple(message.fields),
        max_tokens=message.max_tokens,
        head=_key_of(message.head, _HEADS),
        labels=tuple(message.labels),
        metric=message.metric,
        metrics=dict(message.metrics),
        backbone_hub_id=message.backbone_hub_id,
        backbone_digest=message.backbone_digest,
        trained_parameters=message.parameters.trained,
        served_parameters=message.parameters.served,
        head_parameters=message.parameters.head,
        licence=message.licence,
        data=message.data,
        data_licence=message.data_licence,
        commercial_use=message.commercial_use,
        is_resident=message.resident,
        outputs=message.outputs,
    )


def _write_output(output: Output) -> pb.Output:
    message = pb.Output(
        adapter=_write_identity(output.adapter),
        task=output.task,
        tokens=output.tokens,
        truncated=output.is_truncated,
        windows=output.windows,
        candidates=[_write_span(span) for span in output.candidates],
        logits=output.logits,
        gates=[pb.LayerGates(gates=gates) for gates in output.gates],
    )
    _write_answer(output.answer, output.labels, message)
    return message


def _write_answer(answer: Answer, labels: Sequence[str], message: pb.Output) -> None:
    match answer:
        case LabelAnswer(label=label, index=index, score=score, scores=scores):
            message.label.CopyFrom(
                pb.LabelAnswer(
                    label=label, index=index, score=score, scores=_write_scores(labels, scores)
                )
            )
        case LabelSetAnswer(labels=given, scores=scores):
            message.label_set.CopyFrom(
                pb.LabelSetAnswer(labels=given, scores=_write_scores(labels, scores))
            )
        case ValueAnswer(value=value):
            message.value.CopyFrom(pb.ValueAnswer(value=value))
        case SpanAnswer():
            message.span.CopyFrom(_write_span(answer))
        case EntitiesAnswer(entities=entities):
            message.entities.SetInParent()  # none is an answer too
            message.entities.entities.extend(map(_write_entity, entities))
        case EmbeddingAnswer(vector=vector):
            message.embedding.vector.extend(vector)


def _write_span(span: SpanAnswer) -> pb.SpanAnswer:
    return pb.SpanAnswer(text=span.text, start=span.start, end=span.end, score=span.score)


def _read_span(message: pb.SpanAnswer) -> SpanAnswer:
    return SpanAnswer(text=message.text, start=message.start, end=message.end, score=message.score)


def _write_entity(entity: Entity) -> pb.Entity:
    return pb.Entity(
        label=entity.label,
        text=entity.text,
        start=entity.start,
        end=entity.end,
        score=entity.score,
    )


def _read_entity(message: pb.Entity) -> Entity:
    return Entity(
        label=message.label,
        text=message.text,
        start=message.start,
        end=message.end,
        score=message.score,
    )


def _write_options(options: Options) -> pb.Options | None:
    """Write what is not the default; nothing takes no bytes."""
    if options == Options():
        return None
    return pb.Options(
        refuse_truncation=options.is_truncation_refused,
        max_tokens=options.max_tokens or 0,
        stride=options.stride or 0,
        top_k=options.top_k or 0,
        logits=options.has_logits,
        gates=options.has_gates,
    )


def _read_options(message: pb.Options) -> Options:
    return Options(
        is_truncation_refused=message.refuse_truncation,
        max_tokens=message.max_tokens or None,
        stride=message.stride or None,
        top_k=message.top_k or None,
        has_logits=message.logits,
        has_gates=message.gates,
    )


def _write_scores(labels: Sequence[str], scores: Sequence[float]) -> list[pb.Score]:
    return [pb.Score(label=label, score=score) for label, score in zip(labels, scores, strict=True)]


def _read_output(message: pb.Output) -> Output:
    answer, labels = _read_answer(message)
    return Output(
        answer=answer,
        labels=labels,
        adapter=_read_identity(message.adapter),
        task=message.task,
        tokens=message.tokens,
        is_truncated=message.truncated,
        windows=message.windows,
        candidates=tuple(map(_read_span, message.candidates)),
        logits=tuple(message.logits),
        gates=tuple(dict(layer.gates) for layer in message.gates),
    )


def _read_answer(message: pb.Output) -> tuple[Answer, tuple[str, ...]]:
    match message.WhichOneof("answer"):
        case "label":
            labels, scores = _read_scores(message.label.scores)
            return LabelAnswer(
                label=message.label.label,
                index=message.label.index,
                score=message.label.score,
                scores=scores,
            ), labels
        case "label_set":
            labels, scores = _read_scores(message.label_set.scores)
            return LabelSetAnswer(labels=tuple(message.label_set.labels), scores=scores), labels
        case "value":
            return ValueAnswer(value=message.value.value), ()
        case "span":
            return _read_span(message.span), ()
        case "entities":
            return EntitiesAnswer(entities=tuple(map(_read_entity, message.entities.entities))), ()
        case "embedding":
            return EmbeddingAnswer(vector=tuple(message.embedding.vector)), ()
    raise Corrupt("the server gave an answer of an unknown kind; use a later client")


def _read_scores(scores: Iterable[pb.Score]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    pairs = [(score.label, score.score) for score in scores]
    return tuple(label for label, _ in pairs), tuple(score for _, score in pairs)


def _write_identity(identity: AdapterIdentity) -> pb.AdapterIdentity:
    return pb.AdapterIdentity(name=identity.name, version=identity.version, digest=identity.digest)


def _read_identity(message: pb.AdapterIdentity) -> AdapterIdentity:
    return AdapterIdentity(name=message.name, version=message.version, digest=message.digest)


def _key_of(value: V, values: Mapping[K, V]) -> K:
    for key, known in values.items():
        if known == value:
            return key
    raise Corrupt(f"the server gave the unknown value {value}; use a later client")
