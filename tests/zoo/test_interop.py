"""What cannot be expressed is refused with its field and the reason; nothing half-written stays."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from parity.foreign import CHECKPOINTS
from parity.foreign_backbones import write_pooled_backbone
from upt_testing.backbones import write_tiny_backbone
from upt_zoo.backbone import Backbone
from upt_zoo.errors import BackboneNotFound, Corrupt, InvalidInput, InvalidSpec, UptError
from upt_zoo.interop.choices import Choices
from upt_zoo.interop.library import Checkpoint, Library, import_checkpoint
from upt_zoo.spec import AdapterSpec, Family

FAMILIES: tuple[Family, ...] = ("bert", "roberta")
LABELS = ("no", "maybe", "yes")
Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Backbone]:
    root = tmp_path_factory.mktemp("backbones")
    return {family: write_pooled_backbone(root / family, family) for family in FAMILIES}


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Copy a checkpoint and change the first configuration that has the setting."""

    def copy(case: str, **settings: object) -> Path:
        folder = tmp_path / case
        shutil.copytree(CHECKPOINTS / case, folder)
        for name, value in settings.items():
            assert change(folder, name, value), name
        return folder

    return copy


def change(folder: Path, name: str, value: object) -> bool:
    """Set a key wherever it is, however deep; PEFT's configuration takes any key."""
    changed = False
    for file in sorted(folder.glob("*_config.json")):
        config = json.loads(file.read_text())
        changed |= put(config, name, value)
        file.write_text(json.dumps(config))
    return changed


def put(config: object, name: str, value: object) -> bool:
    if isinstance(config, list):
        return put_in_any(config, name, value)
    if not isinstance(config, dict):
        return False
    if name in config or "peft_type" in config:
        config[name] = value
        return True
    return put_in_any(config.values(), name, value)


def put_in_any(configs: Iterable[object], name: str, value: object) -> bool:
    found = [put(each, name, value) for each in configs]  # in all of them
    return any(found)


def read(
    folder: Path, backbones: dict[Family, Backbone], family: Family = "bert", **choices: object
) -> Checkpoint:
    library = Library.PEFT if (folder / "adapter_model.safetensors").exists() else None
    if library is None:
        library = Library.PEFT if (folder / "adapter_model.bin").exists() else Library.ADAPTERHUB
    values: dict[str, object] = {"task": "tiny", "labels": LABELS, **choices}
    return import_checkpoint(
        library,
        folder,
        Choices(**values),  # type: ignore[arg-type]  # the tests' own shorthand
        backbone=str(backbones[family].directory),
    )


