"""Which runner computes: the one asked for, or the fastest that this machine has.

``auto`` measures every runner of the precision on one batch of mixed lengths, once for a machine,
a backbone and a version of the code; the cache remembers the outcome.
"""

import hashlib
import json
import logging
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from pydantic import TypeAdapter

from upt_server.native import library
from upt_server.native.backbone import unsupported_shape
from upt_server.native.runner import NativeRunner
from upt_server.precision import RUNNERS, Precision, RunnerChoice, RunnerName
from upt_server.runner import Runner, TorchRunner
from upt_zoo.backbone import Backbone, EncoderConfig
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.adapter import PreparedAdapter, PreparedHead, PreparedLayer, Structure
from upt_zoo.nn.devices import is_bf16_fast, missing_device
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.nn.packing import Row
from upt_zoo.spec import Head

_LOGGER = logging.getLogger(__name__)

_NUMBERS: dict[RunnerName, library.Number] = {
    "native-fp32": "fp32",
    "native-bf16": "bf16",
    "native-int8": "int8",
}
_MEASURED = TypeAdapter(dict[str, dict[RunnerName, float]])
_LENGTHS = (8, 16, 32, 64, 128) * 4  # tokens of the rows that are measured
_WARM_UPS, _ROUNDS = 2, 5


def load_runner(
    backbone: Backbone,
    precision: Precision,
    *,
    wanted: RunnerChoice,
    threads: int,
    cache: Path | None,
    device: str = "cpu",
) -> Runner:
    """Load the runner that is wanted, or the fastest one of the precision.

    ``cache`` is the file that remembers what was measured; None measures anew.

    Raises:
        InvalidSpec: the wanted runner is of another precision, or this machine cannot run it.
        Corrupt: the backbone's weights are damaged.
    """
    names = RUNNERS[precision]
    if wanted != "auto" and wanted not in names:
        raise InvalidSpec(
            f"runner {wanted}: precision {precision} has {', '.join(names)}; name one of them or "
            f"change the precision"
        )
    missing = {
        name: reason for name in names if (reason := missing_for(name, backbone.config, device))
    }
    able = [name for name in names if name not in missing]
    if wanted in missing or not able:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise InvalidSpec(f"precision {precision}, runner {wanted}, on this machine: {reasons}")
    load = _Loader(backbone, threads, device)
    if wanted != "auto":
        return _warm(load(wanted), load)
    for name, reason in missing.items():
        _LOGGER.info("runner %s is out of the question: %s", name, reason)
    if len(able) == 1:
        return _warm(load(able[0]), load)
    return _fastest(load, able, _Memory(cache, backbone))


def measured_earlier(
    backbone: Backbone,
    names: list[RunnerName],
    *,
    threads: int,
    cache: Path | None,
    device: str = "cpu",
) -> dict[RunnerName, float]:
    """Return the milliseconds that ``auto`` remembers of each runner, none if it has to measure."""
    return _Memory(cache, backbone).recall(names, threads, device)


def missing_for(name: RunnerName, config: EncoderConfig, device: str = "cpu") -> str | None:
    """Say what this machine or the kernel lacks to run so; None if nothing."""
    if device != "cpu":
        return "it computes on CPUs only" if name in _NUMBERS else missing_device(device)
    if name in _NUMBERS:
        return library.missing_for(_NUMBERS[name]) or unsupported_shape(config)
    if name == "torch-bf16" and not is_bf16_fast():
        return "the CPU does not multiply bf16"
    return None


class _Loader:
    """Loads runners on one backbone; the fp32 encoder is read once."""

    def __init__(self, backbone: Backbone, threads: int, device: str) -> None:
        self.config, self.threads, self._backbone = backbone.config, threads, backbone
        self.device = device
        self._exact = load_encoder(backbone, device=device)

    def __call__(self, name: RunnerName) -> Runner:
        if name in _NUMBERS:
            return NativeRunner(self._exact, _NUMBERS[name], threads=self.threads)
        if name == "torch-bf16":
            return TorchRunner(
                load_encoder(self._backbone, dtype=torch.bfloat16, device=self.device)
            )
        return TorchRunner(self._exact)


