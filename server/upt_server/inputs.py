"""What a caller asks for, and the checks that need no tokenizer. Pure: no I/O, no tensors."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from upt_zoo.errors import InvalidInput, InvalidText, UptError
from upt_zoo.references import Reference
from upt_zoo.spec import TaskInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one call may ask for; ``max_input_chars`` counts all texts of one input."""

    max_inputs: int = 256
    max_input_chars: int = 100_000
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input and its adapter: ``texts`` in the order of the task's fields, or ``fields``."""

    adapter: Reference
    texts: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def at_input(index: int) -> Iterator[None]:
    """Note on an error of upt which input of the call it is about, as a path in the request."""
    try:
        yield
    except UptError as error:
        located = copy.copy(error)  # several callers may have got the same one from a shared load
        located.add_note(f"inputs[{index}]")
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
        chars = sum(map(len, (*item.texts, *item.fields.values())))
        if chars > limits.max_input_chars:
            with at_input(index):
                raise InvalidText(
                    f"expected at most {limits.max_input_chars} characters, got {chars}"
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
