"""From a task's text fields to token rows; one path for training, evaluation and serving.

A row holds the real tokens of one forward pass, special tokens included, without padding and
without prompt. A long text of a span task, its second, or of a token classification becomes several
rows that overlap.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from upt_zoo.errors import Corrupt, InvalidText
from upt_zoo.spec import HeadKind, TaskInput

_Offsets: TypeAlias = list[tuple[int, int] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One row of token ids.

    ``offsets`` is kept for two kinds of heads, in characters: for spans each token's [start, end)
    in the second field, None for tokens of the first field and special tokens; for a token
    classification each word's [start, end) at its first token, None at all others. A word is what
    the tokenizer splits a text into before it looks for sub-words.
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
        kind: HeadKind,
        max_rows: int | None = None,
    ) -> list[TokenRow]:
        """Encode one input of the task for a head of this kind.

        Texts stand in the order of ``task.fields``. For spans and token classification a row is a
        window; the others have one row, and lose tokens from the end of the longer field.

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
        is_by_window = kind in ("span", "token_classification")
        if not is_by_window and len(encoding.ids) <= task.max_tokens:
            return [TokenRow(ids=encoding.ids, type_ids=encoding.type_ids)]
        whole = _Whole(encoding)
        room = task.max_tokens - self._specials[len(texts) == 2]
        if kind == "span":
            return whole.windows(room, task.stride or room // 3, max_rows, whole.token_offsets())
        if kind == "token_classification":
            return whole.windows(room, task.stride or room // 3, max_rows, whole.word_offsets())
        return [whole.row(room)]


class _Whole:
    """An input at full length, special tokens included; rows are cut out of it.

    The library's own truncation keeps all that it cuts off, for pairs in every combination: two
    texts of 50,000 characters would take gigabytes.
    """

    def __init__(self, encoding: Encoding) -> None:
        places: dict[int | None, list[int]] = {None: [], 0: [], 1: []}
        for place, sequence in enumerate(encoding.sequence_ids):
            places[sequence].append(place)
        self._specials, self._first, self._second = places[None], places[0], places[1]
        self._ids, self._type_ids, self._encoding = encoding.ids, encoding.type_ids, encoding

    def token_offsets(self) -> _Offsets:
        """Return where each token of the second field stands in it."""
        offsets: _Offsets = [None] * len(self._ids)
        given = self._encoding.offsets
        for place in self._second:
            offsets[place] = given[place]
        return offsets

    def word_offsets(self) -> _Offsets:
        """Return where each word of the only field stands, at its first token."""
        offsets: _Offsets = [None] * len(self._ids)
        given, words = self._encoding.offsets, self._encoding.word_ids
        for _, group in groupby(self._first, key=words.__getitem__):
            tokens = list(group)
            start, end = given[tokens[0]][0], given[tokens[-1]][1]
            offsets[tokens[0]] = (start, end) if start < end else None  # else blanks
        return offsets

    def row(self, room: int) -> TokenRow:
        """Cut one row with at most ``room`` tokens beside the special ones."""
        first, second = _share_room(len(self._first), len(self._second), room)
        is_truncated = len(self._first) + len(self._second) > room
        kept = self._join(self._first[:first], self._second[:second])
        return self._cut(kept, is_truncated=is_truncated)

    def windows(
        self, room: int, stride: int, max_rows: int | None, offsets: _Offsets
    ) -> list[TokenRow]:
        """Cut rows that together hold the whole last field, ``stride`` of its tokens twice."""
        is_pair = self._encoding.n_sequences == 2
        asked, long = (self._first, self._second) if is_pair else ([], self._first)
        # half of the room at most for what comes again, so that each window moves forward
        first = asked[: room // 2]
        size = room - len(first)
        stride = min(stride, size // 2)
        starts = range(0, max(1, len(long) - stride), size - stride)
        if max_rows is not None and len(starts) > max_rows:
            raise InvalidText(
                f"expected at most {max_rows} windows, got {len(starts)} of {room} tokens beside "
                f"the special ones; shorten the text, or ask for longer windows that overlap less"
            )
        windows = (self._join(first, long[start : start + size]) for start in starts)
        return [
            replace(
                self._cut(kept, is_truncated=len(first) < len(asked)),
                offsets=tuple(offsets[place] for place in kept),
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