class _Memory:
    """What was measured, by everything that would change it; a damaged file counts as none."""

    def __init__(self, file: Path | None, backbone: Backbone) -> None:
        self._file, self._backbone = file, backbone

    def _key(self, names: list[RunnerName], threads: int, device: str) -> str:
        facts = [
            names,
            threads,
            device,
            torch.__version__,
            library.digest(),
            library.machine(),
            self._backbone.identity.digest,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def recall(self, names: list[RunnerName], threads: int, device: str) -> dict[RunnerName, float]:
        known = self._read().get(self._key(names, threads, device), {})
        return known if set(known) == set(names) else {}

    def _read(self) -> dict[str, dict[RunnerName, float]]:
        try:
            text = self._file.read_text(encoding="utf-8") if self._file else "{}"
            return _MEASURED.validate_json(text)
        except (OSError, ValueError):
            return {}

    def keep(self, measured: dict[RunnerName, float], threads: int, device: str) -> None:
        if self._file is None:
            return
        key = self._key([*measured], threads, device)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".partial")
            partial.write_text(json.dumps(self._read() | {key: measured}), encoding="utf-8")
            partial.replace(self._file)
        except OSError as error:
            _LOGGER.warning("what the runners took is not remembered: %s", error)


def _fastest(load: _Loader, names: list[RunnerName], memory: _Memory) -> Runner:
    if known := memory.recall(names, load.threads, load.device):
        best = min(names, key=lambda name: known[name])
        _LOGGER.info("runner %s: %s, measured earlier", best, _shown(known))
        return _warm(load(best), load)
    runners = {name: load(name) for name in names}
    measured = {
        name: _measure(runner, load.config, load.device) for name, runner in runners.items()
    }
    memory.keep(measured, load.threads, load.device)
    best = min(names, key=lambda name: measured[name])
    _LOGGER.info("runner %s: %s", best, _shown(measured))
    return runners[best]


def _shown(measured: dict[RunnerName, float]) -> str:
    times = ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in measured.items())
    return f"{times} for {len(_LENGTHS)} rows of {min(_LENGTHS)} to {max(_LENGTHS)} tokens"


def _warm(runner: Runner, load: _Loader) -> Runner:
    """Compute a batch for nobody: the first one takes two to three times as long."""
    runner.run(_batch(load.config, load.device))
    return runner


def _batch(config: EncoderConfig, device: str) -> list[Row]:
    adapter = _bare(config, device)
    return [
        Row(ids=[1] * length, type_ids=[0] * length, adapter=adapter)
        for length in (min(length, config.max_tokens) for length in _LENGTHS)
    ]


def _measure(runner: Runner, config: EncoderConfig, device: str) -> float:
    """Return the median milliseconds of a batch without adapters, which cost all alike."""
    rows = _batch(config, device)
    times = []
    for _ in range(_WARM_UPS + _ROUNDS):
        started = perf_counter()
        runner.run(rows)
        times.append((perf_counter() - started) * 1000)
    return median(times[_WARM_UPS:])


def _bare(config: EncoderConfig, device: str) -> PreparedAdapter:
    nothing = PreparedLayer(
        attention_in=None,
        attention_out=None,
        ffn_up=None,
        ffn_down=None,
        bottleneck=None,
        prefix_keys=None,
        prefix_values=None,
    )
    head = PreparedHead(
        spec=Head(kind="regression", outputs=1),
        dense=None,
        out=(torch.zeros(1, config.hidden_size, device=device), torch.zeros(1, device=device)),
    )
    return PreparedAdapter(
        structure=Structure.bare(),
        prompt=None,
        layers=(nothing,) * config.num_hidden_layers,
        head=head,
    )
