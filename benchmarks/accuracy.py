"""What precision costs: dev metrics of the catalogue's adapters by several runners.

    UPT_DATA_DIR=... python benchmarks/accuracy.py [--only 'c*'] [--json]

Prints each adapter's deciding metric on its first dev file, in percent, by runner; in brackets how
many labels or spans differ from those of the first runner; and the mean change of the metrics.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch

from upt_benchmarks.machine import this_machine
from upt_server.precision import RUNNERS
from upt_server.runner import Runner
from upt_server.runner_choice import load_runner
from upt_training.data import read_split, splits_in
from upt_training.metrics import score
from upt_zoo.answers import Answer, SpanAnswer, ValueAnswer, answer
from upt_zoo.backbone import resolve_backbone
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec
from upt_zoo.tasks import find_task
from upt_zoo.tensors import Array
from upt_zoo.tokenization import Tokenizer

_BATCH = 32


def main() -> int:
    """Measure and print."""
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    backbone = resolve_backbone()
    tokenizer = Tokenizer(backbone.tokenizer_file)
    runners = {
        name: load_runner(backbone, precision, wanted=name, threads=arguments.threads, cache=None)
        for precision, names in RUNNERS.items()
        for name in names
        if name in arguments.runners
    }
    metrics: dict[str, dict[str, float]] = {}
    changed: dict[str, dict[str, int]] = {}
    catalogue = embedded_catalogue()
    for reference in catalogue.list():
        if not fnmatchcase(reference.name, arguments.only):
            continue
        spec, tensors = catalogue.load(catalogue.resolve(Reference(name=reference.name)))
        task = find_task(spec.task.name)
        first_dev = splits_in(task, folder=arguments.data)[0]
        examples = read_split(task, first_dev, folder=arguments.data).examples
        texts = [example.texts for example in examples]
        answers = {
            name: _answers(runner, spec, tensors, tokenizer, texts)
            for name, runner in runners.items()
        }
        metrics[task.name] = {
            name: score(task, examples, given)[spec.task.metric] for name, given in answers.items()
        }
        exact = next(iter(answers.values()))
        changed[task.name] = {name: _changes(exact, given) for name, given in answers.items()}
        print(f"{task.name} {metrics[task.name]} {changed[task.name]}", file=sys.stderr, flush=True)
    _print(metrics, changed, list(runners), as_json=arguments.json)
    return 0


def _answers(
    runner: Runner,
    spec: AdapterSpec,
    tensors: dict[str, Array],
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, ...]],
) -> list[Answer]:
    adapter = runner.prepare(spec, {name: torch.from_numpy(t) for name, t in tensors.items()})
    encoded = [tokenizer.encode(spec.task, fields, kind=spec.head.kind) for fields in texts]
    rows = [
        Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter)
        for windows in encoded
        for row in windows
    ]
    logits = iter(
        [each for at in range(0, len(rows), _BATCH) for each in runner.run(rows[at : at + _BATCH])]
    )
    return [
        answer(spec, fields, windows, list(islice(logits, len(windows))))
        for fields, windows in zip(texts, encoded, strict=True)
    ]


def _changes(ones: Sequence[Answer], others: Sequence[Answer]) -> int:
    """Count other labels or spans; every regression differs in some digit and none is counted."""
    return sum(_shown(one) != _shown(other) for one, other in zip(ones, others, strict=True))


def _shown(given: Answer) -> object:
    if isinstance(given, ValueAnswer):
        return None
    if isinstance(given, SpanAnswer):
        return given.start, given.end
    return getattr(given, "label", None) or getattr(given, "labels", None)


def _print(
    metrics: dict[str, dict[str, float]],
    changed: dict[str, dict[str, int]],
    runners: Sequence[str],
    *,
    as_json: bool,
) -> None:
    mean_change = {
        name: round(fmean(row[name] - row[runners[0]] for row in metrics.values()), 3)
        for name in runners
    }
    if as_json:
        facts = {"machine": asdict(this_machine()), "metrics": metrics, "changed": changed}
        print(json.dumps({**facts, "mean_change": mean_change}, indent=2))
        return
    print(f"{'':<20}" + "".join(f"{name:>20}" for name in runners))
    for task, row in metrics.items():
        cells = (f"{row[name]:.2f} ({changed[task][name]})" for name in runners)
        print(f"{task:<20}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"{'mean change':<20}" + "".join(f"{mean_change[name]:>20}" for name in runners))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare runners by the dev metrics they reach.")
    parser.add_argument("--data", type=Path, default=os.environ.get("UPT_DATA_DIR"), metavar="DIR")
    parser.add_argument("--only", default="*", metavar="GLOB", help="adapters with such names")
    parser.add_argument(
        "--runners",
        nargs="+",
        choices=[name for names in RUNNERS.values() for name in names],
        default=["native-fp32", "native-bf16", "native-int8"],
        help="the first is compared with",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
