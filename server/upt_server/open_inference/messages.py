"""Messages of the protocol from what the engine knows, and inputs of the engine from messages."""

from collections.abc import Iterable, Sequence
from itertools import islice

from upt_protos.oip import open_inference_pb2 as pb
from upt_server.inputs import Input, Limits, Options, check_count
from upt_server.open_inference.tensors import OUTPUT_NAMES, OUTPUTS, split_raw
from upt_server.results import AdapterDescription, AdapterIdentity, Prediction
from upt_server.statistics import AdapterStatistics
from upt_zoo.errors import InvalidInput, InvalidText
from upt_zoo.references import Reference
from upt_zoo.spec import MAX_FIELDS

PLATFORM = "upt"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
_DATA_TYPES = {"BYTES": pb.TYPE_STRING, "FP32": pb.TYPE_FP32, "INT64": pb.TYPE_INT64}
# these ask for other elements than those of the tensor; whatever else there is asks for nothing
_REFUSED = ("shared_memory_region", "classification")


def read_reference(name: str, version: str) -> Reference:
    """Read an adapter's reference; the protocol has a field of its own for a version.

    Raises:
        InvalidInput: two versions, or not a reference.
    """
    reference = Reference.parse(name)
    if not version or reference.tag == version:
        return reference
    if reference.tag is not None:
        raise InvalidInput(f"the model {name} is asked for in version {version}: expected one")
    return Reference.parse(f"{name}:{version}")


def read_inputs(request: pb.ModelInferRequest, reference: Reference, limits: Limits) -> list[Input]:
    """Read n inputs: one tensor of n texts for each field of the task.

    Raises:
        InvalidInput: tensors of other types, shapes or numbers, or an output that no head has.
        InvalidText: not UTF-8.
    """
    if len(request.inputs) > MAX_FIELDS:
        raise InvalidInput(f"a task takes at most {MAX_FIELDS} inputs, got {len(request.inputs)}")
    count = max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=0)
    check_count(count, limits)
    _check_wanted(request)
    raw: Sequence[bytes | None] = request.raw_input_contents or [None] * len(request.inputs)
    if len(raw) != len(request.inputs):
        raise InvalidInput(
            f"expected raw contents for all {len(request.inputs)} inputs, got {len(raw)}"
        )
    fields = {
        tensor.name: _read_texts(tensor, content, count)
        for tensor, content in zip(request.inputs, raw, strict=True)
    }
    if len(fields) != len(request.inputs):
        raise InvalidInput("an input's name comes twice")
    return [
        Input(
            adapter=reference,
            fields={name: texts[index] for name, texts in fields.items()},
            options=Options(has_logits=True),
        )
        for index in range(count)
    ]


def read_timeout_s(request: pb.ModelInferRequest) -> float | None:
    """Read the parameter ``timeout``, in microseconds; 0 and none are no timeout.

    Raises:
        InvalidInput: not a whole number from 0 on.
    """
    if "timeout" not in request.parameters:
        return None
    parameter = request.parameters["timeout"]
    timeout_us = parameter.int64_param or parameter.uint64_param
    if parameter.WhichOneof("parameter_choice") not in ("int64_param", "uint64_param") or (
        timeout_us < 0
    ):
        raise InvalidInput("parameter timeout: expected microseconds, a whole number from 0 on")
    return timeout_us / 1e6 or None


def facts_of(prediction: Prediction) -> dict[str, str]:
    """Say who answered, for an answer's parameters."""
    adapter = prediction.outputs[0].adapter
    return {
        "adapter": f"{adapter.name}:{adapter.version}",
        "digest": adapter.digest,
        "backbone_digest": prediction.backbone_digest,
        "precision": prediction.precision,
    }


def write_metadata(about: AdapterDescription) -> pb.ModelMetadataResponse:
    """Name an adapter's inputs, its task's text fields, and its outputs."""
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=about.identity.name,
        versions=[about.identity.version],
        platform=PLATFORM,
        inputs=[tensor(name=name, datatype="BYTES", shape=[-1]) for name in about.fields],
        outputs=[
            tensor(name=name, datatype=datatype, shape=_shape(shape, about))
            for name, datatype, shape in OUTPUTS[about.head]
        ],
    )


