"""What an adapter is: its spec, parsed once and valid from then on.

An adapter is the union of optional components (prompt, prefix, LoRA, bottleneck), each gated or
not, plus a head, bound to one backbone by digest. ``AdapterSpec`` is both the trust boundary (the
config blob of the manifest) and the type used inside. It knows no tensors; see ``upt_zoo.layout``.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from upt_zoo.errors import InvalidSpec
from upt_zoo.json_text import check_json, format_json
from upt_zoo.reasons import first_reason

Family = Literal["bert", "roberta"]
LoraTarget = Literal["q", "k", "v", "o", "ffn_up", "ffn_down"]
Activation = Literal["relu", "gelu", "silu", "tanh"]
HeadKind = Literal[
    "classification", "multi_label", "regression", "span", "token_classification", "embedding"
]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(?:[._-][a-z0-9]+)*$", max_length=128)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]  # what every language can count
MAX_FIELDS = 2
MAX_POINTS = 60  # of a curve: as many as a page can show apart
_ShortText = Annotated[str, Field(max_length=1000)]
LABELLED: tuple[HeadKind, ...] = ("classification", "multi_label", "token_classification")


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,  # a list of adapters reads no spec
    )


class BackboneIdentity(_Frozen):
    """The backbone that an adapter belongs to; ``digest`` alone decides a match."""

    hub_id: str
    digest: Digest
    family: Family
    layers: Count
    hidden: Count
    heads: Count
    intermediate: Count
    revision: str | None = None

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class Lora(_Frozen):
    """y = W x + b + s (x Aᵀ Bᵀ); s is the gate where gated, else alpha / rank."""

    rank: Count
    alpha: Annotated[float, Field(gt=0)]
    targets: Annotated[tuple[LoraTarget, ...], Field(strict=False, min_length=1)]
    gated: bool

    @model_validator(mode="after")
    def _targets_are_distinct(self) -> Self:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets repeat: {self.targets}")
        return self


class Prefix(_Frozen):
    """Learnt keys and values in front of each layer's own; visible to every query."""

    length: Count
    gated: bool
    gates: Literal["shared", "separate"] = "shared"

    @model_validator(mode="after")
    def _separate_gates_are_gates(self) -> Self:
        if self.gates == "separate" and not self.gated:
            raise ValueError("separate gates in a prefix without gates")
        return self


class Bottleneck(_Frozen):
    """h' = LN(f + g (W_up act(W_down x_a + b_down) + b_up) + x_1), after the FFN."""

    size: Count
    activation: Activation
    gated: bool


class Prompt(_Frozen):
    """Learnt vectors put before [CLS] (ours) or after it (some imported checkpoints)."""

    length: Count
    position: Literal["before_cls", "after_cls"] = "before_cls"


class Head(_Frozen):
    """The task's output layer; it sees the real tokens only, never the prompt.

    ``layers`` 2 puts a dense tanh layer of the hidden size in front of the output layer. For
    ``multi_label`` a label is given where its probability reaches ``threshold``. ``temperature``
    divides the logits before probabilities are formed. An ``embedding`` is what the head pools: it
    has no layer and no tensors, ``outputs`` is the hidden size, and ``normalised`` vectors have
    length 1.
    """

    kind: HeadKind
    outputs: Count
    labels: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    pooling: Literal["cls", "mean"] = "cls"
    layers: Literal[1, 2] = 1
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0
    # left out of the JSON of other kinds, whose bytes and digests are older than it
    normalised: Annotated[bool | None, Field(exclude_if=lambda value: value is None)] = None

    @property
    def is_per_token(self) -> bool:
        """Whether it reads every real token by itself; others read one pooled vector a row."""
        return self.kind in ("span", "token_classification")

    @model_validator(mode="after")
    def _outputs_match_the_kind(self) -> Self:
        if self.kind == "span" and self.outputs != 2:
            raise ValueError(f"a span head has 2 outputs (start, end), got {self.outputs}")
        if self.kind == "regression" and self.outputs != 1:
            raise ValueError(f"a regression head has 1 output, got {self.outputs}")
        if self.kind in LABELLED:
            if self.labels is None or len(self.labels) != self.outputs:
                raise ValueError(f"{self.kind} with {self.outputs} outputs needs as many labels")
        elif self.labels is not None:
            raise ValueError(f"a {self.kind} head has no labels")
        return self

    @model_validator(mode="after")
    def _labels_can_be_told_apart(self) -> Self:
        if self.labels and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels repeat: {self.labels}")
        if self.threshold is not None and self.kind != "multi_label":
            raise ValueError(f"a {self.kind} head has no threshold")
        return self

    @model_validator(mode="after")
    def _an_embedding_only_pools(self) -> Self:
        is_embedding = self.kind == "embedding"
        if is_embedding != (self.normalised is not None):
            wanted = "says whether it is normalised" if is_embedding else "has no normalised"
            raise ValueError(f"a head of kind {self.kind} {wanted}")
        if is_embedding and (self.layers, self.temperature) != (1, 1.0):
            raise ValueError("an embedding head has layers 1 and temperature 1: it has no logits")
        return self


