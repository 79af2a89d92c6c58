"""The format's page against the code: a reader that was written from the page alone agrees."""

import ast
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import second_reader
from second_reader import maths
from second_reader.forms import Damaged
from second_reader.maths import Network, backbone_digest
from second_reader.specs import read_spec
from second_reader.stores import Missing
from second_reader.stores import Store as SecondStore
from second_reader.tensors import Tensor
from upt_testing import conformance
from upt_testing.adapters import CURVE, LORA, random_tensors, tiny_spec, with_curve
from upt_testing.backbones import write_tiny_backbone
from upt_testing.curves import REFUSED
from upt_testing.damages import CONTENTS, INDEXES, lived_in
from upt_testing.mixtures import mixed_specs
from upt_testing.stores import publish
from upt_zoo.backbone import resolve_backbone
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.errors import AdapterNotFound, Corrupt
from upt_zoo.local.store import Store
from upt_zoo.references import Reference
from upt_zoo.spec import Family

VECTOR = json.loads(conformance.FILE.read_bytes())
TOLERANCE = 1e-8  # the file has nine decimals
gate = maths.gate
OURS = "vnd.upt.adapter."


def numbers(value: Any) -> list[float]:
    return (
        [each for part in value for each in numbers(part)] if isinstance(value, list) else [value]
    )


def distances(case: dict[str, Any]) -> Iterator[float]:
    """Yield how far the second reader's logits of each row are from the vector's."""
    config, weights = VECTOR["backbone"]["config"], VECTOR["backbone"]["tensors"]
    spec = read_spec(json.dumps(case["spec"]).encode())
    network = Network(config | case["config"], weights, spec, case["tensors"])
    for row in case["rows"]:
        found = numbers(network.logits(row["ids"], row["type_ids"]))
        expected = numbers(row["logits"])
        yield max(abs(a - b) for a, b in zip(found, expected, strict=True))