def write_config(about: AdapterDescription) -> pb.ModelConfig:
    """Say the same as a configuration, with what else a caller may want to know of an adapter.

    ``max_batch_size`` is 0, since the shapes have the number of inputs in them.
    """
    facts = {
        "digest": about.identity.digest,
        "version": about.identity.version,
        "task": about.task,
        "method": about.method,
        "labels": ",".join(about.labels),
        "max_tokens": str(about.max_tokens),
        "backbone_digest": about.backbone_digest,
    }
    return pb.ModelConfig(
        name=about.identity.name,
        platform=PLATFORM,
        backend=PLATFORM,
        input=[
            pb.ModelInput(name=name, data_type=pb.TYPE_STRING, dims=[-1]) for name in about.fields
        ],
        output=[
            pb.ModelOutput(name=name, data_type=_DATA_TYPES[datatype], dims=_shape(shape, about))
            for name, datatype, shape in OUTPUTS[about.head]
        ],
        parameters={name: pb.ModelParameter(string_value=value) for name, value in facts.items()},
    )


def write_statistics(adapter: AdapterIdentity, sums: AdapterStatistics) -> pb.ModelStatistics:
    """Write an adapter's statistics; only answered calls have times."""

    def duration(milliseconds: float) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=sums.calls, ns=int(milliseconds * 1e6))

    return pb.ModelStatistics(
        name=adapter.name,
        version=adapter.version,
        last_inference=int(sums.last_answer_s * 1000),
        inference_count=sums.inputs,
        execution_count=sums.batches,
        inference_stats=pb.InferStatistics(
            success=duration(sums.total_ms),
            fail=pb.StatisticDuration(count=sums.failed_calls),
            queue=duration(sums.queue_ms),
            compute_input=duration(sums.tokenize_ms),
            compute_infer=duration(sums.forward_ms),
        ),
    )


def write_index(adapters: Iterable[AdapterDescription]) -> pb.RepositoryIndexResponse:
    """List adapters; all can be asked, none has to be loaded first."""
    entry = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(
        models=[
            entry(
                name=each.identity.name,
                version=each.identity.version,
                state="READY",
                reason="in memory" if each.is_resident else "loaded when asked",
            )
            for each in adapters
        ]
    )


def _shape(shape: Sequence[int], about: AdapterDescription) -> list[int]:
    return [size or about.outputs for size in shape]


def _check_wanted(request: pb.ModelInferRequest) -> None:
    """Refuse what no head can give before anything is computed."""
    names = [output.name for output in request.outputs]
    if (
        len(names) > len(OUTPUT_NAMES)
        or len(set(names)) < len(names)
        or not OUTPUT_NAMES.issuperset(names)
    ):
        raise InvalidInput(f"expected each output once, of {', '.join(sorted(OUTPUT_NAMES))}")
    parameters = [tensor.parameters for tensor in request.inputs]
    parameters += [output.parameters for output in request.outputs]
    if refused := [name for name in _REFUSED if any(name in each for each in parameters)]:
        raise InvalidInput(f"this server does not take the parameter {refused[0]}; leave it out")


def _read_texts(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, count: int
) -> list[str]:
    shape = tuple(tensor.shape)
    if tensor.datatype != "BYTES" or shape not in ((count,), (count, 1)):
        raise InvalidInput(
            f"input {tensor.name}: expected BYTES of shape [{count}], got {tensor.datatype} of "
            f"shape {list(shape)}; all inputs of a call have as many texts"
        )
    given = tensor.contents.bytes_contents if raw is None else split_raw(raw)
    elements = list(islice(given, count + 1))  # one too many shows that there are others
    if len(elements) != count:
        raise InvalidInput(f"input {tensor.name}: expected {count} texts, got others")
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidText(f"input {tensor.name}: expected UTF-8: {error.reason}") from error