# what cannot be expressed


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("peft_type", "PROMPT_TUNING", "move the positions"),
        ("peft_type", "PREFIX_TUNING", "move the positions"),
        ("peft_type", "P_TUNING", "move the positions"),
        ("peft_type", "IA3", "upt has LoRA"),
        ("use_dora", True, "norms"),
        ("bias", "lora_only", "all adapters share"),
        ("lora_bias", True, "no bias"),
        ("init_lora_weights", "pissa", "all adapters share"),
        ("trainable_token_indices", [3], "all adapters share"),
        ("layer_replication", [[0, 2]], "repeats layers"),
        ("alora_invocation_tokens", [4], "in the middle"),
        ("a_later_invention", {"on": True}, "not known to upt"),
        ("task_type", "TOKEN_CLS", "expected SEQ_CLS or QUESTION_ANS, .* `upt-train init"),
        ("task_type", "FEATURE_EXTRACTION", "to embed texts, train an adapter anew"),
        ("task_type", None, "does not say which head"),
        ("alpha_pattern", {"(a+)+": 3}, "more than a name"),
        ("alpha_pattern", {".*.*.*.*": 3}, "more than a name"),
        ("alpha_pattern", {"[": 3}, "more than a name"),
        ("alpha_pattern", {"*a": 3}, "nothing to repeat"),
        ("alpha_pattern", [3], "expected dict"),
        ("lora_alpha", "six", "expected a number"),
        pytest.param("lora_alpha", 10**400, "expected a finite number", id="huge"),
        ("use_rslora", 1, "expected bool"),
    ],
)
def test_a_setting_of_peft_that_cannot_be_expressed_is_refused(
    setting: str, value: object, reason: str, copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("peft/bert-qv", **{setting: value})
    with pytest.raises(InvalidSpec, match=rf"{setting} = .*{reason}"):
        read(folder, backbones)


@pytest.mark.parametrize(
    ("case", "setting", "value", "reason"),
    [
        ("bert-lora", "architecture", "reft", "no such component"),
        ("bert-lora", "architecture", "mtl_lora", "no such component"),
        ("bert-lora", "composition_mode", "scale", "IA"),
        ("bert-lora", "use_dora", True, "norms"),
        ("bert-lora", "vera_d", 0.1, "VeRA"),
        ("bert-lora", "attn_matrices", ["q", "x"], "some of q, k, v"),
        ("bert-lora", "leave_out", [0, 1], "no linear layer"),
        ("bert-lora", "leave_out", [2], "layers 0 to 1"),
        ("bert-prefix", "leave_out", [0], "attended to"),
        ("bert-prefix", "non_linearity", "leakyrelu", "folds networks"),
        ("bert-prefix", "encoder_prefix", False, "encoders"),
        ("bert-bottleneck", "mh_adapter", True, "after the FFN alone"),
        ("bert-bottleneck", "output_adapter", False, "after the FFN alone"),
        ("bert-bottleneck", "original_ln_before", False, "after the FFN alone"),
        ("bert-bottleneck", "original_ln_after", False, "after the FFN alone"),
        ("bert-bottleneck", "residual_before_ln", "post_add", "after the FFN alone"),
        ("bert-bottleneck", "is_parallel", True, "not its input"),
        ("bert-bottleneck", "ln_after", True, "no LayerNorm of its own"),
        ("bert-bottleneck", "inv_adapter", "nice", "behind the embeddings"),
        ("bert-bottleneck", "phm_layer", True, "hypercomplex"),
        ("bert-bottleneck", "non_linearity", "gelu_new", "upt has relu"),
        ("bert-everything", "combine", "prefix", "first vector"),
        ("bert-everything", "combine", "suffix", "before or after"),
        ("bert-unipelt", "head_type", "tagging", "upt has classification"),
        ("bert-unipelt", "layers", 3, "one layer, or two"),
        ("bert-lora", "layers", 2, "a pooler is one"),
        ("bert-unipelt", "activation_function", "relu", "tanh"),
        ("bert-static", "model_class", "BertForTokenClassification", "reads the heads of"),
    ],
)
def test_a_setting_of_adapterhub_that_cannot_be_expressed_is_refused(
    case: str,
    setting: str,
    value: object,
    reason: str,
    copy: Copy,
    backbones: dict[Family, Backbone],
) -> None:
    folder = copy(f"adapterhub/{case}", **{setting: value})
    labels = None if case == "bert-prefix" else LABELS
    with pytest.raises(InvalidSpec, match=rf"{setting}.*{reason}"):
        read(folder, backbones, labels=labels)


def test_two_components_of_a_kind_are_refused(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("adapterhub/bert-everything")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["config"]["configs"].append(config["config"]["configs"][0])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidSpec, match=r"architecture = lora .* one component of a kind"):
        read(folder, backbones)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("bert.embeddings.word_embeddings.weight", (53, 32), "no place for it"),
        ("bert.encoder.layer.0.output.dense.weight", (32, 64), "no place for it"),
        ("classifier.lora_A.weight", (4, 32), "classifier.lora_B.weight is missing"),
        ("bert.encoder.layer.7.attention.self.query", None, "has 2 layers"),
        ("bert.encoder.layer.0.attention.self.other", None, "upt adapts the linear layers"),
        ("bert.encoder.layer.0.intermediate.dense", None, "the backbone has"),
    ],
)
def test_a_tensor_without_a_place_is_refused(
    name: str,
    shape: tuple[int, ...] | None,
    reason: str,
    copy: Copy,
    backbones: dict[Family, Backbone],
) -> None:
    folder = copy("peft/bert-qv")
    file = folder / "adapter_model.safetensors"
    shapes = {name: shape} if shape else {f"{name}.lora_{x}.weight": (4, 4) for x in "AB"}
    added = {f"base_model.model.{each}": np.ones(size, np.float32) for each, size in shapes.items()}
    save_file(load_file(file) | added, file)
    with pytest.raises(UptError, match=reason):
        read(folder, backbones)