class TaskInput(_Frozen):
    """How the task's text fields become token rows.

    One or two ``fields``. ``max_tokens`` counts special tokens but no prompt. A span task splits
    its second field, and a token classification its only one, into windows that overlap by
    ``stride`` tokens; other tasks truncate.
    """

    name: Name
    fields: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=MAX_FIELDS)]
    max_tokens: Annotated[int, Field(ge=8, le=2**31 - 1)]
    stride: Count | None = None
    metric: str
    description: str = ""

    @model_validator(mode="after")
    def _fields_are_distinct(self) -> Self:
        if len(set(self.fields)) != len(self.fields):
            raise ValueError(f"fields repeat: {self.fields}")
        return self


class DataFile(_Frozen):
    """One file that the adapter was trained or evaluated on; the digest is of its bytes."""

    name: str
    digest: Digest
    rows: Count


_OnePerEpoch = Annotated[
    tuple[float, ...], Field(strict=False, min_length=1, max_length=MAX_POINTS)
]


class Curve(_Frozen):
    """How a run went.

    After each of ``epochs``, counted from 1, ``holdout`` has the task's metric on the held-out rows
    in percent, and ``losses`` the epoch's mean loss; either is None where the run had none.
    ``best_epoch`` is the one whose weights the adapter has.
    """

    epochs: Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=MAX_POINTS)]
    holdout: _OnePerEpoch | None = None
    losses: _OnePerEpoch | None = None
    best_epoch: Count

    @model_validator(mode="after")
    def _epochs_ascend(self) -> Self:
        if any(after <= before for before, after in pairwise(self.epochs)):
            raise ValueError(f"expected epochs that ascend, got {self.epochs}")
        if self.best_epoch not in self.epochs:
            raise ValueError(f"best_epoch {self.best_epoch} is none of the epochs {self.epochs}")
        return self

    @model_validator(mode="after")
    def _each_epoch_has_a_value(self) -> Self:
        if self.holdout is None and self.losses is None:
            raise ValueError("a curve needs holdout, losses or both")
        for name, values in (("holdout", self.holdout), ("losses", self.losses)):
            if values is not None and len(values) != len(self.epochs):
                raise ValueError(f"{len(values)} {name} for {len(self.epochs)} epochs")
        return self

    @classmethod
    def of_run(
        cls, *, holdout: Sequence[float], losses: Sequence[float], best_epoch: int
    ) -> Self | None:
        """Make the curve of a run out of what it measured in all its epochs; None if nothing.

        Of more epochs than a curve holds, some at equal distances stay, the best and the last
        among them. ``losses`` that are not of every epoch are left out.
        """
        count = len(holdout) or len(losses)
        if count == 0:
            return None
        epochs = _spread(count, best_epoch)

        def at_epochs(values: Sequence[float]) -> tuple[float, ...] | None:
            if len(values) != count:
                return None
            return tuple(round(values[epoch - 1], 4) for epoch in epochs)

        return cls(
            epochs=epochs,
            holdout=at_epochs(holdout),
            losses=at_epochs(losses),
            best_epoch=best_epoch,
        )


