"""What the server does with more than it can: four times its capacity, with deadlines.

    python benchmarks/overload.py [--seconds 20] [--times 4] [--inputs 8] [--deadline 1]

Capacity is what callers get who ask again at once, in calls of ``--inputs`` inputs. Then calls come
at random times, ``--times`` as many, and nobody tries again. ``goodput`` is what was answered
before its deadline / capacity. Waiting counts from when a call was due, so it holds the client's
own delay, which ``sent_late`` tells: client and server share the machine. So that the client takes
little of it, it reads no more of what comes back than its status. ``cores`` says how much of the
processor each had in the overload. ``memory`` is the server's, before and while.

A few lines for people go to stderr, JSON to stdout.
"""

import argparse
import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from time import perf_counter, process_time

import grpc

from upt_benchmarks.arrivals import answered_per_s, send_at_random
from upt_benchmarks.loaded import (
    ADAPTERS,
    CALLERS,
    load_parser,
    print_measured,
    serving_random,
)
from upt_benchmarks.processors import used_by
from upt_benchmarks.served import ServerProcess, mixed_texts, named_specs, percentiles
from upt_protos.v1 import inference_pb2 as pb
from upt_server.client import AsyncClient
from upt_zoo.backbone import resolve_backbone

_GOODPUT, _REFUSAL_MS = 0.9, 50.0
_EXPECTED = ("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
_PREDICT = "/upt.v1.Inference/Predict"


def main() -> int:
    """Measure, print."""
    arguments = _parser().parse_args()
    specs = named_specs(resolve_backbone(), ADAPTERS)
    with serving_random(specs, arguments.precision) as (server, names):
        measured = asyncio.run(_measure(server, names, arguments))
    print_measured(arguments, measured)
    print(_summary(measured), file=sys.stderr)
    return 0


async def _measure(
    server: ServerProcess, names: Sequence[str], arguments: argparse.Namespace
) -> dict[str, object]:
    texts, source = mixed_texts(), random.Random(0)
    ended: Counter[str] = Counter()
    answered_s: list[float] = []
    refused_s: list[float] = []
    late_s: list[float] = []
    memory_mb: list[float] = []

    def inputs() -> list[tuple[str, list[str]]]:
        return [(source.choice(names), [source.choice(texts)]) for _ in range(arguments.inputs)]

    async with (
        AsyncClient(server.target, timeout_s=60) as patient,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        hasty: grpc.aio.UnaryUnaryMultiCallable[pb.PredictRequest, bytes] = channel.unary_unary(
            _PREDICT, request_serializer=pb.PredictRequest.SerializeToString
        )

        async def ask() -> None:
            await patient.predict_many(inputs())

        async def ask_hastily(due_s: float) -> None:
            request = pb.PredictRequest(
                inputs=[pb.Input(adapter=name, texts=texts) for name, texts in inputs()]
            )
            late_s.append(perf_counter() - due_s)
            code = await hasty(request, timeout=arguments.deadline).code()
            ended[code.name] += 1
            if code is grpc.StatusCode.OK:
                answered_s.append(perf_counter() - due_s)
            elif code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                refused_s.append(perf_counter() - due_s)

        async def watch() -> None:
            while True:
                memory_mb.append(server.resident_mb())
                await asyncio.sleep(0.5)

        callers = max(2, CALLERS // arguments.inputs)
        await answered_per_s(ask, callers=callers, seconds=2.0)  # warm
        capacity = await answered_per_s(ask, callers=callers, seconds=arguments.seconds)
        before_mb = server.resident_mb()
        watching = asyncio.create_task(watch())
        started, own_s, used = perf_counter(), process_time(), used_by({server.pid})
        await send_at_random(
            ask_hastily, per_s=arguments.times * capacity, seconds=arguments.seconds, seed=1
        )
        took_s = perf_counter() - started
        own_s, used = process_time() - own_s, used_by({server.pid}).since(used)
        watching.cancel()
    return {
        "inputs_a_call": arguments.inputs,
        "deadline_s": arguments.deadline,
        "capacity_rows_per_s": round(capacity * arguments.inputs, 1),
        "offered_rows_per_s": round(arguments.times * capacity * arguments.inputs, 1),
        "goodput": round(ended["OK"] / took_s / capacity, 3),
        "ended": dict(ended),
        "answered": percentiles(answered_s),
        "refused": percentiles(refused_s),
        "sent_late": percentiles(late_s),
        "cores": {
            "server": round((used.runners_s + used.others_s) / took_s, 2),
            "client": round(own_s / took_s, 2),
        },
        "memory_mb": {
            "before": round(before_mb, 1),
            "first_half": round(max(memory_mb[: len(memory_mb) // 2]), 1),
            "second_half": round(max(memory_mb[len(memory_mb) // 2 :]), 1),
        },
    }


def _summary(result: dict[str, object]) -> str:
    goodput, refused, memory = result["goodput"], result["refused"], result["memory_mb"]
    ended = result["ended"]
    assert isinstance(ended, dict)
    others = {code: count for code, count in ended.items() if code not in _EXPECTED}
    assert isinstance(goodput, float)
    assert isinstance(refused, dict)
    assert isinstance(memory, dict)
    good = "met" if goodput >= _GOODPUT else "missed"
    quick = "met" if refused["p99_ms"] <= _REFUSAL_MS else "missed"
    return (
        f"goodput {goodput} of capacity (at least {_GOODPUT}: {good}); refusals after "
        f"{refused['p50_ms']} ms, p99 {refused['p99_ms']} ms (at most {_REFUSAL_MS:g}: {quick}); "
        f"other statuses {others or 'none'}; memory {memory['before']}, then "
        f"{memory['first_half']}, {memory['second_half']} MiB"
    )


def _parser() -> argparse.ArgumentParser:
    parser = load_parser("Offer the server more than it can do.", seconds=20)
    parser.add_argument("--times", type=float, default=4, help="the capacity")
    parser.add_argument("--inputs", type=int, default=8, help="of a call")
    parser.add_argument("--deadline", type=float, default=1.0, help="of a call, in seconds")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
