"""The native kernel beside torch's forward pass, and every row beside itself alone, to the bit."""

import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from upt_server.native import library
from upt_server.native.adapter import AdapterTable, NativeAdapter
from upt_server.native.backbone import PackedBackbone, unsupported_shape
from upt_server.native.library import NUMBERS, SITES, Number
from upt_server.native.pages import LargePages
from upt_server.native.runner import NativeRunner
from upt_server.runner import TorchRunner
from upt_testing import backbones, emulation
from upt_testing.adapters import CLASSIFICATION, tiny_spec
from upt_testing.backbones import HIDDEN, write_tiny_backbone
from upt_testing.mixtures import (
    ALL_TARGETS,
    ROWS,
    mixed_rows,
    mixed_specs,
    random_row,
    ready,
    torch_tensors,
)
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import Encoder, load_encoder
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec, Bottleneck, Family, Lora, Prefix

Logits = list[NDArray[np.float32]]
Make = Callable[..., NativeRunner]

EXACT = 1e-4


def skip_without(number: Number) -> None:
    if reason := library.missing_for(number):
        pytest.skip(reason)


UNITS = {"avx2": "AVX2", "avx512": "AVX-512", "amx": "AMX"}  # by what they are to what they say


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = emulation.find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler here")
    return emulation.build(compiler, tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="module", autouse=True, params=list(UNITS))
