"""What befalls a server that is soaked, each at random times."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress

from upt_benchmarks import faults
from upt_benchmarks.soaked import ALIAS, FLAWED, KILLED, Soaked, publish_random_version
from upt_zoo.errors import Overloaded, Unavailable
from upt_zoo.local import tags
from upt_zoo.references import Reference

_Mishap = Callable[[], Coroutine[object, object, None]]


class Mishaps:
    """Lets things happen until it is cancelled; ``counts`` says how often, by name."""

    def __init__(self, soaked: Soaked, target: str, source: random.Random) -> None:
        self._soaked, self._target, self._random = soaked, target, source
        self._writing = asyncio.Lock()  # whoever writes on purpose does not meet the full disk
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    async def happen(self) -> None:
        """Let each happen once in so many seconds, on average."""
        async with faults.hanging_remote() as remote, asyncio.TaskGroup() as tasks:

            async def pull() -> None:
                await faults.pull_from(remote, self._soaked.home, self._random.uniform(1, 5))

            every_s: dict[str, tuple[_Mishap, float]] = {
                "load": (self._load, 1),
                "runner raises": (self._raise, 2),
                "pin and unload": (self._pin_and_unload, 3),
                "alias moves": (self._move_alias, 4),
                "damaged adapter": (self._damage, 5),
                "full disk": (self._fill_disk, 8),
                "runner stalls": (self._stall, 10),
                "client killed": (self._kill_client, 15),
                "hanging remote": (pull, 20),
            }
            for name, (mishap, seconds) in every_s.items():
                tasks.create_task(self._repeat(name, mishap, seconds))

    async def _repeat(self, name: str, mishap: _Mishap, every_s: float) -> None:
        while True:
            await asyncio.sleep(min(self._random.expovariate(1 / every_s), 3 * every_s))
            await mishap()
            self.counts[name] += 1

    async def _load(self) -> None:
        await _or_refused(self._soaked.engine.lifecycle.load(self._any_version()))

    async def _pin_and_unload(self) -> None:
        reference = self._any_version()
        await _or_refused(self._soaked.engine.lifecycle.pin(reference))
        try:
            await asyncio.sleep(self._random.uniform(0, 2))
        finally:
            await self._soaked.engine.lifecycle.unload(reference)

    async def _move_alias(self) -> None:
        stored, store = self._random.choice(self._soaked.adapters), self._soaked.store
        alias = Reference(name=stored.name, tag=ALIAS)
        target = Reference(name=stored.name, tag=stored.version)
        async with self._writing:
            self._soaked.truth.moved(alias, stored.digest)  # before a call can be led there
            await asyncio.to_thread(tags.move_alias, store, target, ALIAS)

    async def _damage(self) -> None:
        async with self._writing:
            await self._soaked.engine.lifecycle.unload(Reference(name=FLAWED))
            with faults.damaged(self._soaked.store, self._soaked.flawed):
                await asyncio.sleep(self._random.uniform(0, 1))

    async def _fill_disk(self) -> None:
        async with self._writing:
            with faults.full_disk():
                try:
                    await asyncio.to_thread(self._publish)
                    self.faults.append("a full disk took an adapter")
                except OSError:
                    await asyncio.sleep(self._random.uniform(0, 1))

    def _publish(self) -> None:
        spec = self._soaked.flawed.spec
        publish_random_version(self._soaked.store, spec, version="9.9.9", seed=9)

    async def _kill_client(self) -> None:
        reference = Reference(name=KILLED)
        await faults.ask_until_killed(self._target, reference, self._random.uniform(0.1, 1))

    async def _raise(self) -> None:
        self._soaked.runner.raise_next()

    async def _stall(self) -> None:
        self._soaked.runner.stall_next(self._random.uniform(0.2, 3))

    def _any_version(self) -> Reference:
        stored = self._random.choice(self._soaked.adapters)
        return Reference(name=stored.name, tag=stored.version)


async def _or_refused(done: Awaitable[object]) -> None:
    with suppress(Overloaded, Unavailable):
        await done
