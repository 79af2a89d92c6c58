from collections.abc import Iterator

import pytest
import torch

from upt_testing.backbones import write_tiny_backbone
from upt_zoo.backbone import Backbone


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from more threads, and sums over them depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))
