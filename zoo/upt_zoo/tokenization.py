"""From a task's text fields to token rows; one path for training, evaluation and serving.

A row holds the real tokens of one forward pass, special tokens included, without padding and
without prompt. A span task turns a long second field into several rows that overlap.
"""

from dataclasses import dataclass, replace
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

    def encode(
        self,
        task: TaskInput,
        texts: tuple[str, ...],
        *,
        is_span: bool,
        max_rows: int | None = None,
    ) -> list[TokenRow]:
        """Encode one input of the task; one row, or for spans one row a window.

        Texts stand in the order of ``task.fields``. Over-long classification and regression inputs
        lose tokens from the end of the longer field.

        Raises:
            InvalidText: another number of texts than the task has fields, half a character, or
                more than ``max_rows`` windows, which are counted before any is cut.
        """
        if len(texts) != len(task.fields):
            raise InvalidText(
                f"task {task.name}: expected the fields {', '.join(task.fields)}, "
                f"got {len(texts)} texts"
            )
        try:
            # a batch of one: encode() would hold the interpreter's lock, for 100 ms if it is long
            (encoding,) = self._tokenizer.encode_batch([texts if len(texts) > 1 else texts[0]])
        except TypeError as error:  # the library takes what UTF-8 can hold
            raise InvalidText(f"task {task.name}: a text holds half a surrogate pair") from error
        whole = _Whole(encoding)
        room = task.max_tokens - self._specials[len(texts) == 2]
        if is_span:
            return whole.windows(room, task.stride or room // 3, max_rows)
        return [whole.row(room)]


class _Whole:
    """An input at full length, special tokens included; rows are cut out of it.

    The library's own truncation keeps all that it cuts off, for pairs in every combination: two
    texts of 50,000 characters would take gigabytes.
    """

    def __init__(self, encoding: Encoding) -> None:
        sequences = encoding.sequence_ids
        places: dict[int | None, list[int]] = {None: [], 0: [], 1: []}
        for place, sequence in enumerate(sequences):
            places[sequence].append(place)
        self._specials, self._first, self._second = places[None], places[0], places[1]
        self._ids, self._type_ids = encoding.ids, encoding.type_ids
        self._offsets = [
            offset if sequence == 1 else None
            for offset, sequence in zip(encoding.offsets, sequences, strict=True)
        ]

    def row(self, room: int) -> TokenRow:
        """Cut one row with at most ``room`` tokens beside the special ones."""
        first, second = _share_room(len(self._first), len(self._second), room)
        is_truncated = len(self._first) + len(self._second) > room
        kept = self._join(self._first[:first], self._second[:second])
        return self._cut(kept, is_truncated=is_truncated)

    def windows(self, room: int, stride: int, max_rows: int | None) -> list[TokenRow]:
        """Cut rows that together hold the whole second field, ``stride`` of its tokens twice."""
        # half of the room at most for the first field, so that each window moves forward
        first = self._first[: room // 2]
        size = room - len(first)
        stride = min(stride, size // 2)
        starts = range(0, max(1, len(self._second) - stride), size - stride)
        if max_rows is not None and len(starts) > max_rows:
            raise InvalidText(
                f"expected at most {max_rows} windows, got {len(starts)} of {room} tokens beside "
                f"the special ones; shorten the text, or ask for longer windows that overlap less"
            )
        windows = (self._join(first, self._second[start : start + size]) for start in starts)
        return [
            replace(
                self._cut(kept, is_truncated=len(first) < len(self._first)),
                offsets=tuple(self._offsets[place] for place in kept),
            )
            for kept in windows
        ]

    def _join(self, first: list[int], second: list[int]) -> list[int]:
        return sorted(self._specials + first + second)

    def _cut(self, kept: list[int], *, is_truncated: bool) -> TokenRow:
        return TokenRow(
            ids=[self._ids[place] for place in kept],
            type_ids=[self._type_ids[place] for place in kept],
            is_truncated=is_truncated,
        )


def _share_room(first: int, second: int, room: int) -> tuple[int, int]:
    """Shorten the longer of two fields first, then both alike."""
    if first + second <= room:
        return first, second
    if first <= room // 2:
        return first, room - first
    if second <= room // 2:
        return room - second, second
    return room - room // 2, room // 2
