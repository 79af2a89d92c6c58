"""A Hub, ``olah`` over git repositories, and clients of it that keep to themselves."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from parity.foreign_backbones import write_pooled_backbone
from upt_testing.hub_client import name_endpoint
from upt_testing.hubs import Hub, running_hub
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.remote.remotes import Remotes


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
