"""How many servers a load takes: the fewest of which a simulated one keeps its promise. Pure."""

import math
from dataclasses import dataclass
from functools import cache

from upt_server.capacity.costs import APART_S, Costs
from upt_server.capacity.demand import Popularity, cut, popularity
from upt_server.capacity.replica import Limits
from upt_server.capacity.trial import Outcome, try_server
from upt_zoo.errors import InvalidInput

# affinity routing with spill-over gives no server more than this much of its fair share for long
_UNEVEN = 1.1
_SPARE = 1  # so that one may be away: a failure, a rolling update
_TRIAL_CALLS = 12_000
# of what full batches could do: nearer to it a few seconds of more calls double the waiting
_MOST_USED = 0.85
_EXACT_TO = 0.02  # of the number of servers
_ROUNDS = 8  # until a rate and the calls that come alone at it agree


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked: ``per_s`` calls of one text each, of ``tokens`` tokens on average."""

    adapters: int
    per_s: float
    p99_s: float
    tokens: int
    popularity: Popularity


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many servers, ``spare`` of them more than needed, and what to expect of them.

    ``memory_bytes`` is what each takes with ``held`` adapters in memory, ``store_bytes`` what all
    adapters take on disk. ``busiest`` is a server that gets a tenth more than its share of calls.
    """

    replicas: int
    spare: int
    held: int
    memory_bytes: int
    store_bytes: int
    busiest: Outcome

    def cost_per_million(self, per_s: float, cost_per_hour: float) -> float:
        """Return the cost of a million predictions where a server costs so much an hour."""
        return self.replicas * cost_per_hour / (per_s * 3600) * 1e6


def plan(load: Load, costs: Costs, limits: Limits) -> Plan:
    """Find the fewest servers that answer 99 % of the calls in time, none refused, and a spare.

    Raises:
        InvalidInput: no number of servers is enough, since one call alone takes longer.
    """
    shares = popularity(load.popularity, load.adapters)

    @cache
    def busiest_of(servers: int) -> Outcome:
        asked = cut(shares, load.per_s * _UNEVEN, servers=servers, kept=1)
        return try_server(costs, limits, asked, tokens=load.tokens, calls=_TRIAL_CALLS)

    def is_enough(servers: int) -> bool:
        seen = busiest_of(servers)
        most = most_per_s(load.tokens, costs, limits, hit_rate=seen.hit_rate)
        used = load.per_s * _UNEVEN / servers / most
        return seen.p99_s <= load.p99_s and used <= _MOST_USED

    most = most_per_s(load.tokens, costs, limits)
    fewest = math.ceil(load.per_s * _UNEVEN / (most * _MOST_USED))
    enough = fewest
    while not is_enough(enough):
        if load.per_s / enough < 1:
            raise InvalidInput(
                f"a server that is asked {load.per_s / enough:.2f} times a second still takes "
                f"{1000 * busiest_of(enough).p99_s:.0f} ms at p99, asked for were "
                f"{1000 * load.p99_s:.0f}; take more time, fewer tokens or more memory for adapters"
            )
        enough = 2 * enough
    too_few = max(fewest - 1, enough // 2 if enough > fewest else fewest - 1)
    while enough - too_few > max(1, int(enough * _EXACT_TO)):
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    held = min(limits.slots, len(cut(shares, load.per_s, servers=enough, kept=1).adapters))
    return Plan(
        replicas=enough + _SPARE,
        spare=_SPARE,
        held=held,
        store_bytes=load.adapters * costs.stored_bytes,
        memory_bytes=costs.server_bytes + held * costs.adapter_bytes,
        busiest=busiest_of(enough),
    )


def slots_of(costs: Costs, memory_bytes: int) -> int:
    """Return how many adapters fit into memory.

    Raises:
        InvalidInput: none does.
    """
    if memory_bytes < costs.adapter_bytes:
        raise InvalidInput(
            f"an adapter takes {costs.adapter_bytes} bytes, memory for adapters is {memory_bytes}; "
            f"give it more"
        )
    return memory_bytes // costs.adapter_bytes


def assumptions(load: Load, costs: Costs) -> tuple[str, ...]:
    """Say what a plan takes for granted, for people."""
    return (
        f"each server has a machine of its own like the measured one: {costs.machine}, "
        f"{costs.cores} cores, {costs.backbone} by {costs.runner}, {costs.date}",
        f"a call has one text, {load.tokens} tokens on average (log-normal, 3 to 256), and an "
        f"adapter of all components, {costs.prompt_tokens} prompt vectors among them",
        f"calls come at random times (Poisson), adapters by popularity ({load.popularity}); the "
        f"callers' own work counts, since it was measured on the same cores",
        "calls are routed by adapter with spill-over by load, so that no server gets more than "
        f"{_UNEVEN:g} of its share, and is asked for at most {_MOST_USED:g} of what it can do",
        f"{_SPARE} server more than needed, so that one may be away; no cost of router and network",
        "every server reads adapters from a disk as fast as the measured one, read once before",
    )


def most_per_s(tokens: int, costs: Costs, limits: Limits, *, hit_rate: float = 1.0) -> float:
    """Return the calls a second of a server whose batches are all full and of distinct adapters.

    They come at random times (Poisson), so that some come alone. The event loop, which turns to
    each call twice, may allow less.
    """
    row_tokens = tokens + costs.prompt_tokens
    rows = max(1, min(limits.budget.rows, limits.budget.tokens // row_tokens))
    batch_s = costs.batch.seconds(rows=rows, tokens=rows * row_tokens, adapters=rows)
    most = math.inf
    for _ in range(_ROUNDS):  # the more calls a second, the fewer of them come alone
        alone = math.exp(-most * APART_S)
        call_s = costs.call_s + alone * costs.alone_s + (1 - alone) * costs.together_s
        call_s += (1 - hit_rate) * costs.load_work_s
        most = rows / max(batch_s + costs.handoff_s + rows * call_s, 2 * rows * costs.call_s)
    return most
