"""Runs mixed batches on the compiled kernel (docs/decisions/005-native-kernel.md)."""

import ctypes
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from upt_server.native import library
from upt_server.native.adapter import AdapterTable, NativeAdapter, held_in
from upt_server.native.backbone import PackedBackbone
from upt_server.native.library import Number, floats, load_kernel
from upt_server.native.pages import LargePages
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec

_Ints = NDArray[np.int32]
_ALIGNMENT = 64  # bytes of a cache line


class NativeRunner:
    """Runs the kernel; ``number`` is what the backbone multiplies.

    Adapters are multiplied in fp32, or where AMX is and they are fp16, as bf16: in ``fp32`` as sums
    of it that stand for the same numbers.

    A row's answer is the same to the last bit whatever rows stand beside it. AMX multiplies where
    the machine has it.
    """

    def __init__(self, encoder: Encoder, number: Number, *, threads: int) -> None:
        self.name = f"native-{number}"
        self._backbone = PackedBackbone(encoder, number, is_tiled=library.has_tiles())
        self._kernel, self._threads = load_kernel(), threads
        self._pages = LargePages()
        self._tables: WeakKeyDictionary[PreparedAdapter, AdapterTable] = WeakKeyDictionary()
        self._workspace = np.empty(0, np.float32)

    def prepare(self, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> PreparedAdapter:
        """Fuse the adapter's tensors and lay out the kernel's table of them."""
        adapter = prepare(spec, tensors, dtype=held_in(spec, tensors))
        return NativeAdapter.of(adapter, self._pages)

    def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return each row's logits, in the rows' order, as ``upt_zoo.nn.heads`` forms them."""
        order = _order(rows)
        sorted_rows = [rows[index] for index in order]
        batch = _Batch(sorted_rows, [self._table(row.adapter) for row in sorted_rows])
        logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows)
        for index, answer in zip(order, self._answers(batch), strict=True):
            logits[index] = answer
        return logits

    def _table(self, adapter: PreparedAdapter) -> AdapterTable:
        if isinstance(adapter, NativeAdapter):
            return adapter.table
        table = self._tables.get(adapter)
        if table is None:
            table = self._tables[adapter] = AdapterTable(adapter, self._pages)
        return table

    def _answers(self, batch: "_Batch") -> list[NDArray[np.float32]]:
        """Return each row's logits, in the batch's order."""
        encoder = self._backbone.struct
        struct = batch.struct(self._backbone)
        shapes = batch.answer_shapes(encoder.hidden)
        sizes = [math.prod(shape) for shape in shapes]
        stops = list(accumulate(sizes))
        batch.answers[1:] = stops[:-1]
        logits = np.empty(stops[-1], np.float32)
        size = self._kernel.upt_workspace(encoder, struct, self._threads) + _ALIGNMENT
        if self._workspace.size < size:
            self._workspace = np.empty(size, np.float32)
        start = -self._workspace.ctypes.data % _ALIGNMENT // self._workspace.itemsize
        space = floats(self._workspace[start:])
        self._kernel.upt_answer(encoder, struct, floats(logits), space, self._threads)
        return [
            logits[stop - size : stop].reshape(shape)
            for stop, size, shape in zip(stops, sizes, shapes, strict=True)
        ]


def _order(rows: Sequence[Row]) -> list[int]:
    """Let rows of one adapter stand together, so that its tensors are read once.

    Those with the longest row come first: what threads take last is small, and none waits long.
    """
    longest: dict[int, int] = {}
    for row in rows:
        adapter = id(row.adapter)
        longest[adapter] = max(longest.get(adapter, 0), len(row.ids))

    def place(index: int) -> tuple[int, int, int]:
        row = rows[index]
        return -longest[id(row.adapter)], id(row.adapter), -len(row.ids)

    return sorted(range(len(rows)), key=place)


class _Batch:
    """Rows one behind the other, each row's prompt vectors in front of its real tokens."""

    def __init__(self, rows: Sequence[Row], tables: Sequence[AdapterTable]) -> None:
        self._rows, self._tables = rows, tables
        real = np.array([len(row.ids) for row in rows])
        prompts = np.array([table.prompt_length for table in tables])
        lengths = real + prompts
        self.starts: _Ints = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        self.reals: _Ints = (self.starts[:-1] + prompts).astype(np.int32)
        self.answers: NDArray[np.int64] = np.zeros(len(rows), np.int64)
        self._row_of_token: _Ints = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        place = np.arange(self.starts[-1], dtype=np.int32) - self.starts[self._row_of_token]
        is_prompt = place < prompts[self._row_of_token]
        self._ids: _Ints = np.full(len(place), -1, np.int32)
        self._ids[~is_prompt] = np.concatenate([row.ids for row in rows])
        self._types: _Ints = np.zeros(len(place), np.int32)
        self._types[~is_prompt] = np.concatenate([row.type_ids for row in rows])
        self._is_prompt, self._prompts, self._place = is_prompt, prompts, place
        self._most_keys = max(
            int(length) + table.prefix_length for length, table in zip(lengths, tables, strict=True)
        )

    def answer_shapes(self, hidden: int) -> list[tuple[int, ...]]:
        """Return the shape of each row's logits."""
        shapes: list[tuple[int, ...]] = []
        for row in self._rows:
            head = row.adapter.head
            outputs = head.out[0].shape[0] or hidden
            shapes.append((len(row.ids), outputs) if head.spec.is_per_token else (outputs,))
        return shapes

    def struct(self, backbone: PackedBackbone) -> library.Batch:
        """Return the kernel's view of the batch, valid as long as this object lives."""
        real_place = self._place - self._prompts[self._row_of_token] + backbone.first_position
        positions = np.where(self._is_prompt, self._place, real_place).astype(np.int32)
        self._positions = positions
        if not backbone.has_types:
            self._types[:] = 0
        for values, size in (
            (self._ids, backbone.words),
            (self._types, backbone.types),
            (positions[~self._is_prompt], backbone.positions),
        ):
            if values.max() >= size:  # the kernel reads where it is told to
                raise IndexError(f"{values.max()} is outside the backbone's tables, of {size} rows")
        self._pointers = (ctypes.POINTER(library.Adapter) * len(self._tables))(
            *(ctypes.pointer(table.struct) for table in self._tables)
        )
        sites = 0
        for table in self._tables:
            sites |= table.sites
        return library.Batch(
            adapters=self._pointers,
            starts=_ints(self.starts),
            row_of_token=_ints(self._row_of_token),
            ids=_ints(self._ids),
            positions=_ints(positions),
            types=_ints(self._types),
            reals=_ints(self.reals),
            answers=self.answers.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)),
            rows=len(self._tables),
            tokens=len(self._ids),
            columns=max(table.columns for table in self._tables),
            most_keys=self._most_keys,
            sites=sites,
        )


def _ints(array: _Ints) -> "ctypes._Pointer[ctypes.c_int32]":
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
