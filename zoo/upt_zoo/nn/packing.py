"""Where each token of a mixed batch stands: pure index arithmetic, no maths.

Rows are sorted by structure, then adapter, then length. The tokens of all rows stand one behind
the other, prompt vectors first in each row, with no padding between them:

    group 0                                      group 1
    ├ segment (adapter a)        ┤├ segment (b) ┤├ segment (c)   tail┤
    [p p p CLS x x SEP|p p p CLS x SEP|p p CLS x SEP|CLS x x x SEP|. .]

A *segment* is the run of one adapter's rows, a *group* the run of segments with one structure. A
*bucket* is a set of rows of one group whose attention is computed together. The *tail*, where there
is one, is a row that nobody asked for: it goes through all products and is in no bucket.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from upt_zoo.nn.adapter import PreparedAdapter, Structure

_Index = NDArray[np.int64]
_MOST_PLACES = 8  # of a rectangle, for each token in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of real token ids and the adapter that answers it."""

    ids: Sequence[int]
    type_ids: Sequence[int]
    adapter: PreparedAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The rows of one adapter; slices count rows and tokens of the whole batch.

    ``tokens`` has the tail in it, ``rows`` and ``real_tokens`` have not.
    """

    adapter: PreparedAdapter
    rows: slice
    tokens: slice
    real_tokens: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Rows whose attention runs as one product of [row, heads, length, length + prefix].

    ``tokens`` indexes the packed tokens, row by row; rows shorter than ``length`` repeat a token of
    their own and ``mask`` (0 or -inf) hides it. ``mask`` is None where all rows are equally long.
    ``rows`` counts from the group's first row.
    """

    rows: Int[Tensor, "row"]
    tokens: Int[Tensor, "place"]
    length: int
    mask: Float[Tensor, "row 1 1 length"] | None

    def to(self, device: torch.device) -> "Bucket":
        """Return it with its tensors on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, rows=self.rows.to(device), tokens=self.tokens.to(device), mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """A group's rows as [row, length], for products in which each row has weights of its own.

    ``tokens`` counts from the group's first; rows shorter than ``length`` repeat a token of their
    own. ``places`` says where each of the group's tokens stands among them.
    """

    tokens: Int[Tensor, "place"]
    places: Int[Tensor, "token"]
    length: int

    def to(self, device: torch.device) -> "Rectangle":
        """Return it with its tensors on a device."""
        return replace(self, tokens=self.tokens.to(device), places=self.places.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Segments of one structure: their small operators run as one.

    ``row_of_token`` counts rows from the group's first, ``row_lengths`` counts prompt and real
    tokens, ``segment_of_row`` counts segments; all three know the tail as a row. With a
    ``rectangle`` the segments' low-rank products are one, without it one each.
    """

    structure: Structure
    segments: tuple[Segment, ...]
    rows: slice
    tokens: slice
    row_of_token: Int[Tensor, "token"]
    row_lengths: Int[Tensor, "row 1"]
    segment_of_row: Int[Tensor, "row"]
    buckets: tuple[Bucket, ...]
    rectangle: Rectangle | None

    def to(self, device: torch.device) -> "Group":
        """Return it with its tensors on a device."""
        return replace(
            self,
            row_of_token=self.row_of_token.to(device),
            row_lengths=self.row_lengths.to(device),
            segment_of_row=self.segment_of_row.to(device),
            buckets=tuple(bucket.to(device) for bucket in self.buckets),
            rectangle=None if self.rectangle is None else self.rectangle.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A packed batch.

    ``ids``, ``type_ids``, ``positions`` are the real tokens in packed row order. ``sources`` says
    where each packed token comes from: an index into the real tokens followed by every segment's
    prompt vectors. ``real_tokens`` is the packed place of each real token. ``unbucket`` puts the
    buckets' outputs, laid end to end, back into packed order. ``order[i]`` is the caller's index of
    packed row i, ``starts`` [row + 1] the bounds of the rows among the real tokens.
    """

    ids: Int[Tensor, "real"]
    type_ids: Int[Tensor, "real"]
    positions: Int[Tensor, "real"]
    sources: Int[Tensor, "token"]
    real_tokens: Int[Tensor, "real"]
    unbucket: Int[Tensor, "token"]
    groups: tuple[Group, ...]
    order: tuple[int, ...]
    starts: tuple[int, ...]

    def to(self, device: torch.device) -> "Batch":
        """Return it with its tensors on a device; itself where they are there already."""
        if self.ids.device == device:
            return self
        return replace(
            self,
            ids=self.ids.to(device),
            type_ids=self.type_ids.to(device),
            positions=self.positions.to(device),
            sources=self.sources.to(device),
            real_tokens=self.real_tokens.to(device),
            unbucket=self.unbucket.to(device),
            groups=tuple(group.to(device) for group in self.groups),
        )


def pack(
    rows: Sequence[Row],
    *,
    bucket_multiple: int = 1,
    token_multiple: int = 1,
    is_rectangular: bool = False,
) -> Batch:
    """Lay out a non-empty batch.

    ``bucket_multiple`` rounds lengths up so that fewer, masked buckets form; ``token_multiple``
    appends tokens that belong to no row, so that fewer distinct shapes occur; 1 switches them off.
    ``is_rectangular`` gives groups of several segments a rectangle, unless most of it would be
    padding. All trade arithmetic for fewer kernels.
    """
    order = sorted(range(len(rows)), key=lambda i: _sort_key(rows[i]))
    layout = _RowLayout([rows[i] for i in order], token_multiple)
    groups = tuple(_groups(layout, bucket_multiple, is_rectangular=is_rectangular))
    return Batch(
        ids=_long([id_ for row in layout.rows for id_ in row.ids]),
        type_ids=_long([id_ for row in layout.rows for id_ in row.type_ids]),
        positions=_tensor(np.concatenate([np.arange(n) for n in layout.real_lengths])),
        sources=_tensor(layout.sources()),
        real_tokens=_tensor(np.flatnonzero(layout.is_real)),
        unbucket=_tensor(_unbucket(groups, layout.total)),
        groups=groups,
        order=tuple(order),
        starts=tuple(layout.real_starts.tolist()),
    )


class _RowLayout:
    """Lengths and offsets of sorted rows."""

    def __init__(self, rows: list[Row], token_multiple: int) -> None:
        self.rows = rows
        self.real_lengths = np.array([len(row.ids) for row in rows])
        self.prompt_lengths = np.array([row.adapter.prompt_length for row in rows])
        self.lengths = self.real_lengths + self.prompt_lengths
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.real_starts = np.concatenate([[0], np.cumsum(self.real_lengths)])
        self.used = int(self.starts[-1])
        self.total = -(-self.used // token_multiple) * token_multiple
        self.is_real = self._is_real()

    def _is_real(self) -> NDArray[np.bool_]:
        is_real = np.ones(self.total, dtype=bool)
        is_real[self.used :] = False
        for start, length in zip(self.starts, self.prompt_lengths, strict=False):
            is_real[start : start + length] = False
        return is_real

    def sources(self) -> _Index:
        """Index real tokens first, then each segment's prompt vectors; the tail repeats 0."""
        sources = np.zeros(self.total, dtype=np.int64)
        sources[self.is_real] = np.arange(self.real_starts[-1])
        prompt_start = int(self.real_starts[-1])
        for _, indices in groupby(range(len(self.rows)), key=lambda i: id(self.rows[i].adapter)):
            for i in (segment := list(indices)):
                first, length = self.starts[i], self.prompt_lengths[i]
                sources[first : first + length] = prompt_start + np.arange(length)
            prompt_start += int(self.prompt_lengths[segment[0]])
        return sources


def _sort_key(row: Row) -> tuple[int, int, int]:
    return hash(row.adapter.structure), id(row.adapter), len(row.ids)


def _groups(layout: _RowLayout, bucket_multiple: int, *, is_rectangular: bool) -> list[Group]:
    rows = layout.rows
    runs = groupby(range(len(rows)), key=lambda i: rows[i].adapter.structure)
    return [
        _group(layout, list(indices), bucket_multiple, is_rectangular=is_rectangular)
        for _, indices in runs
    ]


def _group(
    layout: _RowLayout, indices: list[int], bucket_multiple: int, *, is_rectangular: bool
) -> Group:
    first, last = indices[0], indices[-1] + 1
    lengths = layout.lengths[first:last]
    tail = layout.total - layout.used if last == len(layout.rows) else 0
    whole = np.append(lengths, tail) if tail else lengths
    segments = _segments(layout, indices, tail)
    counts = [part.rows.stop - part.rows.start for part in segments]
    counts[-1] += bool(tail)
    is_rectangular &= len(segments) > 1
    return Group(
        structure=layout.rows[first].adapter.structure,
        segments=segments,
        rows=slice(first, last),
        tokens=slice(segments[0].tokens.start, segments[-1].tokens.stop),
        row_of_token=_tensor(np.repeat(np.arange(len(whole)), whole)),
        row_lengths=_tensor(whole).unsqueeze(1),
        segment_of_row=_tensor(np.repeat(np.arange(len(segments)), counts)),
        buckets=_buckets(layout.starts[first:last], lengths, bucket_multiple),
        rectangle=_rectangle(whole) if is_rectangular else None,
    )


def _rectangle(lengths: _Index) -> Rectangle | None:
    """Lay out rows of these lengths; None if it had too many places for its tokens."""
    rows, length, total = len(lengths), int(lengths.max()), int(lengths.sum())
    if rows * length > _MOST_PLACES * total:
        return None
    bucket = _bucket(np.arange(rows), np.cumsum(lengths) - lengths, lengths)
    is_there = np.arange(length) < lengths[:, None]
    return Rectangle(
        tokens=bucket.tokens, places=_tensor(np.flatnonzero(is_there)), length=bucket.length
    )


def _segments(layout: _RowLayout, indices: list[int], tail: int) -> tuple[Segment, ...]:
    runs = groupby(indices, key=lambda i: id(layout.rows[i].adapter))
    spans = [(run[0], run[-1] + 1) for run in (list(indices) for _, indices in runs)]
    end = spans[-1][1]
    return tuple(
        Segment(
            adapter=layout.rows[first].adapter,
            rows=slice(first, last),
            tokens=slice(
                int(layout.starts[first]), int(layout.starts[last]) + (tail if last == end else 0)
            ),
            real_tokens=slice(int(layout.real_starts[first]), int(layout.real_starts[last])),
        )
        for first, last in spans
    )


def _buckets(starts: _Index, lengths: _Index, multiple: int) -> tuple[Bucket, ...]:
    rounded = -(-lengths // multiple) * multiple
    return tuple(
        _bucket(np.flatnonzero(rounded == length), starts, lengths) for length in np.unique(rounded)
    )


def _bucket(rows: _Index, starts: _Index, lengths: _Index) -> Bucket:
    length = int(lengths[rows].max())
    places = np.arange(length)
    is_there = places < lengths[rows, None]
    tokens = starts[rows, None] + np.minimum(places, lengths[rows, None] - 1)
    mask = None
    if not is_there.all():
        hidden = np.where(is_there, np.float32(0), np.float32(-np.inf))
        mask = torch.from_numpy(hidden)[:, None, None, :]
    return Bucket(rows=_tensor(rows), tokens=_tensor(tokens.ravel()), length=length, mask=mask)


def _unbucket(groups: tuple[Group, ...], total: int) -> _Index:
    """Invert the concatenation of all buckets' tokens; the tail takes the first output."""
    laid = np.concatenate([bucket.tokens.numpy() for group in groups for bucket in group.buckets])
    places = np.zeros(total, dtype=np.int64)
    places[laid] = np.arange(len(laid))  # a padded place repeats a token and has its output
    return places


def _long(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _tensor(values: _Index) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
