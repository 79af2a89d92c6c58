"""A plain ``grpc.aio`` server of many models, as one would write it around a library.

A call is JSON, ``{"task": 3, "text": "..."}``, and so is its answer, ``{"label": 1}``. Started with
a ``Setup`` as JSON, it prints a line of JSON with its port and versions as soon as it listens. Runs
in the peer's own environment and knows nothing of upt.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import torch
from tokenizers import Tokenizer
from torch import Tensor
from waiting_calls import Label, WaitingCalls
from worker import padded

# a model's logits [row, label] of padded inputs
Forward = Callable[[int, dict[str, Tensor]], Tensor]

MOST_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a server is told: the checkpoint of all its models, and how many they are."""

    checkpoint: str
    models: int
    threads: int


def serve(load: Callable[[Setup], Forward], packages: Sequence[str]) -> None:
    """Load the models and serve them on loopback until terminated."""
    setup = Setup(**json.loads(sys.argv[1]))
    torch.set_num_threads(setup.threads)
    torch.manual_seed(0)
    with redirect_stdout(sys.stderr):  # the port alone goes to standard output
        label = _labelling(load(setup), Path(setup.checkpoint))
    versions = {name: version(name) for name in packages}
    asyncio.run(_serve(WaitingCalls(label, setup.models), versions))


def _labelling(forward: Forward, checkpoint: Path) -> Label:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    pad = json.loads((checkpoint / "config.json").read_text())["pad_token_id"]

    def label(model: int, texts: Sequence[str]) -> list[int]:
        inputs = padded([each.ids for each in tokenizer.encode_batch(texts)], pad)
        with torch.inference_mode():
            return forward(model, inputs).argmax(-1).tolist()

    return label


async def _serve(calls: WaitingCalls, versions: dict[str, str]) -> None:
    async def predict(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        asked = json.loads(request)
        return json.dumps({"label": await calls.ask(asked["task"], asked["text"])}).encode()

    methods = {"Predict": grpc.unary_unary_rpc_method_handler(predict)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("peer.Peer", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port, "versions": versions}), flush=True)
    await calls.answer()