def test_the_second_reader_knows_nothing_of_ours() -> None:
    for file in Path(second_reader.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                root = name.partition(".")[0]
                assert root == "second_reader" or root in sys.stdlib_module_names, file


# The conformance vector


def test_the_vector_is_what_the_engine_computes() -> None:
    made = json.loads(conformance.text())
    for ours, stored in zip(made["cases"], VECTOR["cases"], strict=True):
        for row, kept in zip(ours["rows"], stored["rows"], strict=True):
            found, expected = numbers(row.pop("logits")), numbers(kept["logits"])
            assert found == pytest.approx(expected, abs=TOLERANCE)
            row["logits"] = kept["logits"]
    assert made == VECTOR


@pytest.mark.parametrize("case", VECTOR["cases"], ids=lambda case: case["says"])
def test_the_page_is_enough_to_compute_the_vector(case: dict[str, Any]) -> None:
    assert max(distances(case)) < TOLERANCE


def test_the_vector_has_every_choice_of_the_format() -> None:
    specs = [case["spec"] for case in VECTOR["cases"]]
    assert {spec["head"]["kind"] for spec in specs} == {
        "classification",
        "multi_label",
        "regression",
        "span",
        "token_classification",
        "embedding",
    }
    there = [each["bottleneck"] for each in specs if each["bottleneck"]]
    assert {each["activation"] for each in there} == {"relu", "gelu", "silu", "tanh"}
    for part in ("lora", "prefix", "bottleneck"):
        assert {each[part]["gated"] for each in specs if each[part]} == {True, False}


def _sigmoid_of_the_mean(x: maths.Matrix, weight: Any, bias: float) -> float:
    return maths.sigmoid(sum(maths.dot(weight, each) for each in x) / len(x) + bias)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gate", _sigmoid_of_the_mean),
        ("gate", lambda x, weight, bias: gate(x[2:], weight, bias)),
        ("gate", lambda x, weight, bias: 1.0),
        ("ACTIVATIONS", maths.ACTIVATIONS | {"gelu": maths.ACTIVATIONS["gelu_new"]}),
    ],
    ids=["sigmoid of the mean", "without the prompt", "no gate", "the other gelu"],
)
def test_the_vector_tells_a_wrong_guess(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(maths, name, value)
    assert max(distances(VECTOR["cases"][0])) > 1e-5


# Stores


def test_it_reads_every_adapter_of_the_catalogue() -> None:
    catalogue = embedded_catalogue()
    second = SecondStore(catalogue.root)
    assert len(second.verify()) == len(catalogue.list()) >= 12
    check_same(second, catalogue)


def check_same(second: SecondStore, store: Store) -> None:
    """Assert that both see the same versions, specs and tensors."""
    versions = [(each.name, each.tag, each.digest) for each in store.list()]
    assert second.versions() == versions
    for reference in store.list():
        spec, tensors = store.load(store.resolve(reference))
        adapter = second.load(second.resolve(f"{reference.name}:{reference.tag}"))
        expected = spec.model_dump(mode="json")
        # ours leaves out the keys of these that are not needed
        partial = {key: expected.pop(key) for key in ("head", "lineage")}
        assert {key: adapter.spec[key] for key in expected} == expected
        for key, values in partial.items():
            assert adapter.spec[key].items() >= values.items()
        assert adapter.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert np.array_equal(_array(adapter.tensors[name]), tensor)


def _array(tensor: Tensor) -> Any:
    return np.array(tensor.numbers, dtype=np.float32).reshape(tensor.shape)


def test_it_reads_adapters_of_every_structure_and_head(tmp_path: Path) -> None:
    store = Store(tmp_path)
    backbone = write_tiny_backbone(tmp_path / "backbone")
    for index, spec in enumerate(mixed_specs(backbone.identity)):
        tensors = conformance.adapter_tensors(spec, index)
        arrays = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        store.publish(spec, arrays, "# Mixed", version=f"1.0.{index}")
    second = SecondStore(tmp_path)
    second.verify()
    check_same(second, store)


def test_it_reads_curves(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for curve in (CURVE, CURVE.model_copy(update={"holdout": None})):
        spec = with_curve(tiny_spec(lora=LORA), curve)
        store.publish(spec, random_tensors(spec, 0), "# Tiny")
    second = SecondStore(tmp_path)
    assert second.verify() == ["tiny:1.0.0", "tiny:1.0.1"]
    check_same(second, store)


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_the_curves_that_ours_refuses(case: str) -> None:
    curve, _ = REFUSED[case]
    values = json.loads(with_curve(tiny_spec(lora=LORA), CURVE).to_json())
    read_spec(json.dumps(values).encode())
    values["lineage"]["curve"] = curve
    with pytest.raises(Damaged):
        read_spec(json.dumps(values).encode())


@pytest.mark.parametrize(
    "text",
    [
        "tiny",
        "other",
        "tiny:1.0.0",
        "tiny:stable",
        "tiny:2.0.0",
        "tiny:01.0.0",
        "tiny:latest",
        "nothing",
        f"tiny@sha256:{'0' * 64}",
        f"tiny:1.0.0@sha256:{'0' * 64}",
    ],
)
def test_a_reference_means_the_same_to_both(tmp_path: Path, text: str) -> None:
    store = lived_in(tmp_path)
    second = SecondStore(tmp_path)
    second.verify()
    try:
        expected: object = store.resolve(Reference.parse(text)).digest
    except AdapterNotFound:
        expected = Missing
    except Corrupt:
        expected = Damaged
    try:
        found: object = second.resolve(text).digest
    except (Missing, Damaged) as error:
        found = type(error)
    assert found == expected


def test_it_reads_what_other_tools_leave_of_an_index(tmp_path: Path) -> None:
    store = lived_in(tmp_path)
    path = tmp_path / "index.json"
    values = json.loads(path.read_bytes())
    for entry in values["manifests"]:
        del entry["artifactType"]
        kept = "org.opencontainers.image.ref.name"
        entry["annotations"] = {kept: entry["annotations"][kept]}
    path.write_text(json.dumps(values))
    second = SecondStore(tmp_path)
    assert second.resolve("tiny:stable").version == "1.0.1"
    second.verify()
    check_same(second, store)


@pytest.mark.parametrize("damage", INDEXES.values(), ids=INDEXES)
def test_it_finds_what_is_wrong_with_an_index(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    lived_in(tmp_path)
    damage(tmp_path)
    with pytest.raises(Damaged):
        SecondStore(tmp_path).verify()


@pytest.mark.parametrize("damage", CONTENTS.values(), ids=CONTENTS)
def test_it_finds_what_is_no_adapter(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(tmp_path)
    with pytest.raises(Damaged):
        SecondStore(tmp_path).verify()


def test_it_finds_every_damaged_blob(tmp_path: Path) -> None:
    stored = publish(Store(tmp_path))
    second = SecondStore(tmp_path)
    for digest in (stored.digest, *(blob.digest for blob in stored.manifest.blobs)):
        path = tmp_path / "blobs" / "sha256" / digest.removeprefix("sha256:")
        whole = path.read_bytes()
        for damaged in (b"", whole[:-1], whole[:-1] + b"?", whole + b" "):
            path.write_bytes(damaged)
            with pytest.raises(Damaged):
                second.verify()
        path.unlink()
        with pytest.raises(Damaged):
            second.verify()
        path.write_bytes(whole)
    assert second.verify() == ["tiny:1.0.0"]


# Backbones


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_it_computes_the_identity_of_a_backbone(tmp_path: Path, family: Family) -> None:
    write_tiny_backbone(tmp_path, family)
    config = json.loads((tmp_path / "config.json").read_bytes())
    for epsilon in (1e-12, 1e-5, 2.5e-6, 0.001):
        config["layer_norm_eps"] = epsilon
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert backbone_digest(tmp_path) == resolve_backbone(str(tmp_path)).identity.digest


def test_it_computes_the_identity_of_the_embedded_backbone() -> None:
    backbone = resolve_backbone()
    assert backbone_digest(backbone.directory) == backbone.identity.digest