def test_an_adapter_of_another_width_is_refused(copy: Copy, tmp_path: Path) -> None:
    folder = copy("peft/roberta-qv")
    file = folder / "adapter_model.safetensors"
    narrow = {name: tensor[..., :16] for name, tensor in load_file(file).items()}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in narrow.items()}, file)
    backbone = write_tiny_backbone(tmp_path / "backbone", "roberta")
    with pytest.raises(InvalidSpec, match="the backbone"):
        read(folder, {"roberta": backbone}, "roberta")


def test_an_adapter_of_another_family_is_refused(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    with pytest.raises(InvalidSpec, match="of a bert model, got those of a roberta one"):
        read(copy("peft/roberta-qv"), backbones)
    with pytest.raises(InvalidSpec, match=r"model_type = bert .* roberta"):
        read(copy("adapterhub/bert-lora"), backbones, "roberta")


def test_a_head_on_a_pooler_that_is_nowhere_is_refused(copy: Copy, tmp_path: Path) -> None:
    backbone = write_tiny_backbone(tmp_path / "backbone")
    with pytest.raises(InvalidSpec, match="pooler"):
        read(copy("peft/bert-qv"), {"bert": backbone})
    with pytest.raises(InvalidSpec, match=r"use_pooler .* pooler"):
        read(copy("adapterhub/bert-lora"), {"bert": backbone})


def test_a_checkpoint_that_names_no_backbone_needs_one(copy: Copy) -> None:
    folder = copy("peft/bert-qv", base_model_name_or_path=None)
    with pytest.raises(InvalidSpec, match="backbone: the checkpoint names none"):
        import_checkpoint(Library.PEFT, folder, Choices(task="tiny"))
    with pytest.raises(BackboneNotFound, match="upt/tiny-bert"):
        import_checkpoint(Library.PEFT, CHECKPOINTS / "peft" / "bert-qv", Choices(task="tiny"))


def test_layers_that_repeat_another_prefix_are_refused(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("adapterhub/bert-prefix")
    file = folder / "pytorch_adapter.bin"
    tensors = {name: tensor.clone() for name, tensor in torch.load(file).items()}
    copied = next(name for name in tensors if ".pool." in name)
    tensors[copied] += 1
    torch.save(tensors, file)
    with pytest.raises(InvalidSpec, match="expected a copy"):
        read(folder, backbones, labels=None)


# what is said in another way


def test_old_files_of_adapterhub_are_read_as_its_library_reads_them(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    before = copy("adapterhub/bert-lora", version="adapters.1.0.1")
    lora = read(before, backbones).spec.lora
    assert lora is not None
    assert lora.alpha == lora.rank == 4  # it was saved with alpha 6, which was not applied


def test_activations_had_other_names_before_files_had_versions(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("adapterhub/bert-bottleneck")
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["version"]
    file.write_text(json.dumps(config))
    with pytest.raises(InvalidSpec, match="it means gelu_new"):
        read(folder, backbones, labels=None)
    assert change(folder, "non_linearity", "gelu_orig")
    bottleneck = read(folder, backbones, labels=None).spec.bottleneck
    assert bottleneck is not None
    assert bottleneck.activation == "gelu"


def test_pickled_and_half_precision_files_hold_the_same_numbers(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("peft/bert-qv")
    file = folder / "adapter_model.safetensors"
    halves = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in load_file(file).items()}
    save_torch_file(halves, file)
    safe = read(folder, backbones)
    file.unlink()
    torch.save(halves, folder / "adapter_model.bin")
    pickled = read(folder, backbones)
    assert safe.spec == pickled.spec
    for name, tensor in safe.tensors.items():
        assert np.array_equal(tensor, pickled.tensors[name]), name
    query = halves["base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"]
    assert np.array_equal(safe.tensors["lora.q.a"][0], query.float().numpy())


def test_the_catalogue_says_what_the_checkpoint_does_not(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    spec = read(copy("peft/roberta-qv"), backbones, "roberta", task="mnli", labels=None).spec
    assert spec.head.labels == ("entailment", "neutral", "contradiction")
    assert spec.task.fields == ("premise", "hypothesis")
    assert spec.task.metric == "accuracy"


def test_labels_that_are_named_nowhere_are_asked_for(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("peft/roberta-qv")
    with pytest.raises(InvalidSpec, match="3 outputs"):
        read(folder, backbones, "roberta", labels=None)
    with pytest.raises(InvalidSpec, match="3 outputs"):
        read(folder, backbones, "roberta", labels=("yes", "no"))
    with pytest.raises(InvalidSpec, match="labels repeat"):
        read(folder, backbones, "roberta", labels=("yes", "no", "no"))
    spec = read(folder, backbones, "roberta", kind="multi_label").spec
    assert spec.head.kind == "multi_label"


def test_choices_that_contradict_the_checkpoint_are_refused(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("peft/roberta-span")
    with pytest.raises(InvalidSpec, match="span head, got regression"):
        read(folder, backbones, "roberta", kind="regression")
    with pytest.raises(InvalidSpec, match="two fields"):
        read(folder, backbones, "roberta", fields=("text",))
    with pytest.raises(InvalidSpec, match="takes 318"):
        read(folder, backbones, "roberta", max_tokens=319)
    with pytest.raises(InvalidSpec, match=r"TaskInput\.name"):
        read(folder, backbones, "roberta", task="../tiny")


# hostile files


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(name: str, copy: Copy, backbones: dict[Family, Backbone]) -> None:
    folder = copy("peft/bert-qv")
    (folder / name).unlink()
    with pytest.raises(InvalidInput, match=name):
        import_checkpoint(
            Library.PEFT, folder, Choices(task="tiny"), backbone=str(backbones["bert"].directory)
        )


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"r": NaN}', b"\xff", b"[" * 100_000])
def test_a_damaged_configuration_is_refused(
    text: bytes, copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("peft/bert-qv")
    (folder / "adapter_config.json").write_bytes(text)
    with pytest.raises(Corrupt, match="adapter_config"):
        read(folder, backbones)


def nested(depth: int) -> object:
    value: object = 10**30
    for _ in range(depth):
        value = [value]
    return value


def test_an_odd_configuration_can_be_read_again_where_it_is_recorded(
    copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    spec = read(copy("peft/bert-qv", runtime_config=nested(50)), backbones).spec
    assert AdapterSpec.from_json(spec.to_json()) == spec


def test_half_a_character_is_refused(copy: Copy, backbones: dict[Family, Backbone]) -> None:
    for case, setting in (("peft/bert-qv", "revision"), ("adapterhub/bert-lora", "model_class")):
        with pytest.raises(UptError, match=r"surrogate|utf|UTF"):
            read(copy(case, **{setting: "\ud800"}), backbones)


@pytest.mark.parametrize("depth", [220, 300, 900])
def test_a_configuration_that_is_too_deep_is_refused(
    depth: int, copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    with pytest.raises(InvalidSpec, match=r"recipe|recursion"):
        read(copy("peft/bert-qv", runtime_config=nested(depth)), backbones)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:7],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data + b"\0",
    ],
)
def test_a_damaged_file_of_tensors_is_refused(
    damage: Callable[[bytes], bytes], copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("peft/bert-qv")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(Corrupt, match="safetensors"):
        read(folder, backbones)


def test_numbers_that_are_none_are_refused(copy: Copy, backbones: dict[Family, Backbone]) -> None:
    folder = copy("peft/bert-qv")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.classifier.bias"
    save_file({**tensors, name: np.full(3, np.nan, np.float32)}, file)
    with pytest.raises(Corrupt, match="finite"):
        read(folder, backbones)
    save_file({**tensors, name: np.full(3, 1e300)}, file)
    with pytest.raises(Corrupt, match="finite"):
        read(folder, backbones)
    save_file({**tensors, name: np.ones(3, np.int64)}, file)
    with pytest.raises(InvalidSpec, match="floating point"):
        read(folder, backbones)


def test_a_pickled_file_needs_torch(
    copy: Copy, backbones: dict[Family, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("adapterhub/bert-unipelt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InvalidInput, match="needs torch"):
        read(folder, backbones)


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("sprung",)


def test_a_pickled_file_runs_no_code(
    copy: Copy, backbones: dict[Family, Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copy("peft/bert-qv")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"trap": Trap()}, folder / "adapter_model.bin")
    with pytest.raises(Corrupt, match="tensors alone"):
        read(folder, backbones)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(1),
        {"a": 3},
        {"a": torch.zeros(1).expand(2**40)},
        {3: torch.ones(1)},
        {"a": torch.ones(2, dtype=torch.int64)},
    ],
)
def test_a_pickled_file_of_other_things_is_refused(
    value: object, copy: Copy, backbones: dict[Family, Backbone]
) -> None:
    folder = copy("peft/bert-qv")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(value, folder / "adapter_model.bin")
    with pytest.raises((Corrupt, InvalidSpec), match="adapter_model"):
        read(folder, backbones)
