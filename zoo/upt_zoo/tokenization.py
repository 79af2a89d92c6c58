"""From a task's text fields to token rows; one path for training, evaluation and serving.

A row holds the real tokens of one forward pass, special tokens included, without padding and
without prompt. A span task turns a long second field into several rows that overlap.
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from upt_zoo.errors import Corrupt, InvalidText
from upt_zoo.spec import TaskInput


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One row of token ids.

    ``offsets`` gives each token's [start, end) in characters of the second field, or None for
    tokens of the first field and special tokens; it is kept for span tasks only.
    """

    ids: list[int]
    type_ids: list[int]
    is_truncated: bool = False
    offsets: tuple[tuple[int, int] | None, ...] | None = None


class Tokenizer:
    """The backbone's own tokenizer with its truncation and padding switched off; thread-safe."""

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = RustTokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise Corrupt(f"{file}: not a tokenizer file: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._specials = {
            pair: self._tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)
        }

    def encode(self, task: TaskInput, texts: tuple[str, ...], *, is_span: bool) -> list[TokenRow]:
        """Encode one input of the task; one row, or for spans one row a window.

        Texts stand in the order of ``task.fields``. Over-long classification and regression inputs
        lose tokens from the end of the longer field.

        Raises:
            InvalidText: another number of texts than the task has fields.
        """
        if len(texts) != len(task.fields):
            raise InvalidText(
                f"task {task.name}: expected the fields {', '.join(task.fields)}, "
                f"got {len(texts)} texts"
            )
        parts = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        room = task.max_tokens - self._specials[len(parts) == 2]
        if is_span:
            return self._windows(parts[0], parts[1], room, task.stride or room // 3)
        return [self._row(parts, room)]

    def _row(self, parts: list[Encoding], room: int) -> TokenRow:
        lengths = _share_room([len(part.ids) for part in parts], room)
        is_truncated = False
        for part, length in zip(parts, lengths, strict=True):
            if len(part.ids) > length:
                part.truncate(length)
                is_truncated = True
        second = parts[1] if len(parts) == 2 else None
        joined = self._tokenizer.post_process(parts[0], second)
        return TokenRow(ids=joined.ids, type_ids=joined.type_ids, is_truncated=is_truncated)

    def _windows(
        self, question: Encoding, context: Encoding, room: int, stride: int
    ) -> list[TokenRow]:
        # half of the room at most for the question, so that each window moves forward
        question_room = room // 2
        is_truncated = len(question.ids) > question_room
        question.truncate(question_room)
        size = room - len(question.ids)
        context.truncate(size, stride=min(stride, size // 2))
        return [
            self._window(question, window, is_truncated=is_truncated)
            for window in (context, *context.overflowing)
        ]

    def _window(self, question: Encoding, window: Encoding, *, is_truncated: bool) -> TokenRow:
        joined = self._tokenizer.post_process(question, window)
        offsets = tuple(
            offset if sequence == 1 else None
            for offset, sequence in zip(joined.offsets, joined.sequence_ids, strict=True)
        )
        return TokenRow(
            ids=joined.ids, type_ids=joined.type_ids, is_truncated=is_truncated, offsets=offsets
        )


def _share_room(lengths: list[int], room: int) -> list[int]:
    """Shorten the longer of two fields first, then both alike."""
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    if first <= room // 2:
        return [first, room - first]
    if second <= room // 2:
        return [room - second, second]
    return [room - room // 2, room // 2]
