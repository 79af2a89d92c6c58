"""What the server adds to the engine: 64 callers, 32 adapters, client and server on one machine.

    python benchmarks/serving.py [--seconds 15] [--precision exact] [--out FILE]

Prints JSON. ``engine`` is the runner alone on the same texts, tokenised, in batches of 32;
``closed_loop`` has 64 callers that ask again as soon as they are answered; ``half_load`` sends at
half of that rate at random times (Poisson); ``idle`` is one caller alone, and its overhead is what
the caller waited beyond the forward pass.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from upt_benchmarks.machine import this_machine
from upt_benchmarks.ours import runner_of
from upt_benchmarks.served import (
    mixed_texts,
    named_specs,
    percentiles,
    publish_random,
    running_server,
)
from upt_benchmarks.workloads import adapter_tensors
from upt_server.client import AsyncClient
from upt_server.precision import Precision
from upt_server.runner import Runner
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec
from upt_zoo.tokenization import Tokenizer

ADAPTERS, CALLERS, BATCH, THREADS = 32, 64, 32, 2


def main() -> int:
    """Measure, print."""
    arguments = _parser().parse_args()
    backbone = resolve_backbone()
    specs = named_specs(backbone, ADAPTERS)
    texts = mixed_texts()
    result: dict[str, object] = {
        "machine": asdict(this_machine()),
        "precision": arguments.precision,
        "engine": _engine(backbone, arguments.precision, specs, texts, arguments.seconds),
    }
    with tempfile.TemporaryDirectory(prefix="upt-serving-") as home:
        names = publish_random(Path(home), specs)
        options = ["--precision", arguments.precision, "--threads", str(THREADS)]
        with running_server(Path(home), [*options, "--preload", ",".join(names)]) as server:
            result |= asyncio.run(_load(server.target, names, texts, arguments.seconds))
    text = json.dumps(result, indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    print(text)
    return 0


def _engine(
    backbone: Backbone,
    precision: Precision,
    specs: Sequence[AdapterSpec],
    texts: Sequence[str],
    seconds: float,
) -> dict[str, object]:
    torch.set_num_threads(THREADS)
    runner: Runner = runner_of(backbone, precision, wanted="auto", threads=THREADS, device="cpu")
    tokenizer = Tokenizer(backbone.tokenizer_file)
    adapters = [runner.prepare(spec, adapter_tensors(spec, i)) for i, spec in enumerate(specs)]
    rows = []
    for spec, text, adapter in zip(specs, texts, adapters, strict=True):
        (encoded,) = tokenizer.encode(spec.task, (text,), kind="classification")
        rows.append(Row(ids=encoded.ids, type_ids=encoded.type_ids, adapter=adapter))
    runner.run(rows)
    started, batches = perf_counter(), 0
    while perf_counter() - started < seconds:
        runner.run(rows)
        batches += 1
    return {
        "runner": runner.name,
        "rows_per_s": round(batches * len(rows) / (perf_counter() - started), 1),
    }


async def _load(
    target: str, names: Sequence[str], texts: Sequence[str], seconds: float
) -> dict[str, object]:
    async with AsyncClient(target, timeout_s=60) as client:
        idle = await _idle(client, names, texts)
        await _closed_loop(client, names, texts, 2.0)  # warm
        rate, closed = await _closed_loop(client, names, texts, seconds)
        half = await _open_loop(client, names, texts, rate / 2, seconds)
    return {"idle": idle, "closed_loop": closed, "half_load": half}


async def _idle(
    client: AsyncClient, names: Sequence[str], texts: Sequence[str]
) -> dict[str, object]:
    beyond, waited = [], []
    for index in range(200):
        started = perf_counter()
        prediction = await client.predict_many(
            [(names[index % ADAPTERS], [texts[index % len(texts)]])]
        )
        took_ms = (perf_counter() - started) * 1000
        waited.append(took_ms)
        beyond.append(took_ms - prediction.timings.forward_ms)
    return {"p50_ms": round(median(waited), 2), "overhead_p50_ms": round(median(beyond[20:]), 2)}


async def _closed_loop(
    client: AsyncClient, names: Sequence[str], texts: Sequence[str], seconds: float
) -> tuple[float, dict[str, object]]:
    source, waited = random.Random(1), []
    started = perf_counter()

    async def ask_again() -> None:
        while perf_counter() - started < seconds:
            asked = perf_counter()
            await client.predict(source.choice(names), source.choice(texts))
            waited.append(perf_counter() - asked)

    await asyncio.gather(*(ask_again() for _ in range(CALLERS)))
    rate = len(waited) / (perf_counter() - started)
    return rate, {"callers": CALLERS, "rows_per_s": round(rate, 1), **percentiles(waited)}


async def _open_loop(
    client: AsyncClient,
    names: Sequence[str],
    texts: Sequence[str],
    rate: float,
    seconds: float,
) -> dict[str, object]:
    source, waited = random.Random(2), []

    async def ask() -> None:
        asked = perf_counter()
        await client.predict(source.choice(names), source.choice(texts))
        waited.append(perf_counter() - asked)

    started, calls, due = perf_counter(), set(), 0.0
    while due < seconds:
        due += source.expovariate(rate)
        await asyncio.sleep(max(0.0, started + due - perf_counter()))
        calls.add(asyncio.ensure_future(ask()))
    await asyncio.gather(*calls)
    return {"calls_per_s": round(rate, 1), **percentiles(waited)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the server beside its engine.")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--precision", choices=["exact", "fast"], default="exact")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