def unit(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let one unit of the CPU multiply; what it lacks is emulated."""
    name: str = request.param
    absent = {"avx2": ("avx512", "amx"), "avx512": ("amx",), "amx": ()}[name]

    def known(facts: Iterable[str]) -> str:
        return " ".join(fact for fact in facts if not fact.startswith(absent))

    own = known(library._cpu_facts().split())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(library, "_cpu_facts", lambda: own)
        forget()
        lacking = library.missing_for("fp32")
        assert "cannot be loaded" not in (lacking or ""), lacking
        if lacking and name != "avx2":  # that one's layouts are tested anywhere
            pytest.skip(lacking)
        if not lacking and library.unit() != UNITS[name]:
            kernel: Path = request.getfixturevalue("emulated")
            patched.setattr(library, "_cpu_facts", lambda: known(library.ALL_FEATURES))
            patched.setattr(library, "_built_for", lambda _: kernel)
            forget()
        yield name
    forget()


def forget() -> None:
    library.load_kernel.cache_clear()
    library._is_wide.cache_clear()


@pytest.fixture(scope="module", params=["bert", "roberta"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    family: Family = request.param
    return write_tiny_backbone(tmp_path_factory.mktemp(family), family, heads=2)


@pytest.fixture(scope="module")
def encoder(backbone: Backbone) -> Encoder:
    return load_encoder(backbone)


@pytest.fixture(scope="module")
def rows(encoder: Encoder, backbone: Backbone) -> list[Row]:
    """Rows of adapters in fp32, then as many of adapters in fp16."""
    specs = mixed_specs(backbone.identity)
    return [
        row
        for dtype in (torch.float32, torch.float16)
        for row in mixed_rows(encoder, specs, dtype=dtype)
    ]


@pytest.fixture(params=NUMBERS)
def number(request: pytest.FixtureRequest) -> Number:
    chosen: Number = request.param
    skip_without(chosen)
    return chosen


def worst(ones: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]) -> float:
    for one, other in zip(ones, others, strict=True):
        assert one.shape == other.shape
        assert np.isfinite(one).all()
    return max(float(np.abs(a - b).max()) for a, b in zip(ones, others, strict=True))


def are_equal(ones: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(ones, others, strict=True))


def by_torch(encoder: Encoder, rows: Sequence[Row]) -> Logits:
    """Answer by torch in fp32, with the same numbers."""
    return TorchRunner(encoder).run(
        [replace(row, adapter=in_fp32(row.adapter)) for row in rows],
    )


def in_fp32(value: Any) -> Any:
    """Widen all tensors in a value of frozen dataclasses and tuples."""
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, tuple):
        return tuple(map(in_fp32, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(
        value, **{each.name: in_fp32(getattr(value, each.name)) for each in fields(value)}
    )


# The same maths as torch


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_kind_of_adapter_agrees_with_torch(
    encoder: Encoder, rows: list[Row], threads: int
) -> None:
    skip_without("fp32")
    runner = NativeRunner(encoder, "fp32", threads=threads)
    assert worst(runner.run(rows), by_torch(encoder, rows)) < EXACT


@pytest.mark.parametrize("index", range(2 * ROWS))
def test_each_kind_of_adapter_alone_agrees_with_torch(
    encoder: Encoder, rows: list[Row], index: int
) -> None:
    skip_without("fp32")
    runner = NativeRunner(encoder, "fp32", threads=2)
    assert worst(runner.run([rows[index]]), by_torch(encoder, [rows[index]])) < EXACT


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh"])
def test_the_encoders_other_activations_agree_with_torch(
    backbone: Backbone, rows: list[Row], activation: str
) -> None:
    skip_without("fp32")
    config = backbone.config.model_copy(update={"hidden_act": activation})
    encoder = load_encoder(
        Backbone(
            directory=backbone.directory,
            config=config,
            identity=backbone.identity,
        )
    )
    runner = NativeRunner(encoder, "fp32", threads=2)
    assert worst(runner.run(rows[:8]), by_torch(encoder, rows[:8])) < EXACT


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 13, 14, 15, 16, 17, 31, 33, 57, 64, 65, 300])
def test_every_length_of_row_agrees_with_torch(
    encoder: Encoder, rows: list[Row], length: int
) -> None:
    skip_without("fp32")
    row = random_row(encoder, rows[-1].adapter, length, seed=length)
    runner = NativeRunner(encoder, "fp32", threads=2)
    assert worst(runner.run([row]), by_torch(encoder, [row])) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rank", "size"), [(1, 1), (15, 16), (16, 17), (17, 33), (40, 100)])
def test_every_width_of_a_component_agrees_with_torch(
    encoder: Encoder, backbone: Backbone, rank: int, size: int, dtype: torch.dtype
) -> None:
    skip_without("fp32")
    spec = tiny_spec(
        backbone=backbone.identity,
        lora=Lora(rank=rank, alpha=rank, targets=ALL_TARGETS, gated=True),
        bottleneck=Bottleneck(size=size, activation="silu", gated=True),
        head=CLASSIFICATION,
    )
    row = random_row(encoder, ready(spec, seed=rank, dtype=dtype), 40, seed=size)
    runner = NativeRunner(encoder, "fp32", threads=2)
    assert worst(runner.run([row]), by_torch(encoder, [row])) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("outlier", [1.0, 100.0])
def test_a_wide_backbone_agrees_with_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outlier: float, dtype: torch.dtype
) -> None:
    """AMX multiplies 1,536 inputs at a time, as integers of which the largest decides the scale."""
    skip_without("fp32")
    monkeypatch.setattr(backbones, "HIDDEN", 832)
    monkeypatch.setattr(backbones, "INTERMEDIATE", 1616)
    wide = write_tiny_backbone(tmp_path, "bert", heads=26)
    encoder = load_encoder(wide)
    for layer in encoder.layers:
        layer.attention_norm.weight[5] *= outlier
        layer.ffn_norm.weight[7] *= outlier
    specs = mixed_specs(wide.identity)
    adapters = [
        prepare(
            spec, {name: 0.1 * each for name, each in torch_tensors(spec, 0).items()}, dtype=dtype
        )
        for spec in (specs[0], specs[-1])
    ]
    rows = [
        random_row(encoder, adapter, length, seed=length)
        for length in (1, 40, 97, 250)
        for adapter in adapters
    ]
    expected = by_torch(encoder, rows)
    largest = max(float(np.abs(each).max()) for each in expected)
    runner = NativeRunner(encoder, "fp32", threads=2)
    assert worst(runner.run(rows), expected) < EXACT * max(1.0, largest)


def test_int8_agrees_with_the_int8_that_training_computes(
    backbone: Backbone, encoder: Encoder, rows: list[Row]
) -> None:
    skip_without("int8")
    runner = NativeRunner(encoder, "int8", threads=2)
    imitation = by_torch(load_encoder(backbone, is_int8=True), rows)
    differences = [
        float(np.abs(one - other).max())
        for one, other in zip(runner.run(rows), imitation, strict=True)
    ]
    # a last bit may round to the neighbouring step of int8, which then spreads; seldom far
    assert np.median(differences) < 0.01
    distance_to_exact = worst(runner.run(rows), by_torch(encoder, rows))
    assert max(differences) < distance_to_exact


# Batch mates change nothing, to the last bit, in every precision


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    chosen=st.lists(st.integers(0, 2 * ROWS - 1), min_size=1, max_size=ROWS),
    threads=st.integers(1, 4),
)
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_rows_answer_is_the_same_to_the_bit_in_any_batch(
    encoder: Encoder, rows: list[Row], kind: Number, chosen: list[int], threads: int
) -> None:
    skip_without(kind)
    runner = NativeRunner(encoder, kind, threads=threads)
    answers = runner.run([rows[index] for index in chosen])
    alone = NativeRunner(encoder, kind, threads=1)
    assert are_equal(answers, [alone.run([rows[index]])[0] for index in chosen])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_that_run_in_groups_answer_as_alone(
    encoder: Encoder, rows: list[Row], number: Number, threads: int
) -> None:
    longest = max(len(row.ids) for row in rows)
    many = rows * 8  # enough that no row is a large part of a thread's work
    assert sum(len(row.ids) for row in many) > 2 * 4 * threads * longest
    alone = NativeRunner(encoder, number, threads=1)
    expected = [alone.run([row])[0] for row in rows] * 8
    assert are_equal(NativeRunner(encoder, number, threads=threads).run(many), expected)


@pytest.mark.parametrize(("length", "threads"), [(200, 1), (256, 2)])
def test_equal_rows_that_are_longer_than_a_group_answer_as_alone(
    encoder: Encoder, rows: list[Row], number: Number, length: int, threads: int
) -> None:
    adapters = [rows[ROWS - 1].adapter, rows[-1].adapter]  # of fp32 and of fp16
    many = [random_row(encoder, adapters[i % 2], length, seed=i) for i in range(16 * threads)]
    alone = NativeRunner(encoder, number, threads=1)
    expected = [alone.run([row])[0] for row in many]
    assert are_equal(NativeRunner(encoder, number, threads=threads).run(many), expected)


def test_numbers_that_overflow_stay_visible_and_change_no_batch_mate(
    encoder: Encoder, backbone: Backbone, rows: list[Row], number: Number
) -> None:
    spec = mixed_specs(backbone.identity)[-1]
    tensors = {name: tensor * 1e37 for name, tensor in torch_tensors(spec, 0).items()}
    overflowing = prepare(spec, tensors, dtype=torch.float32)
    bad = Row(ids=rows[0].ids, type_ids=rows[0].type_ids, adapter=overflowing)
    runner = NativeRunner(encoder, number, threads=2)
    wrong, *others = runner.run([bad, *rows])
    assert not np.isfinite(wrong).all()
    assert are_equal(others, runner.run(rows))


def test_what_is_no_number_in_one_head_alone_stays_visible(
    encoder: Encoder, backbone: Backbone, number: Number
) -> None:
    spec = tiny_spec(
        backbone=backbone.identity, prefix=Prefix(length=3, gated=False), head=CLASSIFICATION
    )
    tensors = torch_tensors(spec, 0)
    for name, tensor in tensors.items():
        if "prefix" in name:
            tensor[..., : HIDDEN // 2] = torch.nan
    broken = prepare(spec, tensors, dtype=torch.float32)
    row = random_row(encoder, broken, 20, seed=0)
    (wrong,) = NativeRunner(encoder, number, threads=1).run([row])
    assert np.isnan(wrong).all()


@pytest.mark.parametrize("field", ["ids", "type_ids"])
def test_an_id_outside_its_table_is_refused(
    encoder: Encoder, rows: list[Row], number: Number, field: str
) -> None:
    values = {"ids": [1, 2], "type_ids": [0, 0]} | {field: [0, 10_000]}
    row = Row(ids=values["ids"], type_ids=values["type_ids"], adapter=rows[0].adapter)
    if field == "type_ids" and encoder.embeddings.type.shape[0] == 1:
        pytest.skip("the backbone has one type and looks at none")
    with pytest.raises(IndexError, match="outside the backbone's tables"):
        NativeRunner(encoder, number, threads=1).run([row])


def test_a_row_longer_than_the_backbone_is_refused(encoder: Encoder, rows: list[Row]) -> None:
    skip_without("fp32")
    row = Row(ids=[1] * 321, type_ids=[0] * 321, adapter=rows[0].adapter)
    with pytest.raises(IndexError, match="outside the backbone's tables"):
        NativeRunner(encoder, "fp32", threads=1).run([row])


def test_what_an_earlier_batch_left_behind_changes_nothing(
    encoder: Encoder, rows: list[Row], number: Number
) -> None:
    runner = NativeRunner(encoder, number, threads=2)
    first = runner.run(rows)
    runner._workspace.fill(np.nan)
    assert are_equal(runner.run(rows), first)


# Real adapters on the real backbone


@pytest.fixture(scope="module")
def real() -> tuple[Encoder, list[tuple[AdapterSpec, dict[str, Tensor]]]]:
    catalogue = embedded_catalogue()
    names = catalogue.listing().versions
    loaded = [catalogue.load(catalogue.resolve(Reference(name=name))) for name in names]
    return load_encoder(resolve_backbone()), [
        (spec, {name: torch.from_numpy(array) for name, array in arrays.items()})
        for spec, arrays in loaded
    ]


# measured on rows like these, relative to the largest logit of the row: bf16 0.03, int8 0.16, and
# 0.25 where adapters are multiplied as bf16 beside it
@pytest.mark.parametrize(("kind", "most"), [("fp32", 1e-4), ("bf16", 0.06), ("int8", 0.3)])
def test_shipped_adapters_answer_as_with_torch(
    real: tuple[Encoder, list[tuple[AdapterSpec, dict[str, Tensor]]]], kind: Number, most: float
) -> None:
    skip_without(kind)
    encoder, loaded = real
    lengths = np.random.RandomState(0).randint(8, 128, 4)

    def answers(runner: TorchRunner | NativeRunner) -> Logits:
        adapters = [runner.prepare(*each) for each in loaded]
        return runner.run(
            [
                random_row(encoder, adapter, int(length), seed=index)
                for index, length in enumerate(lengths)
                for adapter in adapters
            ]
        )

    given = answers(NativeRunner(encoder, kind, threads=2))
    for one, other in zip(given, answers(TorchRunner(encoder)), strict=True):
        assert np.abs(one - other).max() <= most * max(1.0, float(np.abs(other).max()))


# The kernel's forms, on any machine


def unpacked(packed: library.Linear, number: Number, *, is_tiled: bool) -> NDArray[np.float32]:
    """Read a packed weight back as [output, input]."""
    inputs, outputs = packed.inputs, packed.outputs
    padded = -(-outputs // library.panel()) * library.panel()
    is_split = is_tiled and number == "fp32"
    each = 4 if is_split else {"fp32": 1, "bf16": 2, "int8": 4}[number]
    width, planes = (
        (library.TILE_WORDS, 3)
        if is_split
        else (library.TILE_PANEL if is_tiled else library.panel(), 1)
    )
    words = inputs // each
    if is_tiled:
        words = -(-words // library.TILE_WORDS) * library.TILE_WORDS
    tiles = words // library.TILE_WORDS if is_split else 1
    shape = (padded // width, tiles, planes, words // tiles, width)
    raw = np.ctypeslib.as_array(packed.weight, shape)
    if each == 1:
        values = raw.view(np.float32)[..., None]
    elif each == 2:
        halves = raw.view(np.uint16).reshape(*shape, each)
        values = (halves.astype(np.uint32) << 16).view(np.float32)
    else:
        scale = np.ctypeslib.as_array(packed.scale, (padded,)).astype(np.float64)
        worth = np.array([1.0, 2.0**-8, 2.0**-16][:planes])[:, None, None, None]
        integers = raw.view(np.int8).reshape(*shape, each) * worth
        values = integers * scale.reshape(-1, 1, 1, 1, width, 1)
    summed = values.sum(2, dtype=np.float64).reshape(-1, words, width, each)
    whole = summed.transpose(0, 2, 1, 3).reshape(padded, words * each)
    assert not whole[outputs:].any()
    assert not whole[:, inputs:].any()
    return np.asarray(whole[:outputs, :inputs], np.float32)


@pytest.mark.parametrize(
    ("kind", "is_tiled", "error"),
    [
        ("fp32", False, 0.0),
        ("fp32", True, 2**-23),  # half a step of 24 bits, and float's own rounding
        ("bf16", False, 2**-8),
        ("bf16", True, 2**-8),
        ("int8", False, 1 / 254),
        ("int8", True, 1 / 254),
    ],
)
def test_packed_weights_are_the_backbones(
    encoder: Encoder, kind: Number, is_tiled: bool, error: float
) -> None:
    packed = PackedBackbone(encoder, kind, is_tiled=is_tiled)
    layer = packed.struct.layers[1]
    for name in ("qkv", "attention_out", "ffn_up", "ffn_down"):
        weight, bias = getattr(encoder.layers[1], name).parameters()
        linear = getattr(layer, name)
        largest = weight.abs().amax(1, keepdim=True).numpy()
        difference = np.abs(unpacked(linear, kind, is_tiled=is_tiled) - weight.numpy())
        assert (difference <= error * largest * 1.001).all()
        given_bias = np.ctypeslib.as_array(linear.bias, (linear.outputs,))
        assert np.array_equal(given_bias, bias.numpy())


@pytest.mark.parametrize("is_tiled", [False, True])
def test_int8_weights_come_with_their_sums(encoder: Encoder, is_tiled: bool) -> None:
    packed = PackedBackbone(encoder, "int8", is_tiled=is_tiled)  # owns what its structures point at
    linear = packed.struct.layers[0].ffn_down
    sums = np.ctypeslib.as_array(linear.sum, (HIDDEN,))
    assert np.allclose(sums, unpacked(linear, "int8", is_tiled=is_tiled).sum(1), atol=1e-4)


@pytest.mark.parametrize("unit", ["amx"], indirect=True)
def test_int8_answers_the_same_to_the_bit_whoever_multiplies(
    encoder: Encoder, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_fp32 = rows[:ROWS]  # whose adapters AMX leaves to the vector unit
    by_tiles = NativeRunner(encoder, "int8", threads=2).run(of_fp32)
    monkeypatch.setattr(library, "has_tiles", lambda: False)
    assert are_equal(by_tiles, NativeRunner(encoder, "int8", threads=2).run(of_fp32))


def test_a_table_points_at_the_adapters_numbers(rows: list[Row]) -> None:
    adapter = rows[ROWS - 1].adapter  # LoRA everywhere, prefix, bottleneck, prompt
    table = AdapterTable(adapter, LargePages())
    assert table.sites == (1 << len(SITES)) - 1
    for index, site in enumerate(SITES):
        part = getattr(adapter.layers[1], site)
        struct = table.struct.layers[1].sites[index]
        assert (struct.rank + struct.gates) == part.down.shape[1]
        pointer = ctypes.cast(struct.down, ctypes.POINTER(ctypes.c_float))
        down = np.ctypeslib.as_array(pointer, tuple(part.down.shape))
        assert np.array_equal(down, part.down.numpy())
    assert list(table.struct.layers[0].sites[0].part_start) == [0, 2, 4]


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_an_adapter_published_in_fp16_takes_half_the_memory_and_answers_the_same(
    encoder: Encoder, backbone: Backbone, kind: Number, unit: str
) -> None:
    """To the bit, but where AMX multiplies what is fp16 and the vector unit what is not."""
    skip_without(kind)
    runner = NativeRunner(encoder, kind, threads=2)
    for seed, spec in enumerate(mixed_specs(backbone.identity)):
        tensors = {name: each.half() for name, each in torch_tensors(spec, seed).items()}
        whole = prepare(spec, tensors, dtype=torch.float32)
        half = runner.prepare(spec, tensors)
        assert isinstance(half, NativeAdapter)
        if spec.bottleneck is not None and (spec.lora is None or spec.lora.gated):
            assert half.size_bytes() < 0.7 * whole.size_bytes()
        if spec.lora is not None and not spec.lora.gated and spec.lora.alpha != spec.lora.rank:
            assert not half.table.struct.is_half
        row = random_row(encoder, whole, 17, seed=seed)
        answers = runner.run([Row(ids=row.ids, type_ids=row.type_ids, adapter=half)])
        if unit != "amx":
            assert are_equal(runner.run([row]), answers)
        elif kind == "fp32":
            assert worst(by_torch(encoder, [row]), answers) < EXACT


def test_the_parts_of_a_fused_product_are_found_by_target(backbone: Backbone) -> None:
    lora = Lora(rank=3, alpha=3.0, targets=("v", "q"), gated=True)
    spec = tiny_spec(backbone=backbone.identity, lora=lora, head=CLASSIFICATION)
    table = AdapterTable(ready(spec, seed=0, dtype=torch.float32), LargePages())
    assert list(table.struct.layers[0].sites[0].part_start) == [0, -1, 3]
    assert table.sites == 1


@pytest.mark.skipif(library.missing_for("fp32") is not None, reason="there is no kernel here")
@pytest.mark.parametrize("machine", ["avx2", "avx512"])
def test_both_libraries_are_built_of_this_source(machine: str) -> None:
    """So that a library that this CPU cannot run is at least known to compile."""
    source = hashlib.sha256(b"".join(file.read_bytes() for file in library.SOURCES)).hexdigest()
    file = Path(library.__file__).with_name(f"libupt_kernel_{machine}.so")
    assert source.encode() in file.read_bytes()


def test_sizes_that_the_kernel_has_no_code_for_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = write_tiny_backbone(tmp_path, heads=4).config
    assert unsupported_shape(odd) == "multiples are needed, got head size 8 (of 16)"
    odd = odd.model_copy(update={"hidden_size": 48, "num_attention_heads": 3})
    monkeypatch.setattr(library, "panel", lambda: 32)
    assert unsupported_shape(odd) == "multiples are needed, got hidden size 48 (of 32)"
    assert unsupported_shape(resolve_backbone().config) is None
