"""How fast does training go? Our loop beside ``adapters`` with transformers' Trainer, and full.

    python benchmarks/training_speed.py                 # about four minutes
    python benchmarks/training_speed.py --json --out result.json
    python benchmarks/training_speed.py --no-peers      # beside full fine-tuning alone

All take steps of 32 rows over the same real rows of SST-2 and RTE (from ``UPT_DATA_DIR``), on
MiniLM, with the same number of threads and dropout, in turn and in an order that changes. ``ours``
trains UniPELT+Prompt by ``upt-train``'s loop, ``full`` the whole backbone by the same loop.
``adapters`` trains the same components by AdapterHub's AdapterTrainer with rows of like lengths
together (``group_by_length``), as our loop does; ``adapters_unsorted`` leaves the rows in random
order, as that Trainer does unless it is told. Precision bf16 is autocast there; here the frozen
backbone is cast once. A ratio is the other's time / the time of ``ours``, above 1 ours is faster:
a median of the rounds' ratios, with its 95 % interval from order statistics (all rounds where they
are few).
"""

import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")  # as upt-train, before torch

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from upt_benchmarks.lessons import DTYPES, lesson_of, mean_tokens, our_loop, spread_batches
from upt_benchmarks.machine import this_machine
from upt_benchmarks.peers import Peer, add_peers_dir
from upt_benchmarks.speeds import OURS, Speed, as_table, speeds_of
from upt_benchmarks.timing import Timed, measure_rounds
from upt_benchmarks.workloads import UNION, adapter_spec
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.nn.devices import is_bf16_fast
from upt_zoo.tokenization import Tokenizer

BATCHES = {"sst2": 8, "rte": 4}  # a turn: about as long in both


def main() -> int:
    """Measure and print."""
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    backbone = resolve_backbone()
    versions: dict[str, str] = {}
    speeds = [
        speed
        for task in arguments.task or BATCHES
        for speed in _measured(task, backbone, arguments, versions)
    ]
    machine = this_machine()
    result = {
        "machine": asdict(machine),
        "peer": versions,
        "threads": arguments.threads,
        "speeds": [{**asdict(speed), "verdict": speed.verdict} for speed in speeds],
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2) if arguments.json else as_table(speeds, machine, versions))
    return 0


def _measured(
    task: str, backbone: Backbone, arguments: argparse.Namespace, versions: dict[str, str]
) -> Iterator[Speed]:
    """Measure all ways on a task in turn."""
    spec = adapter_spec(UNION, backbone.identity)
    tokenizer = Tokenizer(backbone.tokenizer_file)
    features = spread_batches(
        task, spec, tokenizer, folder=arguments.data, batches=arguments.batches or BATCHES[task]
    )
    with ExitStack() as stack:
        ways: dict[str, Timed] = {}
        for precision in arguments.precision or _precisions():
            ways[f"{precision}/{OURS}"] = our_loop("unipelt_prompt", precision, backbone, features)
            ways[f"{precision}/full"] = our_loop("full", precision, backbone, features)
            for who in () if arguments.no_peers else ("adapters", "adapters_unsorted"):
                lesson = lesson_of(
                    backbone,
                    features,
                    bf16=precision == "bf16",
                    is_grouped=who == "adapters",
                    threads=arguments.threads,
                )
                peer = stack.enter_context(Peer("adapterhub", arguments.peers_dir, lesson))
                versions |= peer.versions
                ways[f"{precision}/{who}"] = peer
        told = {name: _told(f"{task} {name}", way) for name, way in ways.items()}
        rounds = measure_rounds(told, told, rounds=arguments.rounds, budget_s=0, warm_ups=1)
    yield from speeds_of(task, rounds, rows=len(features), mean_tokens=mean_tokens(features))


def _told(name: str, way: Timed) -> Timed:
    """Say on standard error how long each turn took."""

    def timed() -> float:
        ms = way()
        print(f"{name} {ms / 1000:.2f} s", file=sys.stderr, flush=True)
        return ms

    return timed


def _precisions() -> list[str]:
    return [name for name in DTYPES if name == "fp32" or is_bf16_fast()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the speed of training.")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON there too")
    parser.add_argument("--rounds", type=int, default=4, help="turns of every way")
    parser.add_argument("--batches", type=int, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=2, help="of every way")
    parser.add_argument("--task", action="append", choices=list(BATCHES), help="one of them only")
    parser.add_argument("--precision", action="append", choices=list(DTYPES), help="this one only")
    parser.add_argument("--no-peers", action="store_true", help="without AdapterHub's library")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("UPT_DATA_DIR"),
        metavar="DIR",
        help="of the tasks' rows; UPT_DATA_DIR unless given, else the hub",
    )
    add_peers_dir(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
