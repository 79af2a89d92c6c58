"""How long the server's event loop is kept by one step, at the largest calls that it takes.

    python benchmarks/event_loop.py [--registered 1000] [--rounds 5] [--out FILE]

Meanwhile nobody else's call is taken up. Prints JSON: for each kind of call how many steps it took,
and how long the longest was, in milliseconds that the loop's thread ran (the median of the rounds,
and the most). Calls that take longer than ``_PATIENCE_S`` to compute are left then: what is
measured is how they are read, checked, queued and given up.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import sleep
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc

import upt_benchmarks
from upt_benchmarks.machine import this_machine
from upt_benchmarks.served import ServerProcess, running_server
from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.oip import open_inference_pb2_grpc as oip_grpc
from upt_server.client import Client
from upt_server.inputs import Options
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.local.draft import Draft
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

_INPUTS, _DOCUMENT_CHARS = 256, 100_000  # the most that a call may have
_LARGEST_CHARS = 15_000  # of 256 inputs, in 4 MiB
_PATIENCE_S, _SETTLED_S = 10.0, 0.2
_FILM = "a gripping, funny film that never lets go. "
_WANTED_MS = 10.0


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--registered", type=int, default=1000, help="versions in the store")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="upt-loop-") as folder:
        home, steps = Path(folder, "home"), Path(folder, "steps.json")
        _fill(Store(home), arguments.registered)
        with _watched(home, steps) as server:
            measured = _measure(server, steps, arguments.rounds)
    about = {"machine": asdict(this_machine()), "registered": arguments.registered}
    text = json.dumps({**about, "wanted_ms": _WANTED_MS, **measured}, indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    print(text)
    return 0


def _fill(store: Store, count: int) -> None:
    """Publish shipped adapters, and one of them under ``count`` names."""
    for name in ("sst2", "squad"):
        store.copy_from(embedded_catalogue(), Reference(name=name))
    spec, tensors = store.load(store.resolve(Reference(name="sst2")))

    def drafts() -> Iterator[Draft]:
        for index in range(count):
            task = spec.task.model_copy(update={"name": f"task{index}"})
            yield Draft(
                spec=spec.model_copy(update={"task": task}), tensors=tensors, card="# A copy"
            )

    store.publish_all(drafts())


@contextmanager
def _watched(home: Path, steps: Path) -> Iterator[ServerProcess]:
    os.environ["UPT_STEPS"] = str(steps)
    program = [str(Path(upt_benchmarks.__path__[0], "watched_server.py"))]
    with running_server(home, ["--preload", "sst2,squad"], program=program) as server:
        yield server


def _measure(server: ServerProcess, steps: Path, rounds: int) -> dict[str, object]:
    seen: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    with Client(server.target, timeout_s=_PATIENCE_S) as client:
        kinds = {**_calls_of_ours(client), **_calls_of_others(server)}
        for _ in range(rounds):
            for kind, call in kinds.items():
                client.predict("sst2", _FILM)
                _read_steps(server, steps)
                with suppress(TimeoutError, HTTPError, grpc.RpcError):
                    call()
                sleep(_SETTLED_S)
                found = _read_steps(server, steps)
                seen.setdefault(kind, []).append(found["longest_ms"])
                counts[kind] = int(found["steps"])
    return {
        kind: {
            "steps": counts[kind],
            "longest_ms": round(median(values), 2),
            "most_ms": round(max(values), 2),
        }
        for kind, values in seen.items()
    }


def _read_steps(server: ServerProcess, steps: Path) -> dict[str, float]:
    os.kill(server.pid, signal.SIGUSR1)
    while not steps.exists():
        sleep(0.01)
    found: dict[str, float] = json.loads(steps.read_text())
    steps.unlink()
    return found


def _calls_of_ours(client: Client) -> dict[str, Callable[[], object]]:
    short, large = [("sst2", [_FILM])], [("sst2", [_of_length(_LARGEST_CHARS)])]
    document = [("squad", ["Who lets go?", _of_length(_DOCUMENT_CHARS)])]
    raw = Options(has_logits=True)
    return {
        "one short text": lambda: client.predict_many(short),
        "8 short texts": lambda: client.predict_many(short * 8),
        "256 short texts": lambda: client.predict_many(short * _INPUTS),
        "256 short texts, logits": lambda: client.predict_many(short * _INPUTS, options=raw),
        "256 texts, 3.8 MB": lambda: client.predict_many(large * _INPUTS),
        "a document of 100,000 characters": lambda: client.predict_many(document),
        "all adapters": client.adapters,
    }


def _calls_of_others(server: ServerProcess) -> dict[str, Callable[[], object]]:
    def ask(path: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        kind = {"content-type": "application/json"}
        request = Request(f"http://{server.http}{path}", data=data, headers=kind)
        with urlopen(request, timeout=_PATIENCE_S) as response:
            content: bytes = response.read()
        return content

    def ours(text: str) -> Mapping[str, object]:
        return {"inputs": [{"adapter": "sst2", "texts": [text]}] * _INPUTS}

    def infer(text: str) -> object:
        request = oip.ModelInferRequest(model_name="sst2")
        tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[_INPUTS])
        tensor.contents.bytes_contents.extend([text.encode()] * _INPUTS)
        with grpc.insecure_channel(server.target) as channel:
            stub = oip_grpc.GRPCInferenceServiceStub(channel)
            return stub.ModelInfer(request, timeout=_PATIENCE_S)

    tensor = {"name": "sentence", "datatype": "BYTES", "shape": [_INPUTS], "data": [_FILM] * 256}
    return {
        "HTTP: 256 short texts": lambda: ask("/v1/predict", ours(_FILM)),
        "HTTP: 256 texts, 3.8 MB": lambda: ask("/v1/predict", ours(_of_length(_LARGEST_CHARS))),
        "HTTP: all adapters": lambda: ask("/v1/adapters"),
        "HTTP: metrics": lambda: ask("/metrics"),
        "Open Inference Protocol: 256 short texts": lambda: infer(_FILM),
        "Open Inference Protocol: 256 texts, 3.8 MB": lambda: infer(_of_length(_LARGEST_CHARS)),
        "/v2: 256 short texts": lambda: ask("/v2/models/sst2/infer", {"inputs": [tensor]}),
        "/v2: all adapters": lambda: ask("/v2/repository/index", {}),
    }


def _of_length(chars: int) -> str:
    return (_FILM * (chars // len(_FILM) + 1))[:chars]


if __name__ == "__main__":
    sys.exit(main())
