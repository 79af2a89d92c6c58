"""Against a Hub: olah, a real mirror, over git repositories; see ``upt_testing.hubs``."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from huggingface_hub import constants
from huggingface_hub.repocard_data import model_index_to_eval_results

from parity.foreign import CHECKPOINTS
from parity.foreign_backbones import write_pooled_backbone
from upt_testing.adapters import (
    BOTTLENECK,
    LORA,
    PREFIX,
    PROMPT,
    SPAN,
    random_tensors,
    tiny_spec,
)
from upt_testing.fake_registry import FakeRegistry, Handler, running_fake
from upt_testing.hubs import GitRepository, Hub, running_hub
from upt_testing.stores import publish, resolve
from upt_zoo.backbone import Backbone
from upt_zoo.errors import (
    AdapterNotFound,
    Conflict,
    Corrupt,
    InvalidInput,
    InvalidReference,
    Unavailable,
    Untrusted,
)
from upt_zoo.interop.choices import Choices
from upt_zoo.interop.library import Library, import_checkpoint
from upt_zoo.keys import PrivateKey
from upt_zoo.local.drafts import read_drafts
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference
from upt_zoo.remote.hub import Hub as Client
from upt_zoo.remote.remotes import Remotes
from upt_zoo.spec import AdapterSpec, Lora

QV = CHECKPOINTS / "peft" / "bert-qv"
CARD = "# Tiny\n\nAn adapter for tests: ä.\n"
TOKEN = "hf_of_the_tests"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content:DeprecationWarning"  # huggingface-hub's own, when it uploads by LFS
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_pooled_backbone(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture
def owner() -> str:
    """An owner that no other test uses."""
    return f"Team-{uuid.uuid4().hex}"


@pytest.fixture
def remote(owner: str) -> str:
    return f"hf://{owner}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "zoo")


@pytest.fixture
def home(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let huggingface-hub connect, with a cache of the test's own, and upload by LFS."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def remotes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Remotes:
    name_endpoint(monkeypatch, hub.endpoint)
    return Remotes()


def name_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Do what HF_ENDPOINT does when huggingface-hub is imported."""
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def push(remotes: Remotes, store: Store, remote: str, text: str = "tiny") -> StoredAdapter:
    return remotes.push(Reference.parse(text), store, remote)


def pull(remotes: Remotes, store: Store, text: str) -> StoredAdapter:
    return remotes.pull(Reference.parse(text), store)


def blobs(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.root / "blobs" / "sha256").iterdir()}


def heads(repository: GitRepository) -> str:
    return repository.git("for-each-ref")


# There and back


