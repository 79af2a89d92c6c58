"""How fast are many adapters? Every variant beside the bare backbone in transformers.

    python benchmarks/engine.py                     # the whole table
    python benchmarks/engine.py --quick             # MiniLM's main cells, within ten minutes
    python benchmarks/engine.py --only '*.b32.f32.distinct*' --json --out result.json
    python benchmarks/engine.py --peers             # other libraries too, each in its environment

A figure is a median of ratios, time of transformers (sdpa, fp32, rows padded to the longest) /
time of the variant, all variants of a workload measured in turn: above 1 the variant is faster.
Its 95 % interval comes from order statistics. ``cells`` in the JSON maps names such as
``minilm.exact.b32.f32.distinct32`` to that ratio; a name ``a/b`` under ``direct`` is the time of
variant b / the time of variant a.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from upt_benchmarks.cells import Cell, planned
from upt_benchmarks.machine import this_machine
from upt_benchmarks.peers import PEERS, PeerFailed, add_peers_dir
from upt_benchmarks.report import Figure, as_json, as_table, figure_of
from upt_benchmarks.timing import Timed, measure_rounds
from upt_benchmarks.workbench import Settings, Skipped, Workbench
from upt_benchmarks.workloads import benchmark_backbone
from upt_server.precision import RUNNERS

_BUDGET_S, _QUICK_BUDGET_S = 90.0, 45.0  # a workload, for all ways but the headlines


def main() -> int:
    """Measure what was asked for and print it."""
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    cells = planned(quick=arguments.quick, with_peers=arguments.peers, only=arguments.only)
    if not cells:
        raise SystemExit(f"no cell is named like {arguments.only}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here; leave it out to measure the CPU")
    machine, about = this_machine(), _about(arguments)
    figures: list[Figure] = []
    skipped: dict[str, str] = {}

    def keep(cell: Cell, outcome: Figure | str) -> None:
        if isinstance(outcome, str):
            skipped[cell.name] = outcome
        else:
            figures.append(outcome)
        done = f"[{len(figures) + len(skipped)}/{len(cells)}] {cell.name}"
        shown = outcome if isinstance(outcome, str) else f"{outcome.ratio:.2f}"
        print(done, shown, file=sys.stderr, flush=True)
        if arguments.out is not None:
            result = as_json(figures, skipped, machine, about)
            arguments.out.write_text(json.dumps(result, indent=2) + "\n")

    _measure_all(cells, arguments, keep)
    if arguments.json:
        print(json.dumps(as_json(figures, skipped, machine, about), indent=2))
    else:
        print(as_table(figures, skipped, machine))
    return 0


def _measure_all(
    cells: Iterable[Cell],
    arguments: argparse.Namespace,
    keep: Callable[[Cell, Figure | str], None],
) -> None:
    settings = Settings(
        runners={"exact": arguments.exact_runner, "fast": arguments.fast_runner},
        threads=arguments.threads,
        device=arguments.device,
        peers_folder=arguments.peers_dir,
    )
    for name, group in groupby(cells, key=lambda cell: cell.backbone):
        with TemporaryDirectory() as folder:
            bench = Workbench(benchmark_backbone(name, Path(folder)), settings)
            for _, together in groupby(group, key=lambda cell: cell.group):
                for cell, outcome in _measured(bench, list(together), arguments):
                    keep(cell, outcome)


def _measured(
    bench: Workbench, cells: Sequence[Cell], arguments: argparse.Namespace
) -> Iterator[tuple[Cell, Figure | str]]:
    """Measure a group in one go; yield a figure for each cell, or the reason why there is none."""
    ways: dict[str, Timed] = {}
    missing: dict[str, str] = {}
    always = {
        cell.way(each)
        for cell in cells
        for each in (cell.reference, cell.variant)
        if cell.is_headline
    }
    with ExitStack() as stack:
        for cell in cells:
            for variant in (cell.reference, cell.variant):
                way = cell.way(variant)
                if way in ways or way in missing:
                    continue
                try:
                    ways[way] = bench.timed(cell, variant, stack)
                except (Skipped, PeerFailed) as reason:
                    missing[way] = str(reason)
        budget_s = _QUICK_BUDGET_S if arguments.quick else _BUDGET_S
        try:
            rounds = measure_rounds(
                ways, always & ways.keys(), rounds=arguments.pairs, budget_s=budget_s
            )
        except PeerFailed as reason:
            missing |= dict.fromkeys(ways, str(reason))
    for cell in cells:
        reference, variant = cell.way(cell.reference), cell.way(cell.variant)
        if reference in missing or variant in missing:
            yield cell, missing.get(variant, missing.get(reference, ""))
        else:
            yield cell, figure_of(cell, rounds.pairs(reference, variant), _maker(bench, cell))


def _maker(bench: Workbench, cell: Cell) -> str:
    if cell.variant in PEERS:
        return PEERS[cell.variant]
    is_baseline = cell.variant.startswith("hf") or cell.variant == "full_models"
    return "transformers" if is_baseline else bench.runner_name(cell)


def _about(arguments: argparse.Namespace) -> dict[str, object]:
    names = ("quick", "device", "threads", "pairs", "only", "peers", "exact_runner", "fast_runner")
    return {name: getattr(arguments, name) for name in names}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the engine beside transformers.")
    parser.add_argument("--quick", action="store_true", help="MiniLM's main cells, in ten minutes")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="but for peers")
    parser.add_argument("--threads", type=int, default=2, help="threads of every variant")
    parser.add_argument("--pairs", type=int, default=30, help="rounds of each headline cell")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cells with such names")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON, after every workload")
    parser.add_argument("--peers", action="store_true", help="other libraries too")
    add_peers_dir(parser)
    for precision, names in RUNNERS.items():
        parser.add_argument(
            f"--{precision}-runner",
            choices=["auto", *names],
            default="auto",
            help=f"who computes our variants of the precision {precision}",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
