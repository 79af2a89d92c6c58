import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from numpy.typing import NDArray

from upt_server import runner_choice
from upt_server.native import library
from upt_server.precision import RUNNERS, Precision, RunnerChoice, RunnerName
from upt_server.runner import Runner, TorchRunner
from upt_server.runner_choice import load_runner, missing_for
from upt_testing.backbones import write_tiny_backbone
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.packing import Row


@pytest.fixture(autouse=True)
def fresh_kernel() -> Iterator[None]:
    """What one test found loaded is not what the next one finds."""
    yield
    library.load_kernel.cache_clear()


NO_CPU_FEATURES = "processor: 0\nflags: sse2"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("sixteen"), heads=2)


def choose(
    backbone: Backbone,
    precision: Precision = "exact",
    wanted: RunnerChoice = "auto",
    cache: Path | None = None,
) -> Runner:
    return load_runner(backbone, precision, wanted=wanted, threads=1, cache=cache)


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_cpu_facts", lambda: NO_CPU_FEATURES)
    monkeypatch.setattr(runner_choice, "is_bf16_fast", lambda: False)


@pytest.fixture
def slow_torch(monkeypatch: pytest.MonkeyPatch) -> list[RunnerName]:
    """All exact runners are there; the torch one sleeps; returns the names in the order run."""
    ran: list[RunnerName] = []

    class Timed:
        def __init__(self, name: RunnerName) -> None:
            self.name = name

        def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
            ran.append(self.name)
            sleep(0.005 if self.name == "torch-fp32" else 0)
            return []

    monkeypatch.setattr(runner_choice, "missing_for", lambda name, config, device: None)
    monkeypatch.setattr(runner_choice._Loader, "__call__", lambda self, name: Timed(name))
    return ran


@pytest.mark.parametrize("precision", RUNNERS)
def test_a_named_runner_is_loaded(backbone: Backbone, precision: Precision) -> None:
    for name in RUNNERS[precision]:
        if reason := missing_for(name, backbone.config):
            with pytest.raises(InvalidSpec, match=reason[:20]):
                choose(backbone, precision, name)
        else:
            assert choose(backbone, precision, name).name == name


def test_a_runner_of_another_precision_is_refused(backbone: Backbone) -> None:
    with pytest.raises(InvalidSpec, match="precision exact has native-fp32, torch-fp32"):
        choose(backbone, "exact", "native-int8")


def test_a_machine_without_avx2_takes_torch(
    backbone: Backbone, old_cpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert choose(backbone).name == "torch-fp32"
    assert "native-fp32 is out of the question" in caplog.text


def test_fast_is_refused_where_nothing_can_be_fast(backbone: Backbone, old_cpu: None) -> None:
    with pytest.raises(InvalidSpec, match="torch-bf16: the CPU does not multiply bf16"):
        choose(backbone, "fast")


def test_a_kernel_that_was_not_built_is_named(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "_library", lambda: tmp_path / "none.so")
    with pytest.raises(InvalidSpec, match="the native kernel was not built"):
        choose(backbone, wanted="native-fp32")
    assert choose(backbone).name == "torch-fp32"
    assert library.digest() == ""


def test_a_kernel_of_another_source_is_not_loaded(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if library.missing_for("fp32"):
        pytest.skip("there is no kernel here")
    (tmp_path / "kernel.cpp").write_text("// another one")
    monkeypatch.setattr(library, "SOURCES", (tmp_path / "kernel.cpp",))
    library.load_kernel.cache_clear()
    with pytest.raises(InvalidSpec, match="another source"):
        choose(backbone, wanted="native-fp32")
    assert choose(backbone).name == "torch-fp32"


def test_a_kernel_that_cannot_be_loaded_leaves_torch(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "_cpu_facts", lambda: " ".join(library.ALL_FEATURES))
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(library, "_library", lambda: tmp_path / "broken.so")
    library.load_kernel.cache_clear()
    assert choose(backbone).name == "torch-fp32"


def test_sizes_without_code_take_torch(tmp_path: Path) -> None:
    odd = write_tiny_backbone(tmp_path)
    assert choose(odd).name == "torch-fp32"


def test_auto_takes_the_fastest_and_says_what_it_measured(
    backbone: Backbone, slow_torch: list[RunnerName], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert choose(backbone).name == "native-fp32"
    assert set(slow_torch) == {"native-fp32", "torch-fp32"}
    assert "runner native-fp32: native-fp32 " in caplog.text


def test_auto_measures_once_for_a_machine_and_a_backbone(
    backbone: Backbone, slow_torch: list[RunnerName], tmp_path: Path
) -> None:
    cache = tmp_path / "deep" / "runners.json"
    choose(backbone, cache=cache)
    slow_torch.clear()
    assert choose(backbone, cache=cache).name == "native-fp32"
    assert slow_torch == ["native-fp32"]  # the one batch that warms it up
    other = write_tiny_backbone(tmp_path / "other", seed=1, heads=2)
    choose(other, cache=cache)
    assert slow_torch
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "[1]"])
def test_a_damaged_cache_counts_as_none(
    backbone: Backbone, slow_torch: list[RunnerName], tmp_path: Path, text: str
) -> None:
    cache = tmp_path / "runners.json"
    cache.write_text(text)
    assert choose(backbone, cache=cache).name == "native-fp32"
    assert slow_torch


def test_a_cache_that_cannot_be_written_is_no_error(
    backbone: Backbone,
    slow_torch: list[RunnerName],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    assert choose(backbone, cache=tmp_path / "file" / "runners.json").name == "native-fp32"
    assert "is not remembered" in caplog.text


def test_a_device_that_is_not_there_is_named(backbone: Backbone) -> None:
    with pytest.raises(InvalidSpec, match="no device hpu") as caught:
        load_runner(backbone, "exact", wanted="auto", threads=1, cache=None, device="hpu")
    assert "native-fp32: it computes on CPUs only" in str(caught.value)


@pytest.mark.parametrize("wanted", ["torch-fp32", "auto"])
def test_a_runner_has_computed_a_batch_before_it_is_handed_out(
    backbone: Backbone, wanted: RunnerChoice, monkeypatch: pytest.MonkeyPatch, old_cpu: None
) -> None:
    sizes: list[int] = []
    run = TorchRunner.run

    def counting(runner: TorchRunner, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        sizes.append(len(rows))
        return run(runner, rows)

    monkeypatch.setattr(TorchRunner, "run", counting)
    load_runner(backbone, "exact", wanted=wanted, threads=1, cache=None)
    assert len(sizes) == 1
    assert sizes[0] > 1
