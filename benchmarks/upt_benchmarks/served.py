"""A server in a process of its own with random adapters, and what is asked of it."""

import gc
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from upt_benchmarks.workloads import UNION, adapter_spec, adapter_tensors, row_lengths
from upt_training.data import read_split
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.spec import AdapterSpec
from upt_zoo.tasks import TASKS

_WORDS = "the film was a slow but moving story of two people who meet in an old city by the sea"
_LARGEST_BATCH = 32
_REAL = ("sst2", "cola", "mrpc", "rte", "stsb", "scierc", "ag_news", "imdb")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """Where it listens, and which process it is."""

    target: str
    http: str
    pid: int

    def resident_mb(self) -> float:
        """Return the process's resident memory in MiB (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


def named_specs(backbone: Backbone, count: int) -> list[AdapterSpec]:
    """Describe adapters of all components, named task0, task1 and so on."""
    spec = adapter_spec(UNION, backbone.identity)
    return [
        spec.model_copy(update={"task": spec.task.model_copy(update={"name": f"task{index}"})})
        for index in range(count)
    ]


def publish_random(home: Path, specs: Sequence[AdapterSpec]) -> list[str]:
    """Publish adapters of random numbers; return their names."""
    store = Store(home)
    for seed, spec in enumerate(specs):
        arrays = {name: t.numpy() for name, t in adapter_tensors(spec, seed).items()}
        store.publish(spec, arrays, "# Random", version="1.0.0")
    return [spec.task.name for spec in specs]


def mixed_texts() -> list[str]:
    """Return sentences of plain words as long as the mixed workload's rows."""
    return texts_of(row_lengths("mix", _LARGEST_BATCH))


def real_texts(folder: Path) -> list[str]:
    """Return rows of several tasks' dev files as they are, a few words to whole reviews."""
    source, texts = random.Random(0), list[str]()
    for name in _REAL:
        rows = read_split(TASKS[name], "dev", folder=folder).examples
        texts += [row.texts[0] for row in source.sample(rows, _LARGEST_BATCH // len(_REAL))]
    return texts


def texts_of(lengths: Iterable[int]) -> list[str]:
    """Return a sentence of plain words for each number of tokens, 3 or more."""
    words, source = _WORDS.split(), random.Random(0)
    return [" ".join(source.choices(words, k=length - 2)) for length in lengths]


@contextmanager
def running_server(
    home: Path, options: Sequence[str], *, program: Sequence[str] = ("-m", "upt_server.cli")
) -> Iterator[ServerProcess]:
    """Run ``upt-server run``, or what ``program`` makes of it, on free ports of loopback."""
    command = [sys.executable, *program, "run", "--json", "--home", str(home)]
    ports = ["--grpc-port", "0", "--http-port", "0"]
    with subprocess.Popen(
        [*command, *ports, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            gc.collect()
            gc.freeze()  # else the callers here stop now and then to walk over all modules
            yield ServerProcess(
                target=f"127.0.0.1:{ready['grpc_port']}",
                http=f"127.0.0.1:{ready['http_port']}",
                pid=process.pid,
            )
        finally:
            gc.unfreeze()
            process.terminate()


def percentiles(waited_s: Sequence[float]) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds, and how far they are apart."""
    cuts = quantiles(waited_s, n=100)
    p50, p99 = cuts[49] * 1000, cuts[98] * 1000
    return {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "p99_over_p50": round(p99 / p50, 2)}
