"""What a caller asks for, and the checks that need no tokenizer. Pure: no I/O, no tensors."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from upt_zoo.errors import InvalidInput, InvalidText, UptError
from upt_zoo.references import Reference
from upt_zoo.spec import HeadKind, TaskInput

_MIN_TOKENS = 8  # as in a spec
_UNRANKED: Mapping[HeadKind, str] = {
    "regression": "a number",
    "token_classification": "all entities",
    "embedding": "a vector",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one call may ask for.

    ``max_input_chars`` counts all texts of one input: a document of 100,000 and a question.
    ``max_rows`` counts the token rows of all inputs: a document of 100,000 has about 90 windows.
    ``max_gate_rows`` counts the rows, or windows, whose gates are asked for.
    """

    max_inputs: int = 256
    max_input_chars: int = 101_000
    max_rows: int = 4096
    max_gate_rows: int = 32
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an input may ask for beyond an answer; by default what the adapter's spec says.

    ``max_tokens`` and ``stride`` are those of ``upt_zoo.spec.TaskInput``, the former at most the
    task's own. ``top_k`` asks for the best labels only, or for the best spans. ``has_logits`` and
    ``has_gates`` ask for ``Output.logits`` and ``Output.gates``.
    """

    is_truncation_refused: bool = False
    max_tokens: int | None = None
    stride: int | None = None
    top_k: int | None = None
    has_logits: bool = False
    has_gates: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input and its adapter: ``texts`` in the order of the task's fields, or ``fields``.

    ``path`` says where it stands in the request, if not at its own index.
    """

    adapter: Reference
    texts: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    options: Options = Options()
    path: str = field(default="", compare=False)

    @property
    def chars(self) -> int:
        """Characters of all its texts."""
        return sum(map(len, (*self.texts, *self.fields.values())))


class at_input:
    """Note on an error of upt which input of the call it is about, as a path in the request."""

    def __init__(self, index: int, path: str = "") -> None:
        self._index, self._path = index, path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, UptError):
            located = copy.copy(error)  # several callers may have got the same from a shared load
            located.add_note(self._path or f"inputs[{self._index}]")
            raise located from error


def check_count(count: int, limits: Limits) -> None:
    """Check how many inputs a call has, before any of them is read.

    Raises:
        InvalidInput: none, or too many.
    """
    if not 0 < count <= limits.max_inputs:
        raise InvalidInput(f"expected 1 to {limits.max_inputs} inputs a call, got {count}")


def check_sizes(inputs: Sequence[Input], limits: Limits) -> None:
    """Check what can be checked before anything is loaded or tokenised.

    Raises:
        InvalidInput: no inputs, or too many.
        InvalidText: an input is too long.
    """
    check_count(len(inputs), limits)
    for index, item in enumerate(inputs):
        if item.chars > limits.max_input_chars:
            with at_input(index, item.path):
                raise InvalidText(
                    f"expected at most {limits.max_input_chars} characters, got {item.chars}"
                )


def choose_format(task: TaskInput, options: Options, kind: HeadKind) -> TaskInput:
    """Return the task's input format with an input's options applied.

    Raises:
        InvalidInput: an option is out of range, or this kind of head has no use for it.
    """
    least, most = _MIN_TOKENS, task.max_tokens
    if options.max_tokens is not None and not least <= options.max_tokens <= most:
        raise InvalidInput(
            f"max_tokens {options.max_tokens}: task {task.name} takes {least} to {most}"
        )
    if options.stride is not None and kind not in ("span", "token_classification"):
        raise InvalidInput(
            f"stride is for spans and entities, and {task.name} is a {kind}; leave it out"
        )
    if options.top_k is not None and kind in _UNRANKED:
        raise InvalidInput(f"top_k is for labels and spans; {task.name} answers {_UNRANKED[kind]}")
    return task.model_copy(
        update={
            "max_tokens": options.max_tokens or task.max_tokens,
            "stride": options.stride or task.stride,
        }
    )


def order_texts(task: TaskInput, item: Input) -> tuple[str, ...]:
    """Return the input's texts in the order of the task's fields.

    Raises:
        InvalidText: a field is missing, unknown or empty, or the number of texts is another one.
    """
    expected = f"task {task.name} takes {' and '.join(task.fields)}"
    if bool(item.texts) == bool(item.fields):
        raise InvalidText(f"{expected}; give them as either texts or fields")
    if item.fields and item.fields.keys() != set(task.fields):
        raise InvalidText(f"{expected}, got {', '.join(sorted(item.fields))[:200]}")
    texts = item.texts or tuple(item.fields[name] for name in task.fields)
    if len(texts) != len(task.fields):
        raise InvalidText(f"{expected}, got {len(texts)} texts")
    empty = [name for name, text in zip(task.fields, texts, strict=True) if not text.strip()]
    if empty:
        raise InvalidText(f"{expected}, and {' and '.join(empty)} is empty")
    return texts
