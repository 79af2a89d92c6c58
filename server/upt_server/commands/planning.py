"""``upt-server plan``: how many servers a load takes, how much memory, at what cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upt_zoo.options import AsJson, print_json
from upt_zoo.terminal import print_table

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_server.capacity.costs import Costs
    from upt_server.capacity.planning import Load, Plan


def plan(
    adapters: Annotated[int, typer.Option(min=1, help="Adapters that are asked for.")],
    rps: Annotated[float, typer.Option(min=0.001, help="Calls a second, of one text each.")],
    p99: Annotated[
        float, typer.Option(metavar="MS", min=0.1, help="Milliseconds for 99 of 100 calls.")
    ],
    tokens: Annotated[int, typer.Option(min=3, max=256, help="Tokens of a text, on average.")] = 40,
    popularity: Annotated[
        Literal["zipf", "uniform"],
        typer.Option(help="zipf: the k-th adapter in proportion to k ** -1.1. uniform: all alike."),
    ] = "zipf",
    adapter_memory_mb: Annotated[
        int, typer.Option(min=1, help="Memory for adapters of each server.")
    ] = 2048,
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a batch.")] = 2048,
    cost_per_hour: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, help="Of a machine like the measured one."),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="What serving costs on your machine.",
            show_default="as measured on upt's own",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how many servers a load takes, how much memory, and what a million answers cost."""
    from upt_server.capacity.costs import read_costs
    from upt_server.capacity.planning import Load, slots_of
    from upt_server.capacity.planning import plan as make_plan
    from upt_server.capacity.replica import Limits
    from upt_server.scheduling import Budget

    known = read_costs(costs)
    load = Load(
        adapters=adapters, per_s=rps, p99_s=p99 / 1000, tokens=tokens, popularity=popularity
    )
    limits = Limits(
        slots=slots_of(known, adapter_memory_mb * 2**20), budget=Budget(tokens=max_batch_tokens)
    )
    made = make_plan(load, known, limits)
    price = None if cost_per_hour is None else made.cost_per_million(rps, cost_per_hour)
    if as_json:
        print_json(_as_json(made, load, known, price))
    else:
        _print(made, load, known, price)


def _as_json(
    made: "Plan", load: "Load", known: "Costs", price: float | None
) -> "dict[str, JsonValue]":
    from upt_server.capacity.planning import assumptions

    seen = made.busiest
    return {
        "replicas": made.replicas,
        "spare": made.spare,
        "adapters_in_memory": made.held,
        "memory_bytes": made.memory_bytes,
        "total_memory_bytes": made.memory_bytes * made.replicas,
        "store_bytes": made.store_bytes,
        "cost_per_million": price,
        "busiest": {
            "per_s": round(seen.per_s, 2),
            "p50_ms": round(1000 * seen.p50_s, 1),
            "p99_ms": round(1000 * seen.p99_s, 1),
            "hit_rate": round(seen.hit_rate, 4),
            "loads_per_s": round(seen.loads_per_s, 2),
            "rows_a_batch": round(seen.rows_a_batch, 1),
        },
        "assumptions": [*assumptions(load, known)],
    }


def _print(made: "Plan", load: "Load", known: "Costs", price: float | None) -> None:
    from upt_server.capacity.planning import assumptions

    seen, gigabytes = made.busiest, 1e9
    rows = [
        ("replicas", f"{made.replicas:,}, {made.spare} of them spare"),
        (
            "memory",
            f"{made.memory_bytes / gigabytes:.1f} GB each, "
            f"{made.replicas * made.memory_bytes / gigabytes:,.1f} GB in all; "
            f"{made.held:,} adapters in each",
        ),
        ("disk", f"{made.store_bytes / gigabytes:,.1f} GB of adapters, for each to read from"),
        (
            "the busiest",
            f"{seen.per_s:.0f} calls/s, p50 {1000 * seen.p50_s:.0f} ms, "
            f"p99 {1000 * seen.p99_s:.0f} ms, {seen.rows_a_batch:.1f} rows a batch",
        ),
        (
            "adapters",
            f"{100 * seen.hit_rate:.1f} % of calls find theirs in memory, "
            f"{seen.loads_per_s:.1f} loads/s",
        ),
    ]
    if price is not None:
        rows.append(("a million answers", f"{price:.2f}"))
    print_table(None, rows)
    typer.echo("Assumed:")
    for line in assumptions(load, known):
        typer.echo(f"- {line}")
