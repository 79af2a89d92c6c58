import json
from pathlib import Path

import pytest

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_testing.commands import Run
from upt_testing.stores import age, blob_names, publish
from upt_zoo.local.blobs import Blobs
from upt_zoo.local.store import Store
from upt_zoo.tensors import write_tensors


def two_versions(home: Store) -> None:
    publish(home, seed=1)
    publish(home, seed=2)


def test_a_release_goes_out_and_back(run: Run, home: Store) -> None:
    two_versions(home)
    assert run("tag", "tiny:1.0.0", "stable").stdout == "tag tiny:stable nothing -> 1.0.0\n"
    assert run("tag", "tiny", "stable").stdout == "tag tiny:stable 1.0.0 -> 1.0.1\n"
    again = run("tag", "tiny", "stable")
    assert (again.code, again.stdout) == (0, "")
    assert "already" in again.stderr
    assert json.loads(run("show", "tiny:stable", "--json").stdout)["version"] == "1.0.1"
    assert run("rollback", "tiny:stable").stdout == "rollback tiny:stable 1.0.1 -> 1.0.0\n"
    assert json.loads(run("show", "tiny:stable", "--json").stdout)["version"] == "1.0.0"
    assert run("rollback", "tiny:stable").code == 66


def test_the_history_is_told_in_order(run: Run, home: Store) -> None:
    two_versions(home)
    run("tag", "tiny:1.0.0", "stable")
    run("tag", "tiny:1.0.1", "stable")
    run("tag", "tiny", "canary")
    lines = [line.split()[1:] for line in run("history", "tiny").stdout.splitlines()[1:]]
    assert lines[:2] == [["publish", "tiny", "1.0.0"], ["publish", "tiny", "1.0.1"]]
    assert lines[-1] == ["tag", "tiny:canary", "1.0.1"]
    told = json.loads(run("history", "tiny:stable", "--json").stdout)
    assert told["versions"] == []
    assert [event["after"] for event in told["events"]] == ["1.0.0", "1.0.1"]
    told = json.loads(run("history", "tiny", "--json").stdout)
    assert [each["version"] for each in told["versions"]] == ["1.0.0", "1.0.1"]
    assert run("history", "other").code == 66


def test_ls_shows_aliases_and_what_is_yanked(run: Run, home: Store) -> None:
    two_versions(home)
    run("tag", "tiny:1.0.0", "stable")
    assert run("yank", "tiny:1.0.1").stdout == "yank tiny 1.0.1\n"
    assert "already" in run("yank", "tiny:1.0.1").stderr
    first, second = run("ls").stdout.splitlines()[1:]
    assert first.split()[-1] == "stable"
    assert second.split()[-1] == "yanked"
    listed = json.loads(run("ls", "--json").stdout)
    assert [each["aliases"] for each in listed] == [["stable"], []]
    assert listed[0]["yanked"] is None
    assert listed[1]["yanked"] is not None
    assert json.loads(run("show", "tiny", "--json").stdout)["version"] == "1.0.0"
    assert json.loads(run("yank", "tiny:1.0.1", "--undo", "--json").stdout)[0]["action"] == "unyank"
    assert json.loads(run("show", "tiny", "--json").stdout)["version"] == "1.0.1"


