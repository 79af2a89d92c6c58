"""What people and other libraries find on a Hub, and what upt takes from theirs."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from parity.foreign import CHECKPOINTS
from upt_testing.adapters import (
    BOTTLENECK,
    LORA,
    PREFIX,
    PROMPT,
    SPAN,
    random_tensors,
    tiny_spec,
)
from upt_testing.hub_client import push
from upt_testing.hubs import GitRepository, Hub
from upt_testing.stores import publish
from upt_zoo.backbone import Backbone
from upt_zoo.errors import (
    AdapterNotFound,
    Corrupt,
    InvalidInput,
    InvalidReference,
)
from upt_zoo.interop.choices import Choices
from upt_zoo.interop.library import Library, import_checkpoint
from upt_zoo.local.drafts import read_drafts
from upt_zoo.local.store import Store
from upt_zoo.remote.remotes import Remotes
from upt_zoo.spec import AdapterSpec, Lora

QV = CHECKPOINTS / "peft" / "bert-qv"
CARD = "# Tiny\n\nAn adapter for tests: ä.\n"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content:DeprecationWarning"  # huggingface-hub's own, when it uploads by LFS
)


# What people and other libraries find


def page(repository: GitRepository, revision: str) -> tuple[dict[str, object], str]:
    _, metadata, text = repository.read("README.md", revision).decode().split("---\n", 2)
    read = yaml.safe_load(metadata)
    assert isinstance(read, dict)
    return read, text


def test_the_page_says_what_it_is_how_good_and_how_to_use_it(
    remotes: Remotes, hub: Hub, store: Store, remote: str, owner: str
) -> None:
    spec = tiny_spec(lora=LORA)
    stored = store.publish(spec, random_tensors(spec, 0), CARD, version="1.0.0")
    push(remotes, store, remote)
    metadata, text = page(hub.repository(f"{owner}/tiny"), "1.0.0")
    name, results = model_index_to_eval_results(metadata["model-index"])  # type: ignore[arg-type]
    assert name == "tiny"
    assert {
        f"{each.dataset_split}/{each.metric_type}": each.metric_value for each in results
    } == spec.lineage.metrics
    assert {each.dataset_name for each in results} == {spec.lineage.data}
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == "upt/tiny"
    assert metadata["pipeline_tag"] == "text-classification"
    assert text.startswith(f"\n{CARD}")
    assert f"upt-zoo pull {remote}/tiny:1.0.0@{stored.digest}\n" in text
    assert f'"{owner}/tiny", source="hf", version="1.0.0"' in text


def test_a_licence_and_a_backbone_that_the_hub_cannot_know_are_said_otherwise(
    remotes: Remotes, hub: Hub, store: Store, remote: str, owner: str
) -> None:
    spec = tiny_spec(lora=Lora(rank=2, alpha=4, targets=("o",), gated=True), head=SPAN)
    lineage = spec.lineage.model_copy(update={"licence": "Ours, of 2026"})
    backbone = spec.backbone.model_copy(update={"hub_id": "/srv/backbones/tiny"})
    spec = spec.model_copy(update={"lineage": lineage, "backbone": backbone})
    store.publish(spec, random_tensors(spec, 0), CARD, version="1.0.0")
    push(remotes, store, remote)
    repository = hub.repository(f"{owner}/tiny")
    metadata, text = page(repository, "main")
    assert (metadata["license"], metadata["license_name"]) == ("other", "ours-of-2026")
    assert metadata["pipeline_tag"] == "question-answering"
    assert metadata["library_name"] == "upt"
    assert "base_model" not in metadata
    assert "```python" not in text
    assert not any("adapter" in path for path in repository.files())  # no library can say it


def test_the_folder_of_the_adapter_can_be_registered(
    remotes: Remotes, hub: Hub, store: Store, home: Store, tmp_path: Path, remote: str, owner: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    repository = hub.repository(f"{owner}/tiny")
    for path in repository.files() - {".gitattributes"}:
        file = tmp_path / "clone" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(repository.read(path))
    drafts = read_drafts([tmp_path / "clone" / "upt"], version="1.0.0")
    assert home.publish_all(drafts) == (stored,)


def test_the_files_beside_it_are_those_of_a_library_that_can_express_it(
    remotes: Remotes, hub: Hub, store: Store, backbone: Backbone, remote: str, owner: str
) -> None:
    """A version that PEFT can express, then one that only AdapterHub can: the rest goes."""
    made = import_checkpoint(
        Library.PEFT, QV, Choices(task="mnli", name="tiny"), backbone=str(backbone.directory)
    )
    store.publish(made.spec, made.tensors, made.card, version="1.0.0")
    push(remotes, store, remote)
    spec = tiny_spec(lora=LORA, prefix=PREFIX, bottleneck=BOTTLENECK, prompt=PROMPT)
    store.publish(spec, random_tensors(spec, 0), CARD, version="2.0.0")
    push(remotes, store, remote)
    repository = hub.repository(f"{owner}/tiny")
    with_peft, with_adapterhub = (
        {path for path in repository.files(version) if "/" not in path}
        for version in ("1.0.0", "2.0.0")
    )
    always = {"README.md", ".gitattributes", "adapter_config.json"}
    assert with_peft == always | {"adapter_model.safetensors"}
    assert with_adapterhub == always | {
        *("adapter.safetensors", "head_config.json", "model_head.safetensors")
    }
    assert [page(repository, version)[0]["library_name"] for version in ("1.0.0", "2.0.0")] == [
        *("peft", "adapter-transformers")
    ]
    assert f'"{owner}/tiny", revision="1.0.0"' in page(repository, "1.0.0")[1]
    assert "num_labels=3" in page(repository, "1.0.0")[1]


# Checkpoints of others


def take_in(remotes: Remotes, source: str, backbone: Backbone) -> AdapterSpec:
    directory, _ = remotes.fetch_checkpoint(source)
    choices = Choices(task="mnli", name="tiny")
    found = import_checkpoint(Library.PEFT, directory, choices, backbone=str(backbone.directory))
    return found.spec


def test_a_checkpoint_is_imported_from_the_hub_at_a_revision(
    remotes: Remotes, hub: Hub, backbone: Backbone, home: Store, owner: str, tmp_path: Path
) -> None:
    repository = hub.repository(f"{owner}/lora")
    repository.create()
    files: dict[str, bytes | None] = {file.name: file.read_bytes() for file in QV.iterdir()}
    commit = repository.commit("Add", {**files, "adapter_model.bin": b"pickle", "x.txt": b"?"})
    repository.git("branch", "wip", "main")
    repository.commit("Break", {"adapter_config.json": b"not JSON"})
    local = import_checkpoint(
        Library.PEFT, QV, Choices(task="mnli", name="tiny"), backbone=str(backbone.directory)
    )
    for revision in (commit, "wip"):
        assert take_in(remotes, f"hf://{owner}/lora@{revision}", backbone) == local.spec
    with pytest.raises(Corrupt, match="not valid JSON"):
        take_in(remotes, f"hf://{owner}/lora", backbone)
    asked = {path.rpartition("/")[2] for _, path in hub.requests if f"{owner}/lora/" in path}
    assert not asked & {"adapter_model.bin", "x.txt"}  # never fetched


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("hf://{owner}/nothing", AdapterNotFound),
        ("hf://{owner}/empty", InvalidInput),
        ("hf://{owner}/empty@9", AdapterNotFound),
        ("hf://{owner}/empty@../x", InvalidReference),
        ("hf://{owner}", InvalidReference),
        ("hf://{owner}/a/b", InvalidReference),
    ],
)
def test_what_is_no_checkpoint_on_the_hub_is_refused(
    remotes: Remotes, hub: Hub, owner: str, source: str, error: type[Exception]
) -> None:
    hub.repository(f"{owner}/empty").create()
    with pytest.raises(error):
        remotes.fetch_checkpoint(source.format(owner=owner))
