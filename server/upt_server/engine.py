"""Text in, answer out: adapters, tokens, a batch, answers. Knows no protocol.

Whatever is slow leaves the event loop: loading, and tokenising and answering long calls, on threads
of their own, computing on the runner's.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from math import inf
from time import perf_counter

from upt_server.access.callers import Access
from upt_server.batcher import Batcher, Job
from upt_server.gate import Gate
from upt_server.gates import GateReader
from upt_server.inputs import Input, Limits, at_input, check_sizes
from upt_server.lifecycle import Lifecycle
from upt_server.off_loop import SHORT_INPUTS, off_loop
from upt_server.precision import Precision
from upt_server.residency import Lease, Residency
from upt_server.results import (
    AdapterDescription,
    EngineStatus,
    Gates,
    Prediction,
    Timings,
)
from upt_server.routes import Routes
from upt_server.telemetry.records import phase
from upt_server.texts import Encoded, encode, form_outputs
from upt_zoo.errors import Corrupt, InvalidInput, NotFound, UptError, WrongAnswer
from upt_zoo.references import Reference
from upt_zoo.tokenization import Tokenizer, TokenRow

logger = logging.getLogger(__name__)
_TEXT_THREADS = 2
_SHORT_CHARS = 2000  # with few inputs tokenised, and answered, on the event loop itself
_LISTED_AT_ONCE = 100  # a millisecond or two
_NO_TOKENS = TokenRow(ids=[], type_ids=[])


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
        gates: GateReader,
        limits: Limits,
        access: Access | None = None,
        routes: Routes | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        self._backbone_digest, self._precision = backbone_digest, precision
        self._tokenizer, self._residency, self._batcher = tokenizer, residency, batcher
        self._gates, self.limits = gates, limits
        self.access, self._routes = access or Access(), routes or Routes()
        self._weights = weights or {}
        self.lifecycle = Lifecycle(residency, self.access)
        self._threads = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="upt-text")
        self.gate = Gate()

    async def warn_of_missing(self) -> None:
        """Log what routes and weights name and the store has not; it may come later."""
        named = [
            (reference, f"calls that --route sends to {reference} fail")
            for reference in self._routes.references()
        ]
        named += [
            (Reference(name=name), f"--weight {name} has no effect") for name in self._weights
        ]
        for reference, effect in named:
            try:
                await self._residency.resolver.resolve(reference)
            except UptError as error:
                logger.warning("%s until the store has it: %s", effect, error)

    async def preload(self, references: Iterable[Reference]) -> None:
        """Load adapters and never evict them; what gives wrong answers is logged and not served.

        Raises:
            UptError: as ``Residency.acquire`` says.
        """
        for reference in references:
            try:
                stored = await self._residency.pin(reference)
            except WrongAnswer as error:
                logger.error("not served: %s", error)
            else:
                logger.info("preloaded %s@%s", stored.reference, stored.digest)

    def check_servable(self) -> None:
        """Check that not everything that was loaded gives wrong answers.

        Raises:
            WrongAnswer: there were adapters to load, and none of them can be served.
        """
        refused = self._residency.refused
        if refused and not self._residency.resident():
            raise WrongAnswer(f"nothing can be served: {next(iter(refused.values()))}")

    async def predict(
        self, inputs: Sequence[Input], *, timeout_s: float | None = None
    ) -> Prediction:
        """Answer one call: every input, or an error. A cancelled call frees all that it holds.

        Raises:
            Forbidden: the caller may not ask one of the adapters.
            Overloaded: the caller is over its quota, or as ``Batcher.compute`` says.
            TimeoutError: no answer within ``timeout_s`` or the server's own limit.
            Unavailable: the server starts or drains.
            UptError: as ``inputs``, ``Residency.acquire`` and ``Batcher.compute`` say; a note on
                the error names the input.
        """
        check_sizes(inputs, self.limits)
        inputs = self._admit(inputs)
        limit_s = self.limits.timeout_s if timeout_s is None else timeout_s
        limit_s = min(limit_s, self.limits.timeout_s)
        with self.gate.passage(), ExitStack() as leases:
            try:
                async with asyncio.timeout(limit_s) as limit:
                    return await self._predict(inputs, leases, limit.when() or inf)
            except TimeoutError:
                raise TimeoutError(f"no answer within {limit_s:.3f} s") from None

    async def describe(self, reference: Reference) -> AdapterDescription:
        """Describe an adapter of the store, in memory or not.

        Raises:
            Forbidden: the caller may not ask it.
            UptError: as ``Resolver.resolve`` says.
        """
        self.access.check_adapters([reference.name])
        with self.access.discreet():
            stored = await self._residency.resolver.resolve(reference)
        is_resident = self._residency.is_resident(stored.digest)
        return AdapterDescription.of(stored, is_resident=is_resident)

    async def describe_all(self) -> tuple[AdapterDescription, ...]:
        """Describe every version in the store that the caller may ask.

        Damaged ones are logged and left out.
        """
        descriptions = []
        for count, reference in enumerate(await self._residency.resolver.references()):
            if count % _LISTED_AT_ONCE == 0:
                await asyncio.sleep(0)  # what was listed before is known without waiting
            if not self.access.allows(reference.name):
                continue
            try:
                descriptions.append(await self.describe(reference))
            except (Corrupt, NotFound) as error:  # damaged, or removed meanwhile
                logger.warning("left out of the list: %s", error)
        return tuple(descriptions)

    async def warm(self, references: Iterable[Reference]) -> None:
        """Load what can be loaded of these adapters; the rest is logged."""
        for reference in references:
            try:
                await self._residency.load(reference)
            except UptError as error:
                logger.warning("not loaded again: %s", error)

    def resident(self) -> tuple[Reference, ...]:
        """Return what is in memory, the least recently used first."""
        return tuple(
            Reference(name=each.stored.name, tag=each.stored.version, digest=each.stored.digest)
            for each in self._residency.resident()
        )

    def is_refused(self, digest: str) -> bool:
        """Tell whether an adapter is not served because it gives wrong answers."""
        return digest in self._residency.refused

    def status(self) -> EngineStatus:
        """Say how the engine is at the moment."""
        return EngineStatus(
            state=self.gate.state,
            backbone_digest=self._backbone_digest,
            precision=self._precision,
            calls=self.gate.inside,
            queue_rows=self._batcher.queue_rows,
            adapter_bytes=self._residency.used_bytes,
            max_adapter_bytes=self._residency.limit_bytes,
        )

    async def close(self) -> None:
        """End all threads; no call may be inside any more."""
        await self._batcher.close()
        self._gates.close()
        self._residency.close()
        self._threads.shutdown()

    def _admit(self, inputs: Sequence[Input]) -> Sequence[Input]:
        """Let the caller ask what it may ask; return the inputs with routes applied."""
        self.access.count_call()
        self.access.check_adapters({item.adapter.name for item in inputs})
        return self._routes.apply(inputs, self.access.caller().request_key)

    async def _predict(
        self, inputs: Sequence[Input], leases: ExitStack, ends_at_s: float
    ) -> Prediction:
        loop, is_short = asyncio.get_running_loop(), _are_short(inputs)
        started = perf_counter()
        self._batcher.check_room(len(inputs))  # at least: what is refused shall cost little
        with phase("load"):
            held = await self._lease(inputs, leases)
        loaded = perf_counter()
        rows = self._empty_rows(inputs, held)
        self._batcher.check_admission(rows, ends_at_s - loop.time())
        with phase("tokenize"):
            encoded = await off_loop(
                partial(encode, self._tokenizer, inputs, held, self.limits.max_rows),
                is_short=is_short,
                threads=self._threads,
            )
        tokenized = perf_counter()
        self._check_gate_rows(encoded)
        tokens = sum(item.tokens for item in encoded)
        with self.access.place(tokens):
            self._batcher.check_room(tokens)  # before a job is made of each row
            jobs = self._jobs(encoded)
            computed = await self._batcher.compute(jobs, time_left_s=ends_at_s - loop.time())
        gates = await self._read_gates(encoded)
        outputs = await off_loop(
            partial(form_outputs, encoded, computed.logits, gates),
            is_short=is_short,
            threads=self._threads,
        )
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

    def _empty_rows(self, inputs: Sequence[Input], held: Mapping[Reference, Lease]) -> list[Job]:
        """Return the call's rows as far as they are known before texts are tokenised."""
        return self._jobs(
            Encoded(lease=held[item.adapter], texts=(), rows=[_NO_TOKENS], options=item.options)
            for item in inputs
        )

    def _jobs(self, encoded: Iterable[Encoded]) -> list[Job]:
        priority = self.access.caller().priority
        return [
            job
            for item in encoded
            for job in item.jobs(
                weight=self._weights.get(item.lease.stored.name, 1), priority=priority
            )
        ]

    async def _lease(self, inputs: Sequence[Input], leases: ExitStack) -> Mapping[Reference, Lease]:
        held: dict[Reference, Lease] = {}
        for index, item in enumerate(inputs):
            if item.adapter not in held:
                with at_input(index, item.path), self.access.discreet():
                    lease = await self._residency.acquire(item.adapter)
                held[item.adapter] = leases.enter_context(lease)
        return held

    def _check_gate_rows(self, encoded: Sequence[Encoded]) -> None:
        rows = sum(len(item.rows) for item in encoded if item.options.has_gates)
        if rows > self.limits.max_gate_rows:
            raise InvalidInput(
                f"the call asks for the gates of {rows} rows, expected {self.limits.max_gate_rows} "
                f"at most; ask for fewer inputs, or for shorter ones"
            )

    async def _read_gates(self, encoded: Sequence[Encoded]) -> dict[int, list[Gates]]:
        """Read the gates of the inputs that ask for them, by their index."""
        return {
            index: await self._gates.read(item.lease.stored, item.rows)
            for index, item in enumerate(encoded)
            if item.options.has_gates
        }


def _are_short(inputs: Sequence[Input]) -> bool:
    return len(inputs) <= SHORT_INPUTS and sum(item.chars for item in inputs) <= _SHORT_CHARS
