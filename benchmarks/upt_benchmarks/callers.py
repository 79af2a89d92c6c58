"""Callers of a server that is soaked, who judge every answer they get."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from time import monotonic

from prometheus_client.parser import text_string_to_metric_families

from upt_benchmarks.soaked import ALIAS, FLAWED, KILLED, Soaked
from upt_server.client import AsyncClient
from upt_server.results import Prediction
from upt_zoo.errors import Corrupt, Overloaded, Unavailable, UptError
from upt_zoo.references import Reference

_Asked = Sequence[tuple[Reference, str]]
_PAUSE_S = 0.15


class Callers:
    """Ask for random inputs; ``outcomes`` counts inputs by how they ended, ``faults`` says what
    should not have been."""

    def __init__(self, soaked: Soaked, client: AsyncClient, source: random.Random) -> None:
        self._soaked, self._client, self._random = soaked, client, source
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self._unexplained = 0

    async def greet(self) -> None:
        """Ask once by the names that the metrics are to know before anything happens."""
        for reference in (Reference(name=FLAWED), Reference(name=KILLED)):
            await self._client.predict(str(reference), self._soaked.texts[0])
        self.outcomes["answered"] += 1  # the other is the killed clients', who are not counted

    async def ask_until(self, ends_at_s: float) -> None:
        """Ask one call after the other."""
        while monotonic() < ends_at_s:
            await asyncio.sleep(self._random.expovariate(1 / _PAUSE_S))
            await self._call()

    def check_counts(self) -> None:
        """Hold the server's counts of inputs to the callers' own.

        A call that its caller left may have ended in any way, or never have come in.
        """
        counted = self._counted()
        unsure = self.outcomes["left"] + self.outcomes["TimeoutError"]
        answered, total = self.outcomes["answered"], self.outcomes.total()
        if not answered <= counted["OK"] <= answered + unsure:
            self.faults.append(f"{counted['OK']} inputs answered, {answered} answers received")
        if not total - unsure <= counted.total() <= total:
            self.faults.append(f"{counted.total()} inputs counted, {total} sent")
        if self._unexplained > self._soaked.runner.lonely_raises:
            self.faults.append(f"{self._unexplained} calls were INTERNAL without a reason")

    def _counted(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for family in text_string_to_metric_families(self._soaked.metrics.text().decode()):
            for sample in family.samples:
                if sample.name == "upt_requests_total" and sample.labels["adapter"] != KILLED:
                    counted[sample.labels["code"]] += int(sample.value)
        return counted

    async def _call(self) -> None:
        asked = [self._any_input() for _ in range(self._random.choice((1, 1, 1, 2, 4)))]
        # some are in a hurry, and some leave whatever is said
        deadline_s = self._random.choice((0.02, 0.2, 1.0, 5.0, 30.0))
        leaves_after_s = self._random.uniform(0, 0.2) if self._random.random() < 0.2 else None
        started_s = monotonic()
        call = self._client.predict_many([(str(reference), [text]) for reference, text in asked])
        try:
            async with asyncio.timeout(leaves_after_s) as leaving:
                prediction = await asyncio.wait_for(call, deadline_s)
        except (Overloaded, Unavailable, TimeoutError) as error:
            self.outcomes["left" if leaving.expired() else type(error).__name__] += len(asked)
        except UptError as error:
            self.outcomes[type(error).__name__] += len(asked)
            self._judge_error(error, asked)
        else:
            self.outcomes["answered"] += len(asked)
            self._judge(prediction, asked, started_s)

    def _judge(self, prediction: Prediction, asked: _Asked, started_s: float) -> None:
        if len(prediction.outputs) != len(asked):
            self.faults.append(f"{len(prediction.outputs)} outputs for {len(asked)} inputs")
            return
        for output, (reference, text) in zip(prediction.outputs, asked, strict=True):
            if text == self._soaked.unlucky:
                self.faults.append("a text that cannot be computed was answered")
            elif fault := self._soaked.truth.fault_in(output, reference, text, started_s):
                self.faults.append(fault)

    def _judge_error(self, error: UptError, asked: _Asked) -> None:
        if type(error) is UptError:  # INTERNAL
            self._unexplained += all(text != self._soaked.unlucky for _, text in asked)
        elif not isinstance(error, Corrupt) or all(each.name != FLAWED for each, _ in asked):
            self.faults.append(f"{type(error).__name__}: {error}")

    def _any_input(self) -> tuple[Reference, str]:
        is_unlucky = self._random.random() < 0.01
        text = self._soaked.unlucky if is_unlucky else self._random.choice(self._soaked.texts)
        if self._random.random() < 0.05:
            return Reference(name=FLAWED), text
        stored = self._random.choice(self._soaked.adapters)
        references = (
            Reference(name=stored.name, tag=ALIAS),
            Reference(name=stored.name, tag=stored.version),
            Reference(name=stored.name, digest=stored.digest),
            Reference(name=stored.name),
        )
        return self._random.choice(references), text
