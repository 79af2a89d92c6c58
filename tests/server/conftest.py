from pathlib import Path

import pytest

from upt_server.runner import TorchRunner
from upt_testing.adapters import CLASSIFICATION, MULTI_LABEL, REGRESSION, SPAN
from upt_testing.backbones import write_tiny_backbone
from upt_testing.serving import FakeRunner, Publisher
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.nn.encoder import load_encoder

HEADS = {
    "sst2": CLASSIFICATION,
    "topics": MULTI_LABEL,
    "stsb": REGRESSION,
    "squad": SPAN,
    "cola": CLASSIFICATION,
}


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def runner(backbone: Backbone) -> TorchRunner:
    return TorchRunner(load_encoder(backbone))


@pytest.fixture
def fake() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def publish(tmp_path: Path, backbone: Backbone) -> Publisher:
    return Publisher(store=Store(tmp_path / "home"), backbone=backbone)


@pytest.fixture
def store(publish: Publisher) -> Store:
    for seed, (name, head) in enumerate(HEADS.items()):
        publish(name, head, seed=seed)
    return publish.store
