"""A user of upt-zoo: a home, settings and an embedded catalogue of their own, all empty.

And a registry.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from upt_testing.commands import Run, runner
from upt_testing.registries import Registry, running_registry
from upt_zoo import catalogue
from upt_zoo.local.store import Store


@pytest.fixture
def home(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file remotes.toml, which does not exist yet, in a directory that does."""
    folder = tmp_path / "config" / "upt"
    folder.mkdir(parents=True)
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: folder)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return folder / "remotes.toml"


@pytest.fixture
def run(
    home: Store, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run upt-zoo in this process; its embedded catalogue is what the test puts beside home."""
    monkeypatch.setenv("UPT_ZOO_HOME", str(home.root))
    monkeypatch.setenv("COLUMNS", "160")
    empty = Store(home.root.with_name("embedded"), is_read_only=True)
    monkeypatch.setattr(catalogue, "embedded_catalogue", lambda: empty)
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def remote(registry: Registry) -> str:
    """A prefix that no other test uses."""
    return f"oci://{registry.host}/{uuid.uuid4().hex}"
