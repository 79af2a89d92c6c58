"""The server that is soaked, in this process, and all that is known of its adapters."""

from dataclasses import dataclass
from pathlib import Path

from upt_benchmarks.faults import FaultyRunner
from upt_benchmarks.served import mixed_texts, named_specs
from upt_benchmarks.truth import Truth
from upt_benchmarks.workloads import adapter_tensors
from upt_server.app import Server, build_engine
from upt_server.engine import Engine
from upt_server.inputs import Limits
from upt_server.metrics import Metrics
from upt_server.precision import RunnerChoice
from upt_server.runner_choice import load_runner
from upt_server.scheduling import Budget
from upt_server.settings import Settings
from upt_zoo.backbone import Backbone
from upt_zoo.local import tags
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec
from upt_zoo.tokenization import Tokenizer

VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
ALIAS, FLAWED, KILLED = "stable", "flawed", "killed"
_UNLUCKY_WORD = "volcano"
_TEXTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """A server and its adapters; ``flawed`` is damaged now and then, ``unlucky`` never computed."""

    home: Path
    store: Store
    adapters: tuple[StoredAdapter, ...]
    flawed: StoredAdapter
    texts: tuple[str, ...]
    unlucky: str
    truth: Truth
    runner: FaultyRunner
    engine: Engine
    server: Server
    metrics: Metrics

    def evictions(self) -> int:
        """Count the adapters that made room for others so far."""
        lines = self.metrics.text().decode().splitlines()
        (line,) = (line for line in lines if line.startswith("upt_adapter_evictions_total "))
        return int(float(line.split()[1]))


def build_soaked(home: Path, backbone: Backbone, *, names: int, runner: RunnerChoice) -> Soaked:
    """Publish adapters, run each on each text alone, and put a server together."""
    store, truth, texts = Store(home), Truth(), tuple(mixed_texts()[:_TEXTS])
    specs = named_specs(backbone, names)
    adapters = [
        _publish(store, truth, spec, version=version, seed=3 * index + place)
        for index, spec in enumerate(specs)
        for place, version in enumerate(VERSIONS)
    ]
    for stored in adapters[::3]:
        tags.move_alias(store, Reference(name=stored.name, tag=stored.version), ALIAS)
        truth.means(Reference(name=stored.name, tag=ALIAS), stored.digest)
    flawed, killed = (
        _publish(store, truth, _renamed(specs[0], name), version="1.0.0", seed=1000 + seed)
        for seed, name in enumerate((FLAWED, KILLED))
    )
    chosen = load_runner(backbone, "exact", wanted=runner, threads=2, cache=None)
    tokenizer = Tokenizer(backbone.tokenizer_file)
    truth.learn(store, [*adapters, flawed, killed], texts, runner=chosen, tokenizer=tokenizer)
    (row,) = tokenizer.encode(flawed.spec.task, (_UNLUCKY_WORD,), kind="classification")
    faulty = FaultyRunner(chosen, unlucky_token=row.ids[1])
    metrics = Metrics()
    settings = _settings(home, max_adapter_bytes=truth.size_bytes // 2)
    engine = build_engine(settings, backbone, faulty, metrics)
    return Soaked(
        home=home,
        store=store,
        adapters=tuple(adapters),
        flawed=flawed,
        texts=texts,
        unlucky=f"{texts[0]} {_UNLUCKY_WORD}",
        truth=truth,
        runner=faulty,
        engine=engine,
        server=Server(engine, metrics, settings),
        metrics=metrics,
    )


def publish_random_version(
    store: Store, spec: AdapterSpec, *, version: str, seed: int
) -> StoredAdapter:
    """Publish an adapter of random numbers."""
    arrays = {name: tensor.numpy() for name, tensor in adapter_tensors(spec, seed).items()}
    return store.publish(spec, arrays, "# Random", version=version)


def _publish(
    store: Store, truth: Truth, spec: AdapterSpec, *, version: str, seed: int
) -> StoredAdapter:
    stored = publish_random_version(store, spec, version=version, seed=seed)
    for reference in (
        Reference(name=stored.name),
        Reference(name=stored.name, tag=version),
        Reference(name=stored.name, digest=stored.digest),
    ):
        truth.means(reference, stored.digest)
    return stored


def _renamed(spec: AdapterSpec, name: str) -> AdapterSpec:
    return spec.model_copy(update={"task": spec.task.model_copy(update={"name": name})})


def _settings(home: Path, *, max_adapter_bytes: int) -> Settings:
    return Settings(
        home=home,
        backbone="",  # it is loaded already
        host="127.0.0.1",
        grpc_port=0,
        http_port=0,
        preload=(),
        precision="exact",
        runner="auto",
        device="cpu",
        runner_cache=None,
        threads=2,
        budget=Budget(tokens=1024),
        max_queue_tokens=8192,
        max_adapter_bytes=max_adapter_bytes,
        drain_timeout_s=30.0,
        limits=Limits(timeout_s=10.0),
    )