def _spread(count: int, kept: int) -> tuple[int, ...]:
    """Choose at most ``MAX_POINTS`` of the numbers 1 to ``count``, with ``kept`` among them."""
    numbers = range(1, count + 1)
    if count <= MAX_POINTS:
        return tuple(numbers)
    gaps = MAX_POINTS - 2  # one place is for the one to keep
    even = {1 + index * (count - 1) // gaps for index in range(gaps + 1)}
    return tuple(number for number in numbers if number in even or number == kept)


class Lineage(_Frozen):
    """Where an adapter comes from: all that is needed to judge it and to train it again.

    ``metrics`` maps ``split/metric`` (``dev/accuracy``) to its value in percent. Parameter counts:
    ``trained`` are those that had gradients, ``served`` those in the published tensors without the
    head, ``head`` those of the head. ``curve`` is how the run went, where that is known.
    """

    data: str
    data_licence: str
    commercial_use: Literal["yes", "no", "unclear"]
    files: Annotated[tuple[DataFile, ...], Field(strict=False)]
    recipe: dict[str, JsonValue]
    seed: int
    code_version: str
    precision: Literal["fp32", "bf16", "int8"]
    metrics: dict[str, float]
    trained_parameters: Annotated[int, Field(ge=0, le=2**63 - 1)]
    served_parameters: Annotated[int, Field(ge=0, le=2**63 - 1)]
    head_parameters: Annotated[int, Field(ge=0, le=2**63 - 1)]
    licence: str = "Apache-2.0"
    backbone_overlap: str | None = None
    # left out of the JSON where there is none: bytes and digests of many adapters are older than it
    curve: Annotated[Curve | None, Field(exclude_if=lambda value: value is None)] = None


class Example(_Frozen):
    """An input, and the logits that it had on the backbone in fp32 when the adapter was published.

    ``texts`` stand in the order of the task's fields. ``logits`` are those of the head, row-major:
    [output], or [token, output] for a head that reads every token, window behind window.
    """

    texts: Annotated[tuple[_ShortText, ...], Field(strict=False, min_length=1)]
    logits: Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=2**16)]


class AdapterSpec(_Frozen):
    """Everything about an adapter but its numbers."""

    format: Literal[1] = 1
    method: str
    backbone: BackboneIdentity
    lora: Lora | None = None
    prefix: Prefix | None = None
    bottleneck: Bottleneck | None = None
    prompt: Prompt | None = None
    gate_pooling: Literal["masked_mean"] = "masked_mean"
    head: Head
    task: TaskInput
    lineage: Lineage
    # left out of the JSON where there is none: bytes and digests of many adapters are older than it
    example: Annotated[Example | None, Field(exclude_if=lambda value: value is None)] = None

    @model_validator(mode="after")
    def _the_example_is_of_the_task(self) -> Self:
        if self.example is None:
            return self
        texts, logits, outputs = self.example.texts, self.example.logits, self.head.outputs
        if len(texts) != len(self.task.fields):
            raise ValueError(f"an example of {len(texts)} texts for {len(self.task.fields)} fields")
        if len(logits) % outputs or not (self.head.is_per_token or len(logits) == outputs):
            raise ValueError(f"an example with {len(logits)} logits for {outputs} outputs")
        return self

    @model_validator(mode="after")
    def _a_span_task_has_two_fields(self) -> Self:
        if self.head.kind == "span" and len(self.task.fields) != 2:
            raise ValueError("a span task needs two fields, the question and the context")
        return self

    @model_validator(mode="after")
    def _entities_and_embeddings_are_of_one_text(self) -> Self:
        kind = self.head.kind
        if kind in ("token_classification", "embedding") and len(self.task.fields) != 1:
            raise ValueError(f"a task of kind {kind} has one field, the text")
        return self

    @model_validator(mode="after")
    def _an_embedding_has_the_hidden_size(self) -> Self:
        if self.head.kind == "embedding" and self.head.outputs != self.backbone.hidden:
            raise ValueError(
                f"an embedding has the hidden size {self.backbone.hidden} as its outputs, "
                f"got {self.head.outputs}"
            )
        return self

    def to_json(self) -> bytes:
        """Serialise canonically: sorted keys, no white space, UTF-8; equal specs, equal bytes.

        Raises:
            InvalidSpec: a text or a number in it cannot be written as JSON.
        """
        try:
            return format_json(self.model_dump(mode="json"))
        except ValueError as error:
            raise InvalidSpec(f"the adapter's spec cannot be written as JSON: {error}") from error

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse and validate.

        Raises:
            InvalidSpec: malformed JSON, a key that is unknown or repeats, or values that contradict
                each other.
        """
        try:
            spec = cls.model_validate_json(data)
            check_json(data)
            return spec
        except ValueError as error:  # of pydantic too
            raise InvalidSpec(f"the adapter's spec is not valid: {first_reason(error)}") from error
