"""Reads gates for callers who ask for them: a second forward pass beside the runner's.

It is torch's, in fp32 on the CPU, whatever the runner is: the native kernel does not give gates.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from upt_server.results import Gates
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import Encoder, load_encoder
from upt_zoo.nn.gates import mean_gates
from upt_zoo.nn.packing import Row
from upt_zoo.tokenization import TokenRow


class GateReader:
    """Reads one input at a time, on a thread of its own; the encoder is loaded when first asked."""

    def __init__(self, backbone: Backbone, store: Store) -> None:
        self._backbone, self._store = backbone, store
        self._encoder: Encoder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upt-gates")

    async def read(self, stored: StoredAdapter, rows: Sequence[TokenRow]) -> list[Gates]:
        """Return each layer's gates, averaged over an input's rows.

        Raises:
            UptError: as ``Store.load`` says.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._read, stored, rows
        )

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _read(self, stored: StoredAdapter, rows: Sequence[TokenRow]) -> list[Gates]:
        if self._encoder is None:
            self._encoder = load_encoder(self._backbone)
        spec, arrays = self._store.load(stored)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        adapter = prepare(spec, tensors, dtype=torch.float32)
        asked = [Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter) for row in rows]
        return list(mean_gates(self._encoder, spec, asked))
