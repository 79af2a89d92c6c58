"""Commands killed on their way to a registry or a Hub; see ``upt_testing.remote_crashes``."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from upt_testing.hubs import running_hub
from upt_testing.registries import running_registry

SHARES = 3  # of the moments, so that no test takes long


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running.host


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running.endpoint


def kill(folder: Path, operation: str, remote: str, share: int, **variables: str) -> int:
    """Return how many times it was killed."""
    program = [sys.executable, "-m", "upt_testing.remote_crashes", operation, remote, str(folder)]
    settings = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "DOCKER_CONFIG": str(folder / "docker"),
        "HF_HUB_CACHE": str(folder / "cache"),
        "PYTHONWARNINGS": "ignore",
    }
    result = subprocess.run(
        [*program, str(share + 1), str(SHARES)],
        env=os.environ | settings | variables,
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


EACH_OPERATION = pytest.mark.parametrize("operation", ["push_first", "push_next", "pull"])
EACH_SHARE = pytest.mark.parametrize("share", range(SHARES))


@EACH_SHARE
@EACH_OPERATION
def test_a_command_killed_at_any_request_to_a_registry_leaves_nothing_half_visible(
    registry: str, tmp_path: Path, operation: str, share: int
) -> None:
    remote = f"oci://{registry}/{uuid.uuid4().hex}"
    assert kill(tmp_path, operation, remote, share) > 1


@EACH_SHARE
@EACH_OPERATION
def test_a_command_killed_at_any_request_to_a_hub_leaves_nothing_half_visible(
    hub: str, tmp_path: Path, operation: str, share: int
) -> None:
    variables = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    remote = f"hf://Team-{uuid.uuid4().hex}"
    assert kill(tmp_path, operation, remote, share, **variables) > 1
