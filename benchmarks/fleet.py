"""A fleet of servers in simulated time: how it routes, fails and scales, and what it can do.

    python benchmarks/fleet.py [--costs COSTS.json] [--only routing,capacity_zipf] [--json]

Events are calls, batches, loads of adapters, failures and starts; a batch takes what
``benchmarks/costs.py`` measured. Admission, fair queue, pace and retries are the server's and the
client's own code. Nothing is timed: the same command prints the same tables on any machine, in a
few minutes. Prints Markdown; ``--json`` JSON. ``benchmarks/predictions.py`` holds the simulator to
real servers.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from upt_benchmarks.fleets.scenarios import Scenarios
from upt_benchmarks.fleets.tables import Row, as_markdown
from upt_server.capacity.costs import Costs, read_costs

TABLES = ("routing", "capacity_zipf", "capacity_uniform", "failures", "bursts", "scaling")


def main() -> int:
    """Simulate, print."""
    arguments = _parser().parse_args()
    tables = _simulated(read_costs(arguments.costs), arguments.only)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(tables, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(tables, indent=2))
    else:
        for name, rows in tables.items():
            print(f"### {name}\n\n{as_markdown(rows)}\n")
    return 0


def _simulated(costs: Costs, only: Sequence[str]) -> dict[str, list[Row]]:
    scenarios = Scenarios(costs)
    makers: Mapping[str, Callable[[], Iterable[Row]]] = {
        "routing": scenarios.routing,
        "capacity_zipf": partial(scenarios.capacity, "zipf"),
        "capacity_uniform": partial(scenarios.capacity, "uniform"),
        "failures": scenarios.failures,
        "bursts": scenarios.bursts,
        "scaling": scenarios.scaling,
    }
    tables: dict[str, list[Row]] = {}
    for name in only:
        print(name, file=sys.stderr, flush=True)
        tables[name] = list(makers[name]())
    return tables


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(TABLES):
        raise argparse.ArgumentTypeError(
            f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Simulate a fleet of servers.")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="of benchmarks/costs.py")
    parser.add_argument("--only", type=_names, default=TABLES, metavar="NAME,NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
