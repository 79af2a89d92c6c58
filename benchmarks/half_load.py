"""How long callers would wait at half load if a server cost nothing: p99 beside the median.

    python benchmarks/half_load.py [--tokens 64] [--token-us 200] [--calls 40000]

No server runs: it is the simulator of ``upt-server plan`` in which nothing takes time but batches,
each ``fixed + token · tokens`` seconds. Whoever waits is in the next batch. Texts come at random
times, half as many as full batches answer. What ``benchmarks/serving.py`` measures at half load
cannot be better than this.
"""

import argparse
import sys
from collections.abc import Sequence

from upt_server.capacity.costs import BatchCosts, Costs, read_costs
from upt_server.capacity.demand import cut, popularity
from upt_server.capacity.replica import Limits
from upt_server.capacity.trial import Outcome, try_server

_FIXED_MS = (0.2, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print."""
    arguments = _parser().parse_args(argv)
    print(f"{arguments.token_us:g} us a token; texts of {arguments.tokens} on average")
    print("a batch, ms  p50, ms  p99, ms  p99 / p50")
    for fixed_ms in _FIXED_MS:
        costs = only_batches(fixed_s=fixed_ms / 1000, token_s=arguments.token_us / 1e6)
        seen = at_half_load(costs, tokens=arguments.tokens, calls=arguments.calls)
        p50_ms, p99_ms = seen.p50_s * 1000, seen.p99_s * 1000
        print(f"{fixed_ms:11.1f}{p50_ms:9.1f}{p99_ms:9.1f}{p99_ms / p50_ms:11.1f}")
    return 0


def only_batches(*, fixed_s: float, token_s: float) -> Costs:
    """Return costs of a server in which nothing but batches takes time, always the same."""
    return read_costs().model_copy(
        update={
            "batch": BatchCosts(fixed_s=fixed_s, row_s=0, token_s=token_s, adapter_s=0),
            **dict.fromkeys(("alone_s", "together_s", "call_s", "handoff_s", "edge_s"), 0.0),
            "jitter_root_s": (0.0, 0.0),
        }
    )


def at_half_load(costs: Costs, *, tokens: int, calls: int) -> Outcome:
    """Ask a server for half as many texts as its full batches answer."""
    limits = Limits(slots=1)
    full = limits.budget.tokens
    full_s = costs.batch.seconds(rows=1, tokens=full, adapters=1)
    per_s = full / (tokens + costs.prompt_tokens) / full_s / 2
    asked = cut(popularity("uniform", 1), per_s, servers=1, kept=1)
    return try_server(costs, limits, asked, tokens=tokens, calls=calls)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Simulate what callers wait at half load.")
    parser.add_argument("--tokens", type=int, default=64, help="of a text, on average")
    parser.add_argument("--token-us", type=float, default=200, help="microseconds a token takes")
    parser.add_argument("--calls", type=int, default=40_000, help="of each line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
