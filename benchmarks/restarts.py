"""A server is killed again and again while callers with retries ask it: nothing may be lost.

    python benchmarks/restarts.py [--kills 5] [--threads 8] [--names 8] [--backbone DIR]
                                  [--runner auto] [--seed 0]

``upt-server run --warm-start`` gets SIGKILL every few seconds and is started again on the same
port. The callers' client has ``retry_for_s``. Every call must be answered, by the digest that its
reference means and as the same text alone; after a last kill the adapters that were asked, and only
those, must be in memory before anybody asks. Exit code 1 where anything of this fails.

A line for people goes to stderr, JSON to stdout.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from upt_benchmarks.machine import this_machine
from upt_benchmarks.restarts import KilledServer, Persistent, ask_through_kills, warm_faults
from upt_benchmarks.served import mixed_texts, named_specs, publish_random
from upt_benchmarks.truth import Truth
from upt_server.precision import RUNNERS
from upt_server.runner_choice import load_runner
from upt_zoo.backbone import EMBEDDED_HUB_ID, resolve_backbone
from upt_zoo.local.store import Store
from upt_zoo.references import Reference
from upt_zoo.tokenization import Tokenizer

_TEXTS = 12


def main() -> int:
    """Kill, ask, print; 1 where anything was wrong."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="upt-restarts-") as folder:
        result = _run(Path(folder), arguments)
    print(json.dumps({"machine": asdict(this_machine()), **result}, indent=2))
    said = {name: value for name, value in result.items() if name != "faults"}
    faults = result["faults"]
    assert isinstance(faults, list)
    print(f"{said}, {len(faults)} things wrong", file=sys.stderr)
    return 1 if faults else 0


def _run(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    backbone, store = resolve_backbone(arguments.backbone), Store(folder / "home")
    names = publish_random(store.root, named_specs(backbone, arguments.names))
    asked = [Reference(name=name) for name in names[: max(1, len(names) // 2)]]
    adapters, texts, truth = (
        [store.resolve(name) for name in asked],
        mixed_texts()[:_TEXTS],
        Truth(),
    )
    runner = load_runner(backbone, "exact", wanted=arguments.runner, threads=2, cache=None)
    tokenizer = Tokenizer(backbone.tokenizer_file)
    truth.learn(store, adapters, texts, runner=runner, tokenizer=tokenizer)
    for reference, stored in zip(asked, adapters, strict=True):
        truth.means(reference, stored.digest)
    options = {
        "--home": store.root,
        "--warm-start": folder / "working-set.json",
        "--backbone": arguments.backbone,
        "--runner": arguments.runner,
    }
    with KilledServer([str(word) for pair in options.items() for word in pair]) as server:
        callers = [
            Persistent(
                target=server.target,
                truth=truth,
                asked=[(reference, text) for reference in asked for text in texts],
                source=random.Random(arguments.seed + number),
            )
            for number in range(arguments.threads)
        ]
        source = random.Random(arguments.seed - 1)
        result = ask_through_kills(server, callers, arguments.kills, source)
        faults = result["faults"]
        assert isinstance(faults, list)
        faults += warm_faults(server, {reference.name for reference in asked})
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Kill a server under load, again and again.")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--names", type=int, default=8, help="of adapters; half of them are asked")
    parser.add_argument("--backbone", default=EMBEDDED_HUB_ID)
    parser.add_argument("--runner", choices=["auto", *RUNNERS["exact"]], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
