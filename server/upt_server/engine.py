"""Text in, answer out: adapters, tokens, a batch, answers. Knows no protocol.

Whatever is slow leaves the event loop: loading, tokenising and answering on threads of their own,
computing on the runner's.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

from upt_server.batcher import Batcher, Job
from upt_server.gate import Gate
from upt_server.inputs import Input, Limits, at_input, check_sizes, order_texts
from upt_server.precision import Precision
from upt_server.residency import Lease, Residency
from upt_server.results import (
    AdapterDescription,
    AdapterIdentity,
    Output,
    Prediction,
    Timings,
)
from upt_zoo.answers import Logits, answer
from upt_zoo.errors import Corrupt, NotFound
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.tokenization import Tokenizer, TokenRow

logger = logging.getLogger(__name__)

_TEXT_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    """An input as token rows, with what its answer is formed from."""

    lease: Lease
    texts: tuple[str, ...]
    rows: list[TokenRow]

    def jobs(self) -> list[Job]:
        adapter = self.lease.prepared
        return [
            Job(
                row=Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter),
                adapter=self.lease.stored.digest,
            )
            for row in self.rows
        ]


class Engine:
    """Answers inputs of any adapters on one backbone."""

    def __init__(
        self,
        *,
        backbone_digest: str,
        precision: Precision,
        tokenizer: Tokenizer,
        residency: Residency,
        batcher: Batcher,
        limits: Limits,
    ) -> None:
        self._backbone_digest, self._precision = backbone_digest, precision
        self._tokenizer, self._residency, self._batcher = tokenizer, residency, batcher
        self.limits = limits
        self._threads = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="upt-text")
        self.gate = Gate()

    async def preload(self, references: Iterable[Reference]) -> None:
        """Load adapters and never evict them.

        Raises:
            UptError: as ``Residency.acquire`` says.
        """
        for reference in references:
            stored = await self._residency.pin(reference)
            logger.info("preloaded %s@%s", stored.reference, stored.digest)

    async def predict(
        self, inputs: Sequence[Input], *, timeout_s: float | None = None
    ) -> Prediction:
        """Answer one call: every input, or an error. A cancelled call frees all that it holds.

        Raises:
            TimeoutError: no answer within ``timeout_s`` or the server's own limit.
            Unavailable: the server starts or drains.
            UptError: as ``inputs``, ``Residency.acquire`` and ``Batcher.compute`` say; a note on
                the error names the input.
        """
        check_sizes(inputs, self.limits)
        limit_s = self.limits.timeout_s if timeout_s is None else timeout_s
        limit_s = min(limit_s, self.limits.timeout_s)
        with self.gate.passage(), ExitStack() as leases:
            try:
                async with asyncio.timeout(limit_s):
                    return await self._predict(inputs, leases)
            except TimeoutError:
                raise TimeoutError(f"no answer within {limit_s:.3f} s") from None

    async def describe(self, reference: Reference) -> AdapterDescription:
        """Describe an adapter of the store, in memory or not.

        Raises:
            UptError: as ``Resolver.resolve`` says.
        """
        stored = await self._residency.resolver.resolve(reference)
        is_resident = self._residency.is_resident(stored.digest)
        return AdapterDescription.of(stored, is_resident=is_resident)

    async def describe_all(self) -> tuple[AdapterDescription, ...]:
        """Describe every version in the store; damaged ones are logged and left out."""
        descriptions = []
        for reference in await self._residency.resolver.references():
            try:
                descriptions.append(await self.describe(reference))
            except (Corrupt, NotFound) as error:  # damaged, or removed meanwhile
                logger.warning("left out of the list: %s", error)
        return tuple(descriptions)

    async def close(self) -> None:
        """End all threads; no call may be inside any more."""
        await self._batcher.close()
        self._residency.close()
        self._threads.shutdown()

    async def _predict(self, inputs: Sequence[Input], leases: ExitStack) -> Prediction:
        loop = asyncio.get_running_loop()
        started = perf_counter()
        self._batcher.check_room(len(inputs))  # at least: what is refused shall cost little
        held = await self._lease(inputs, leases)
        loaded = perf_counter()
        encoded = await loop.run_in_executor(self._threads, self._encode, inputs, held)
        tokenized = perf_counter()
        jobs = [job for item in encoded for job in item.jobs()]
        computed = await self._batcher.compute(jobs)
        outputs = await loop.run_in_executor(self._threads, _answer, encoded, computed.logits)
        return Prediction(
            outputs=outputs,
            backbone_digest=self._backbone_digest,
            precision=self._precision,
            timings=Timings(
                load_ms=(loaded - started) * 1000,
                tokenize_ms=(tokenized - loaded) * 1000,
                queue_ms=computed.queue_s * 1000,
                forward_ms=computed.forward_s * 1000,
                total_ms=(perf_counter() - started) * 1000,
            ),
            batches=computed.batches,
        )

    async def _lease(self, inputs: Sequence[Input], leases: ExitStack) -> Mapping[Reference, Lease]:
        held: dict[Reference, Lease] = {}
        for index, item in enumerate(inputs):
            if item.adapter not in held:
                with at_input(index):
                    lease = await self._residency.acquire(item.adapter)
                held[item.adapter] = leases.enter_context(lease)
        return held

    def _encode(self, inputs: Sequence[Input], held: Mapping[Reference, Lease]) -> list[_Encoded]:
        encoded = []
        for index, item in enumerate(inputs):
            lease = held[item.adapter]
            spec = lease.stored.spec
            with at_input(index):
                texts = order_texts(spec.task, item)
            rows = self._tokenizer.encode(spec.task, texts, is_span=spec.head.kind == "span")
            encoded.append(_Encoded(lease=lease, texts=texts, rows=rows))
        return encoded


def _answer(encoded: Sequence[_Encoded], logits: Sequence[Logits]) -> tuple[Output, ...]:
    """Form the outputs; ``logits`` are those of all rows, input after input."""
    remaining = iter(logits)
    return tuple(_output(item, list(islice(remaining, len(item.rows)))) for item in encoded)


def _output(item: _Encoded, logits: Sequence[Logits]) -> Output:
    stored = item.lease.stored
    return Output(
        answer=answer(stored.spec, item.texts, item.rows, logits),
        labels=stored.spec.head.labels or (),
        adapter=AdapterIdentity.of(stored),
        task=stored.spec.task.name,
        tokens=sum(len(row.ids) for row in item.rows),
        is_truncated=any(row.is_truncated for row in item.rows),
        windows=len(item.rows),
        logits=() if stored.spec.head.kind == "span" else tuple(logits[0].tolist()),
    )
