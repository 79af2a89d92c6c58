"""What the server adds to the engine: 64 callers, 32 adapters, client and server on one machine.

    UPT_DATA_DIR=... python benchmarks/serving.py [--seconds 15] [--precision exact] [--out FILE]
    python benchmarks/serving.py --peers            # other libraries' servers too

Prints JSON. The texts are rows of eight tasks; without ``--data`` they are drawn words, as long as
the engine's mixed workload. ``engine`` is the runner alone on them, tokenised, in batches of 32;
``closed_loop`` has 64 callers that ask again as soon as they are answered; ``half_load`` sends at
half of that rate at random times (Poisson); ``idle`` is one caller alone, and its overhead is what
the caller waited beyond the forward pass. ``side_by_side`` has the same 64 callers at this server
and at plain ``grpc.aio`` servers in turn, three times: the library ``adapters`` with 32 UniPELT
adapters with a prompt, one forward pass an adapter, and 8 full models of transformers, each for
four of the tasks, both fp32; ``ours_is`` is our rate / theirs, the median of the turns.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from upt_benchmarks.arrivals import answered_per_s, send_at_random
from upt_benchmarks.loaded import (
    ADAPTERS,
    CALLERS,
    THREADS,
    load_parser,
    print_measured,
    serving_random,
)
from upt_benchmarks.ours import runner_of
from upt_benchmarks.peer_servers import ENVIRONMENT, SERVERS, calling_peer, peer_server
from upt_benchmarks.peers import add_peers_dir, peer_python
from upt_benchmarks.served import mixed_texts, named_specs, percentiles, real_texts
from upt_benchmarks.side_by_side import OURS, Asking, Predict, summed_up, take_turns
from upt_benchmarks.workloads import adapter_tensors
from upt_server.client import AsyncClient
from upt_server.precision import Precision
from upt_server.runner import Runner
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec
from upt_zoo.tokenization import Tokenizer


def main() -> int:
    """Measure, print."""
    parser = load_parser("Measure the server beside its engine.", seconds=15)
    parser.add_argument("--peers", action="store_true", help="other libraries' servers too")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("UPT_DATA_DIR"),
        metavar="DIR",
        help="of the tasks' rows; UPT_DATA_DIR unless given",
    )
    add_peers_dir(parser)
    arguments = parser.parse_args()
    python = peer_python(ENVIRONMENT, arguments.peers_dir) if arguments.peers else None
    backbone = resolve_backbone()
    specs = named_specs(backbone, ADAPTERS)
    texts = mixed_texts() if arguments.data is None else real_texts(arguments.data)
    engine = _engine(backbone, arguments.precision, specs, texts, arguments.seconds)
    with serving_random(specs, arguments.precision) as (server, names):
        load = asyncio.run(_load(server.target, names, texts, arguments.seconds))
        if python is not None:
            beside = _side_by_side(server.target, names, texts, arguments.seconds, python=python)
            load["side_by_side"] = asyncio.run(beside)
    about = "drawn" if arguments.data is None else "real"
    print_measured(arguments, {"texts": about, "engine": engine, **load})
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
        await answered_per_s(
            Asking(client.predict, names, texts, 0).ask, callers=CALLERS, seconds=2.0
        )  # warm
        closed, half = (Asking(client.predict, names, texts, seed) for seed in (1, 2))
        rate = await answered_per_s(closed.ask, callers=CALLERS, seconds=seconds)
        await send_at_random(half.ask, per_s=rate / 2, seconds=seconds, seed=3)
    return {
        "idle": idle,
        "closed_loop": {
            "callers": CALLERS,
            "rows_per_s": round(rate, 1),
            **percentiles(closed.waited_s),
        },
        "half_load": {"calls_per_s": round(rate / 2, 1), **percentiles(half.waited_s)},
    }


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


async def _side_by_side(
    target: str, names: Sequence[str], texts: Sequence[str], seconds: float, *, python: Path
) -> dict[str, object]:
    checkpoint = resolve_backbone().directory
    versions: dict[str, Mapping[str, str]] = {}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(target, timeout_s=60))
        ways: dict[str, Predict] = {OURS: client.predict}
        for way in SERVERS:
            peer = stack.enter_context(peer_server(way, python, checkpoint))
            ways[way] = await stack.enter_async_context(calling_peer(peer.target, names))
            versions[way] = peer.versions
        turns = await take_turns(ways, names, texts, callers=CALLERS, seconds=seconds)
    return {"callers": CALLERS, "versions": versions, **summed_up(turns)}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