def test_what_is_pushed_is_pulled_to_the_last_byte(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    assert push(remotes, store, remote) == stored
    assert pull(remotes, home, f"{remote}/tiny:1.0.0") == stored
    assert blobs(home) == blobs(store)
    home.verify(stored)
    assert any(agent.startswith("upt-zoo/") for agent in hub.user_agents)


def test_a_bare_name_is_the_newest_version(
    remotes: Remotes, store: Store, home: Store, remote: str
) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        stored = publish(store, version=version, seed=int(version[2]))
        push(remotes, store, remote, stored.reference)
    assert pull(remotes, home, f"{remote}/tiny").version == "1.10.0"


def test_a_repository_may_have_a_name_of_its_own(
    remotes: Remotes, hub: Hub, store: Store, home: Store, owner: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, f"hf://{owner}/MiniLM-for_tests.v2")
    assert pull(remotes, home, f"hf://{owner}/MiniLM-for_tests.v2/tiny") == stored
    assert "upt/manifest.json" in hub.repository(f"{owner}/MiniLM-for_tests.v2").files("1.0.0")
    with pytest.raises(AdapterNotFound, match="it holds tiny"):
        pull(remotes, home, f"hf://{owner}/MiniLM-for_tests.v2/other")


def test_any_revision_can_be_pulled(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str, owner: str
) -> None:
    first = publish(store, version="1.0.0")
    push(remotes, store, remote)
    repository = hub.repository(f"{owner}/tiny")
    commit = repository.resolve("main")
    second = publish(store, version="1.1.0", seed=1)
    push(remotes, store, remote)
    repository.git("branch", "beta", "main")
    assert pull(remotes, home, f"{remote}/tiny:beta") == second
    assert pull(remotes, home, f"{remote}/tiny:{commit}") == first


def test_a_digest_is_found_and_a_tag_must_have_it(
    remotes: Remotes, store: Store, home: Store, remote: str
) -> None:
    first, second = publish(store, version="1.0.0"), publish(store, version="1.0.1", seed=1)
    for stored in (first, second):
        push(remotes, store, remote, stored.reference)
    assert pull(remotes, home, f"{remote}/tiny@{first.digest}") == first
    with pytest.raises(Corrupt, match="expected that digest"):
        pull(remotes, home, f"{remote}/tiny:1.0.0@{second.digest}")


@pytest.mark.parametrize("text", ["other", "tiny:9.9.9", "tiny:beta", f"tiny@sha256:{'0' * 64}"])
def test_what_the_hub_lacks_is_not_found(
    remotes: Remotes, store: Store, home: Store, remote: str, text: str
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    with pytest.raises(AdapterNotFound):
        pull(remotes, home, f"{remote}/{text}")
    assert not home.root.exists()


@pytest.mark.parametrize("remote", ["hf://a/b/c", "hf://", "hf://-a", "hf://a//", "hf://a.../b"])
def test_what_no_repository_can_be_called_is_refused(
    remotes: Remotes, home: Store, remote: str
) -> None:
    with pytest.raises(InvalidReference):
        pull(remotes, home, f"{remote}/tiny")


# Versions never change


def test_pushing_again_changes_nothing_and_other_bytes_are_refused(
    remotes: Remotes, hub: Hub, store: Store, tmp_path: Path, remote: str, owner: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    before = heads(hub.repository(f"{owner}/tiny"))
    assert push(remotes, store, remote) == stored
    other = Store(tmp_path / "other")
    publish(other, version="1.0.0", seed=1)
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        push(remotes, other, remote)
    assert heads(hub.repository(f"{owner}/tiny")) == before


def test_a_branch_or_a_tag_that_moves_cannot_change_a_version_in_the_store(
    remotes: Remotes, hub: Hub, store: Store, home: Store, tmp_path: Path, remote: str, owner: str
) -> None:
    first = publish(store, version="1.0.0")
    push(remotes, store, remote)
    pull(remotes, home, f"{remote}/tiny:main")
    publish(store, version="1.1.0", seed=1)
    push(remotes, store, remote)
    assert pull(remotes, home, f"{remote}/tiny:main").version == "1.1.0"
    assert resolve(home, "tiny:1.0.0") == first
    elsewhere = f"hf://{owner}/elsewhere"
    forged = Store(tmp_path / "forged")
    publish(forged, version="1.0.0", seed=2)
    push(remotes, forged, elsewhere)
    repository, other = (hub.repository(f"{owner}/{name}") for name in ("tiny", "elsewhere"))
    repository.git("fetch", "--quiet", str(other.folder), "main")
    oid = resolve(forged, "tiny").manifest.tensors.digest.removeprefix("sha256:")
    repository.lfs_file(oid).parent.mkdir(parents=True, exist_ok=True)
    repository.lfs_file(oid).write_bytes(other.lfs_file(oid).read_bytes())
    repository.git("tag", "--force", "1.0.0", "FETCH_HEAD")
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        pull(remotes, home, f"{remote}/tiny:1.0.0")
    assert resolve(home, "tiny:1.0.0") == first
    home.verify(first)
    repository.git("tag", "9.9.9", "main")
    with pytest.raises(Corrupt, match=r"its manifest tiny:1\.1\.0"):
        pull(remotes, home, f"{remote}/tiny")


def test_a_push_that_breaks_off_shows_no_version_and_is_repeated(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str
) -> None:
    def break_off() -> None:
        raise ConnectionAbortedError

    stored = publish(store, version="1.0.0")
    hub.before["tag"] = break_off
    with pytest.raises(Unavailable):
        push(remotes, store, remote)
    with pytest.raises(AdapterNotFound):
        pull(remotes, home, f"{remote}/tiny")
    assert push(remotes, store, remote) == stored
    assert pull(remotes, home, f"{remote}/tiny") == stored


def test_of_two_who_push_at_once_one_is_told_to_try_again(
    remotes: Remotes, hub: Hub, store: Store, remote: str, owner: str
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    publish(store, version="1.0.1", seed=1)
    repository = hub.repository(f"{owner}/tiny")
    hub.before["commit"] = lambda: void(repository.commit("Meanwhile", {"notes.md": b"?"}))
    with pytest.raises(Unavailable, match="try again"):
        push(remotes, store, remote)
    push(remotes, store, remote)
    assert "notes.md" in repository.files("1.0.1")


@pytest.mark.parametrize("seed", [0, 1])
def test_of_two_who_push_a_version_at_once_the_first_tag_counts(
    remotes: Remotes, hub: Hub, store: Store, tmp_path: Path, remote: str, seed: int
) -> None:
    """With equal bytes both have pushed it."""
    publish(store, version="1.0.0", seed=seed)
    first = Store(tmp_path / "first")
    stored = publish(first, version="1.0.0")
    hub.before["tag"] = lambda: void(push(remotes, first, remote))
    if seed == 0:
        assert push(remotes, store, remote) == stored
    else:
        with pytest.raises(Conflict, match=stored.digest):
            push(remotes, store, remote)


def void(_: object) -> None:
    pass


def test_what_is_not_ours_is_not_overwritten(
    remotes: Remotes, hub: Hub, store: Store, owner: str
) -> None:
    publish(store, version="1.0.0")
    publish(store, name="other", version="1.0.0", seed=1)
    push(remotes, store, f"hf://{owner}/shared")
    with pytest.raises(Conflict, match="holds tiny; other needs"):
        push(remotes, store, f"hf://{owner}/shared", "other")
    foreign = hub.repository(f"{owner}/foreign")
    foreign.create()
    foreign.commit("A model", {"README.md": b"Mine", "config.json": b"{}"})
    with pytest.raises(Conflict, match="holds other files"):
        push(remotes, store, f"hf://{owner}/foreign")
    assert foreign.read("README.md") == b"Mine"
    new = hub.repository(f"{owner}/new")
    new.create()
    new.git("tag", "1.0.0", "main")
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        push(remotes, store, f"hf://{owner}/new")


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


# Trust


def test_what_the_cache_has_damaged_is_loaded_again(
    remotes: Remotes, store: Store, home: Store, online: Path, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    pull(remotes, home, f"{remote}/tiny")
    cached = [path for path in online.rglob("blobs/*") if path.is_file()]
    assert len(cached) == 4
    for path in cached:
        path.write_bytes(path.read_bytes()[::-1])
    home.blob_path(stored.manifest.tensors.digest).unlink()
    assert pull(remotes, home, f"{remote}/tiny") == stored
    home.verify(stored)


@pytest.mark.parametrize("path", ["upt/spec.json", "upt/card.md", "upt/manifest.json"])
@pytest.mark.parametrize("change", [b"!", b"!" * 5_000_000])
def test_what_the_hub_has_damaged_is_refused(
    remotes: Remotes,
    hub: Hub,
    store: Store,
    home: Store,
    remote: str,
    owner: str,
    path: str,
    change: bytes,
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    repository = hub.repository(f"{owner}/tiny")
    repository.commit("Damage", {path: change + repository.read(path)[1:]})
    with pytest.raises(Corrupt):
        pull(remotes, home, f"{remote}/tiny:main")
    assert not home.root.exists()


def test_a_signature_is_kept_beside_its_version_and_asked_for_by_either_name(
    remotes: Remotes, hub: Hub, store: Store, home: Store, tmp_path: Path, remote: str, owner: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    ours, theirs = (write_key(tmp_path / name) for name in ("ours", "theirs"))
    trusted = ours.with_suffix(".pub")
    strict = Remotes(trusted_keys={f"hf://{owner.lower()}/tiny": (trusted,)})
    spellings = (f"{remote}/tiny:1.0.0", f"hf://{owner}/tiny/tiny", f"{remote}/tiny:main")
    for text in spellings:
        with pytest.raises(Untrusted):
            pull(strict, home, text)
    for key in (ours, theirs):
        signature = PrivateKey.read(key, lambda: "").sign(stored.name, stored.digest)
        store.add_signatures(stored, [signature])
        push(remotes, store, remote)
    before = heads(hub.repository(f"{owner}/tiny"))
    push(remotes, store, remote)
    assert heads(hub.repository(f"{owner}/tiny")) == before  # nothing is signed twice
    for text in spellings:
        assert pull(strict, home, text) == stored
    assert set(home.read_signatures("tiny", stored.digest)) == set(
        store.read_signatures("tiny", stored.digest)
    )
    repository = hub.repository(f"{owner}/tiny")
    path = f"upt/signatures/{stored.digest.removeprefix('sha256:')}.json"
    repository.commit("Damage", {path: b"\xff"})
    with pytest.raises(Corrupt, match="not UTF-8"):
        pull(remotes, home, f"{remote}/tiny")


def write_key(path: Path) -> Path:
    """Write a private key, and the public one beside it with the ending .pub."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


# Which remotes are asked


def test_a_hub_stands_among_the_other_remotes(
    remotes: Remotes, store: Store, home: Store, tmp_path: Path, remote: str
) -> None:
    elsewhere = Store(tmp_path / "elsewhere")
    only_there = publish(elsewhere, name="other", version="1.0.0")
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    order = Remotes(order=(remote, elsewhere.root.as_uri()))
    assert order.pull(Reference(name="tiny"), home) == stored
    assert order.pull(Reference(name="other"), home) == only_there


def test_a_hub_that_does_not_answer_is_passed_over(
    store: Store, home: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name_endpoint(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    stored = publish(store, version="1.0.0")
    order = Remotes(order=("hf://team", store.root.as_uri()))
    assert order.pull(Reference(name="tiny"), home) == stored
    assert "no answer from the Hub" in caplog.text
    with pytest.raises(Unavailable):
        pull(order, home, "hf://team/tiny:1.0.0")
    with pytest.raises(Unavailable):
        push(order, store, "hf://team")


def test_offline_nothing_is_asked(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    asked = len(hub.requests)
    offline = Remotes(order=(remote, "embedded"), is_offline=True)
    for action in (
        lambda: pull(offline, home, f"{remote}/tiny"),
        lambda: push(offline, store, remote),
        lambda: offline.fetch_checkpoint(f"{remote}/tiny"),
    ):
        with pytest.raises(Unavailable, match="offline"):
            action()
    with pytest.raises(AdapterNotFound, match="embedded"):
        offline.pull(Reference(name="tiny"), home)
    assert len(hub.requests) == asked


def test_what_is_not_allowed_is_not_used(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str
) -> None:
    publish(store, version="1.0.0")
    asked = len(hub.requests)
    strict = Remotes(allowed=("hf://good",))
    for action in (
        lambda: pull(strict, home, f"{remote}/tiny"),
        lambda: push(strict, store, remote),
        lambda: strict.fetch_checkpoint(f"{remote}/tiny"),
    ):
        with pytest.raises(InvalidInput, match=r"remotes\.toml allows"):
            action()
    assert len(hub.requests) == asked


def test_with_the_hub_switched_off_the_cache_answers(
    remotes: Remotes,
    hub: Hub,
    store: Store,
    tmp_path: Path,
    remote: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    pull(remotes, Store(tmp_path / "1"), f"{remote}/tiny:1.0.0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert pull(remotes, Store(tmp_path / "2"), f"{remote}/tiny:1.0.0") == stored
    for text in ("tiny", "tiny:1.0.1"):
        with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
            pull(remotes, Store(tmp_path / "2"), f"{remote}/{text}")
    assert len(hub.requests) == asked


# The Hub's own settings, and who we are


@pytest.fixture
def guarded(hub: Hub) -> Iterator[Hub]:
    hub.token = TOKEN
    yield hub
    hub.token = None


def test_the_commands_use_the_hub_that_the_environment_names(
    guarded: Hub, store: Store, tmp_path: Path, remote: str, backbone: Backbone
) -> None:
    stored = publish(store, version="1.0.0")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "UPT_")) and name != "TRANSFORMERS_OFFLINE"
    }
    environment |= {
        "HF_ENDPOINT": guarded.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "UPT_ZOO_HOME": str(store.root),
    }

    def run(*arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "upt_zoo.cli", *arguments],
            env=environment | extra,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    denied = run("push", "tiny", remote)
    assert (denied.returncode, "set HF_TOKEN" in denied.stderr) == (64, True), denied.stderr
    assert run("pull", f"{remote}/tiny").returncode == 66
    pushed = run("push", "tiny", remote, HF_TOKEN=TOKEN)
    assert pushed.stdout == f"tiny:1.0.0@{stored.digest}\n", pushed.stderr
    (tmp_path / "hf").mkdir(exist_ok=True)
    (tmp_path / "hf" / "token").write_text(TOKEN)
    there = {"UPT_ZOO_HOME": str(tmp_path / "there")}
    pulled = run("pull", f"{remote}/tiny:1.0.0@{stored.digest}", "--json", **there)
    assert json.loads(pulled.stdout)["digest"] == stored.digest, pulled.stderr
    assert list((tmp_path / "hf" / "hub").glob("models--*--tiny"))
    shown = run("show", f"{remote}/tiny:1.0.0", "--json", HF_HUB_OFFLINE="1")
    assert json.loads(shown.stdout)["digest"] == stored.digest, shown.stderr
    lora = guarded.repository(f"{remote[5:]}/lora")
    lora.create()
    commit = lora.commit("Add", {file.name: file.read_bytes() for file in QV.iterdir()})
    source = f"{remote}/lora"
    options = ("--task", "mnli", "--name", "mine", "--backbone", str(backbone.directory))
    imported = run("import", "peft", source, *options, **there)
    assert imported.returncode == 0, imported.stderr
    mine = resolve(Store(tmp_path / "there"), "mine").spec
    assert mine.lineage.recipe["source"] == f"{source}@{commit}"
    assert run("import", "peft", source, *options, "--offline").returncode == 69


def test_a_token_that_may_only_read_is_said_to(
    guarded: Hub, remotes: Remotes, store: Store, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, version="1.0.0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(remotes, store, remote)
    publish(store, version="1.0.1", seed=1)
    guarded.before["preupload"] = lambda: setattr(guarded, "token", "another")
    with pytest.raises(InvalidInput, match="does not let us"):
        push(remotes, store, remote)


def test_an_endpoint_without_tls_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="plain_http"):
        Client(endpoint="http://hub.lan:8090")
    Client(endpoint="http://hub.lan:8090", plain_http=["hub.lan:8090"])
    Client(endpoint="https://hub.lan")


# A Hub that is none


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with running_fake() as server:
        name_endpoint(monkeypatch, f"http://{server.host}")
        yield server


RESOLVED = {"x_repo_commit": "c" * 40, "etag": '"e"'}
MANIFEST_PATH = "/team/tiny/resolve/1.0.0/upt/manifest.json"
REFS_PATH = "/api/models/team/tiny/refs"


def answering(status: int, body: bytes, **headers: str) -> Callable[[Handler], None]:
    def route(handler: Handler) -> None:
        if handler.command == "HEAD":
            handler.answer(status, b"", content_length=str(len(body)), **headers)
        else:
            handler.answer(status, body, **headers)

    return route


def pour(handler: Handler) -> None:
    """Send for ever where a small file was announced."""
    if handler.command == "HEAD":
        handler.answer(200, b"", content_length="5", **RESOLVED)
        return
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.pour(chunked=True)


@pytest.mark.parametrize(
    ("text", "status", "body", "headers", "error"),
    [
        ("tiny:1.0.0", 200, b"<html>", {}, Corrupt),
        ("tiny:1.0.0", 200, b"{}", RESOLVED, Corrupt),
        ("tiny:1.0.0", 200, b"{" * 5_000_000, RESOLVED, Corrupt),
        ("tiny:1.0.0", 403, b"", {"x_error_code": "GatedRepo"}, InvalidInput),
        ("tiny:1.0.0", 403, b"", {}, InvalidInput),
        ("tiny:1.0.0", 500, b"", {}, Unavailable),
        ("tiny", 200, b"<html>", {}, Corrupt),
        ("tiny", 200, b'{"branches": 1}', {}, Corrupt),
        ("tiny", 429, b"", {}, Unavailable),
        ("tiny", 418, b"", {}, InvalidInput),
    ],
)
def test_another_answer_is_refused_and_leaves_nothing(
    fake: FakeRegistry,
    home: Store,
    online: Path,
    text: str,
    status: int,
    body: bytes,
    headers: dict[str, str],
    error: type[Exception],
) -> None:
    path = MANIFEST_PATH if ":" in text else REFS_PATH
    fake.routes[path] = answering(status, body, **headers)
    with pytest.raises(error):
        pull(Remotes(), home, f"hf://team/{text}")
    assert not home.root.exists()
    assert not list(online.rglob("*.incomplete"))


@pytest.mark.parametrize(("status", "error"), [(500, Unavailable), (404, Corrupt)])
def test_signatures_that_cannot_be_asked_for_are_not_taken_for_none(
    fake: FakeRegistry, store: Store, home: Store, status: int, error: type[Exception]
) -> None:
    """Without signatures the adapter is read, which is damaged here."""
    stored = publish(store, version="1.0.0")
    manifest = store.read_manifest(Reference(name="tiny"))
    signatures = f"upt/signatures/{stored.digest.removeprefix('sha256:')}.json"
    for path, code, body in (
        ("1.0.0/upt/manifest.json", 200, manifest),
        (f"{'c' * 40}/upt/spec.json", 200, b"?"),
        (f"main/{signatures}", status, b""),
    ):
        missing = {"x_error_code": "EntryNotFound"} if code == 404 else {}
        fake.routes[f"/team/tiny/resolve/{path}"] = answering(code, body, **RESOLVED, **missing)
    with pytest.raises(error):
        pull(Remotes(), home, "hf://team/tiny:1.0.0")


def test_a_hub_that_takes_no_tag_says_why(
    remotes: Remotes, hub: Hub, store: Store, remote: str
) -> None:
    def refuse() -> None:
        hub.token = TOKEN

    publish(store, version="1.0.0")
    hub.before["tag"] = refuse
    try:
        push(remotes, store, remote)
        publish(store, version="1.0.1", seed=1)
        with pytest.raises(InvalidInput, match="does not let us"):
            Client(endpoint=hub.endpoint).tag(f"{remote[5:]}/tiny", "1.0.1", "main")
    finally:
        hub.token = None


def test_a_name_that_the_hub_cannot_have_is_refused(remotes: Remotes, home: Store) -> None:
    with pytest.raises(InvalidReference, match="Repo id"):
        pull(remotes, home, f"hf://team/{'x' * 120}")


def test_a_file_that_never_ends_is_given_up(
    fake: FakeRegistry, home: Store, online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upt_zoo.remote.hub._SLACK_BYTES", 0)
    fake.routes[MANIFEST_PATH] = pour
    with pytest.raises(Corrupt, match="expected at most"):
        pull(Remotes(), home, "hf://team/tiny:1.0.0")
    assert not list(online.rglob("*.incomplete"))


def test_a_disk_that_refuses_is_no_fault_of_the_hub(
    remotes: Remotes, store: Store, home: Store, online: Path, remote: str
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    online.write_text("a file where a directory is needed")
    with pytest.raises(OSError, match="Not a directory"):
        pull(remotes, home, f"{remote}/tiny:1.0.0")