def test_ls_opens_no_blob(run: Run, home: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    two_versions(home)

    def fail(blobs: Blobs, digest: str, max_bytes: int) -> bytes:
        raise AssertionError("a blob was read")

    monkeypatch.setattr(Blobs, "read", fail)
    assert run("ls").stdout.count("tiny:") == 2


def test_a_long_list_has_the_columns_of_a_short_one(
    run: Run, home: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(home)
    short = run("ls").stdout
    monkeypatch.setattr("upt_zoo.terminal._MANY_ROWS", 1)
    assert [line.split() for line in run("ls").stdout.splitlines()] == [
        line.split() for line in short.splitlines()
    ]


def test_a_removed_version_frees_the_disk_after_the_grace(run: Run, home: Store) -> None:
    publish(home)
    run("tag", "tiny", "stable")
    refused = run("rm", "tiny:1.0.0")
    assert (refused.code, refused.stdout) == (73, "")
    assert "tiny:stable" in refused.stderr
    removed = run("rm", "tiny:1.0.0", "--force-with", "wrong labels")
    assert removed.stdout == "untag tiny:stable 1.0.0\nremove tiny 1.0.0\n"
    assert "wrong labels" in run("history", "tiny").stdout
    kept = run("gc")
    assert kept.stdout == "deleted 0 blobs, 0.0 kB\n"
    assert "kept 4 blobs" in kept.stderr
    age(home)
    would = json.loads(run("gc", "--dry-run", "--json").stdout)
    assert (would["blobs"], would["deleted"]) == (4, False)
    assert run("gc").stdout.startswith("deleted 4 blobs, ")
    assert blob_names(home) == set()


def test_gc_says_what_is_being_read(run: Run, home: Store) -> None:
    stored = publish(home)
    run("rm", "tiny:1.0.0")
    with home.lease(stored):
        assert "kept 4 blobs that are being read" in run("gc", "--grace", "0").stderr


def test_reindex_says_what_it_found_and_what_is_lost(run: Run, home: Store) -> None:
    two_versions(home)
    home.blob_path(home.list()[0].digest or "").unlink()
    assert run("reindex").stdout == "1 versions, 0 aliases\ndropped tiny:1.0.0\n"
    (home.root / "index.json").write_bytes(b"{")
    result = run("ls")
    assert result.code == 65
    assert "upt-zoo reindex" in result.stderr
    result = run("reindex", "--json")
    assert json.loads(result.stdout)["added"] == ["tiny:1.0.1"]
    assert "history are lost" in result.stderr
    assert run("ls").code == 0


def test_verify_finds_an_index_that_lies(run: Run, home: Store) -> None:
    publish(home)
    path = home.root / "index.json"
    path.write_bytes(path.read_bytes().replace(b'method":"lora"', b'method":"best"'))
    assert run("verify").code == 65
    run("reindex")
    assert run("verify").code == 0


def test_the_doctor_fails_on_damage_alone(run: Run, home: Store) -> None:
    stored = publish(home)
    assert run("doctor").code == 0
    home.blob_path(stored.digest).unlink()
    result = run("doctor", "--json")
    assert result.code == 65
    assert "damage" in {finding["level"] for finding in json.loads(result.stdout)}


def test_search_looks_into_the_store_and_the_catalogue(run: Run, home: Store) -> None:
    publish(home)
    publish(Store(home.root.with_name("embedded")), name="other")
    found = json.loads(run("search", "POSITIVE", "tiny-data", "--json").stdout)
    assert [each["reference"] for each in found] == ["tiny:1.0.0", "embedded/other:1.0.0"]
    assert "embedded/other:1.0.0" in run("search", "other").stdout
    nothing = run("search", "bananas")
    assert (nothing.code, nothing.stdout) == (0, "")
    assert "bananas" in nothing.stderr


def test_diff_names_what_differs(run: Run, home: Store) -> None:
    two_versions(home)
    text = run("diff", "tiny:1.0.0", "tiny:1.0.1").stdout
    assert "lora.q.a" in text
    assert "differs by" in text
    same = run("diff", "tiny:1.0.0", "tiny:1.0.0").stdout.splitlines()[1:]
    assert [line.split()[-2:] for line in same] == [["tensors", "equal"]]
    found = json.loads(run("diff", "tiny:1.0.0", "tiny:1.0.0", "--json").stdout)
    assert found["facts"] == []
    assert {each["verdict"] for each in found["tensors"]} == {"equal"}


def test_diff_of_different_structures_is_told(run: Run, home: Store) -> None:
    publish(home)
    other = tiny_spec(name="other", lora=LORA.model_copy(update={"rank": 4}))
    home.publish(other, random_tensors(other, 0), "# Other")
    text = run("diff", "tiny", "other").stdout
    assert "another shape" in text
    assert "lora.rank" in text


def test_register_publishes_directories(run: Run, home: Store, tmp_path: Path) -> None:
    spec = tiny_spec(lora=LORA)
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "spec.json").write_bytes(spec.to_json())
    (folder / "tensors.safetensors").write_bytes(write_tensors(random_tensors(spec, 0)))
    (folder / "card.md").write_text("# Made")
    line = run("register", str(folder)).stdout
    assert line.startswith("tiny:1.0.0@sha256:")
    added = json.loads(run("register", str(folder), "--version", "2.0.0", "--json").stdout)
    assert added[0]["version"] == "2.0.0"
    assert home.versions("tiny") == ("1.0.0", "2.0.0")
    assert run("register", str(tmp_path / "missing")).code == 64


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["tag", "tiny", "1.2.3"], 64),
        (["tag", "tiny:9.9.9", "stable"], 66),
        (["rollback", "tiny"], 64),
        (["rollback", "tiny:stable"], 66),
        (["yank", "tiny"], 64),
        (["rm", "tiny:9.9.9"], 66),
        (["gc", "--grace", "-1"], 2),
        (["diff", "tiny", "other"], 66),
    ],
)
def test_a_refusal_has_a_code_and_one_line(
    run: Run, home: Store, arguments: list[str], code: int
) -> None:
    publish(home)
    result = run(*arguments)
    assert (result.code, result.stdout) == (code, "")
    assert result.stderr
