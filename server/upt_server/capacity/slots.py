"""A simulated server's memory for adapters, by the rules of ``upt_server.residency``. Pure."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from upt_server.capacity.clock import Clock

_LOAD_THREADS = 2

Told = Callable[[bool], None]  # whether there was room


@dataclass(slots=True)
class _Slot:
    is_loaded: bool = False
    leases: int = 0
    waiting: list[Told] = field(default_factory=list)


class Slots:
    """At most ``size`` adapters, the least recently used that nobody leases out first."""

    def __init__(self, clock: Clock, size: int, load_s: float) -> None:
        self._clock, self._size, self._load_s = clock, size, load_s
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # last used last
        self._loaded = 0
        self._free_at_s = [0.0] * _LOAD_THREADS
        self.hits = self.loads = 0

    def fill(self, adapters: list[str]) -> None:
        """Put adapters in memory, each as the last used, as if they had been asked for."""
        for adapter in adapters:
            if self._loaded < self._size or self._evict():
                self._slots[adapter] = _Slot(is_loaded=True)
                self._loaded += 1

    def lease(self, adapter: str, told: Told) -> None:
        """Lease an adapter; ``told`` is called when it is in memory, or cannot be."""
        slot = self._slots.get(adapter)
        if slot is None:
            slot = self._slots[adapter] = _Slot()
            self._load(adapter, slot)
        else:
            self._slots.move_to_end(adapter)
            self.hits += 1
        slot.leases += 1
        if slot.is_loaded:
            told(True)
        else:
            slot.waiting.append(told)

    def give_back(self, adapter: str) -> None:
        """End a lease."""
        self._slots[adapter].leases -= 1

    def _load(self, adapter: str, slot: _Slot) -> None:
        self.loads += 1
        thread = self._free_at_s.index(min(self._free_at_s))
        ready_s = max(self._clock.now_s, self._free_at_s[thread]) + self._load_s
        self._free_at_s[thread] = ready_s
        self._clock.after(ready_s - self._clock.now_s, lambda: self._finish(adapter, slot))

    def _finish(self, adapter: str, slot: _Slot) -> None:
        has_room = self._loaded < self._size or self._evict()
        if has_room:
            slot.is_loaded = True
            self._loaded += 1
        else:
            del self._slots[adapter]
        waiting, slot.waiting = slot.waiting, []
        for told in waiting:
            told(has_room)

    def _evict(self) -> bool:
        for adapter, slot in self._slots.items():
            if slot.is_loaded and not slot.leases:
                del self._slots[adapter]
                self._loaded -= 1
                return True
        return False
