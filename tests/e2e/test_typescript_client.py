"""The example in TypeScript, built from the .proto file, against a running server."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from upt_server.scoring.own_server import own_server
from upt_zoo.catalogue import embedded_catalogue, home_store

FOLDER = Path(__file__).parents[2] / "clients" / "typescript"
EXAMPLE = FOLDER / "dist" / "example.js"


pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not EXAMPLE.exists(),
    reason="no node, or the example is not built; `make test` builds it where npm is",
)


def ask(target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", EXAMPLE, target], capture_output=True, text=True, timeout=240, check=False
    )


def test_the_example_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = home_store(tmp_path)
    for reference in embedded_catalogue().list():
        if reference.name in ("sst2", "squad"):
            store.copy_from(embedded_catalogue(), reference)
    monkeypatch.setenv("UPT_SERVER_RUNNER", "torch-fp32")  # nothing is measured
    with own_server(tmp_path) as target:
        done = ask(target)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "sst2:1.0.1 positive\nsquad:1.0.1 Ada\n"


def test_the_example_says_that_no_server_is_there() -> None:
    done = ask("127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("UNAVAILABLE: ")


def test_the_lock_pins_every_package_and_names_no_registry() -> None:
    packages = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    installed = [each for name, each in packages.items() if name]
    assert installed
    for each in installed:
        assert each["integrity"].startswith("sha512-")
        assert "resolved" not in each
