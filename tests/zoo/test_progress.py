"""Progress: reported by whoever moves bytes, shown on a terminal and nowhere else."""

import sys
from pathlib import Path

import pytest

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_testing.commands import Run
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.progress import Pieces, silent
from upt_zoo.references import Reference
from upt_zoo.remote.bundle import write_bundle
from upt_zoo.remote.remotes import Remotes

CARD = "# Large\n" + "It grows. " * 200_000  # 2 MB


def publish(store: Store) -> StoredAdapter:
    spec = tiny_spec(lora=LORA)
    return store.publish(spec, random_tensors(spec, 0), CARD)


class Seen:
    """What was reported of each thing that moved."""

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, what: str, done_bytes: int, total_bytes: int) -> None:
        self.steps.setdefault(what, []).append((done_bytes, total_bytes))

    def check(self) -> None:
        """Each thing grows, and ends when it is whole."""
        for steps in self.steps.values():
            done = [each for each, _ in steps]
            assert done == sorted(done)
            assert {total for _, total in steps} == {done[-1]}


def test_every_blob_is_reported_on_its_way_to_a_registry_and_back(
    home: Store, remote: str, tmp_path: Path
) -> None:
    stored, there, back = publish(home), Seen(), Seen()
    Remotes(report=there).push(Reference(name="tiny"), home, remote)
    Remotes(report=back).pull(Reference.parse(f"{remote}/tiny"), Store(tmp_path / "other"))
    for seen in (there, back):
        seen.check()
        assert len(seen.steps) == 3
        assert {steps[-1][0] for steps in seen.steps.values()} == {
            blob.size for blob in stored.manifest.blobs
        }
        assert max(len(steps) for steps in seen.steps.values()) > 10


def test_a_bundle_needs_a_directory_and_is_told_which(
    run: Run, home: Store, tmp_path: Path
) -> None:
    publish(home)
    told = run("bundle", "tiny", "--out", str(tmp_path / "none" / "b.tar"))
    assert (told.code, told.stdout) == (74, "")
    assert f"no directory {tmp_path / 'none'} for b.tar" in told.stderr


def test_a_bundle_is_reported_as_one(home: Store, tmp_path: Path) -> None:
    publish(home)
    seen = Seen()
    write_bundle(home, [Reference(name="tiny")], tmp_path / "b.tar", report=seen)
    seen.check()
    assert seen.steps.keys() == {"b.tar"}


def test_pieces_can_be_asked_for_again() -> None:
    content = bytes(200_000)
    pieces = Pieces("x", content, silent)
    assert b"".join(pieces) == b"".join(pieces) == content


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(
    run: Run, home: Store, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = publish(home)
    bundle = str(tmp_path / "[red].tar")  # no markup
    quiet = run("bundle", "tiny", "--out", bundle)
    assert quiet.stderr == f"wrote {bundle}\n"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told = {
        "[red].tar": run("bundle", "tiny", "--out", bundle),
        f"tiny {stored.manifest.card.digest[7:19]}": run("push", "tiny", remote),
    }
    for what, result in told.items():
        assert result.code == 0
        assert what in result.stderr
        assert result.stdout == quiet.stdout
        assert stored.manifest.config.digest[7:19] not in result.stderr  # it is small
