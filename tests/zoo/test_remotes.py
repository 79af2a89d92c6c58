"""Which remotes are asked, bundles, and pushing to directories."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_testing.commands import Run
from upt_zoo import catalogue
from upt_zoo.catalogue import remote_store
from upt_zoo.errors import InvalidInput, InvalidReference
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference
from upt_zoo.remote.remotes import Remotes

OCI = "oci://127.0.0.1:1/team"  # nobody listens there


def publish(
    store: Store, *, name: str = "tiny", seed: int = 0, version: str = "1.0.0"
) -> StoredAdapter:
    spec = tiny_spec(name=name, lora=LORA)
    return store.publish(spec, random_tensors(spec, seed), "# Tiny", version=version)


# Settings


def test_without_settings_the_catalogue_alone_is_asked(config: Path) -> None:
    read = Remotes.read({})
    assert (read.order, read.allowed, read.is_offline) == (("embedded",), None, False)


def test_the_settings_are_read(config: Path) -> None:
    config.write_text(
        f'remotes = ["{OCI}"]\nallow = ["{OCI}", "embedded"]\n'
        'plain_http = ["lan:5000"]\noffline = true\n'
    )
    read = Remotes.read({"DOCKER_CONFIG": "/docker"})
    assert read.order == (OCI, "embedded")
    assert read.allowed == (OCI, "embedded")
    assert read.plain_http == {"lan:5000"}
    assert read.is_offline
    assert read.credential_files == (
        config.with_name("credentials.json"),
        Path("/docker/config.json"),
    )


def test_the_environment_goes_before_the_file(config: Path) -> None:
    config.write_text(f'remotes = ["{OCI}"]\noffline = true\n')
    read = Remotes.read({"UPT_ZOO_REMOTES": "embedded  file:///srv/zoo", "UPT_ZOO_OFFLINE": "0"})
    assert read.order == ("embedded", "file:///srv/zoo")
    assert not read.is_offline


def test_a_catalogue_that_is_not_allowed_is_not_asked(config: Path) -> None:
    config.write_text(f'remotes = ["{OCI}/a"]\nallow = ["{OCI}"]\n')
    assert Remotes.read({}).order == (f"{OCI}/a",)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("remote = []", "remote"),
        ("remotes = 1", "remotes"),
        ("remotes = [", "remotes.toml"),
        ('remotes = ["hf:/x"]', "hf:/x"),
        ('remotes = ["oci://HOST/x"]', "expected oci://host"),
        ('remotes = ["oci://hostile"]\nallow = ["oci://host"]', "not allowed"),
        ('remotes = ["oci://host/team2"]\nallow = ["oci://host/team"]', "not allowed"),
    ],
)
def test_a_wrong_setting_is_named(config: Path, text: str, match: str) -> None:
    config.write_text(text)
    with pytest.raises(InvalidInput, match=match):
        Remotes.read({})


# Which remotes are asked


def asking(*order: str, **settings: Mapping[str, object]) -> Remotes:
    return Remotes(order=order, **settings)  # type: ignore[arg-type]  # the tests' own shorthand


def test_the_first_remote_that_has_it_counts(tmp_path: Path, home: Store) -> None:
    first, second = Store(tmp_path / "1"), Store(tmp_path / "2")
    publish(first, name="other")
    stored = publish(second)
    mirrors = asking(first.root.as_uri(), second.root.as_uri())
    assert mirrors.pull(Reference(name="tiny"), home) == stored


def test_a_remote_that_does_not_answer_is_passed_over_with_a_warning(
    tmp_path: Path, home: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = publish(Store(tmp_path / "1"))
    mirrors = asking(OCI, (tmp_path / "1").as_uri())
    monkeypatch.setattr("upt_zoo.remote.connection.time.sleep", lambda _: None)
    assert mirrors.pull(Reference(name="tiny"), home) == stored
    assert "127.0.0.1:1" in caplog.text


def test_what_nobody_has_names_every_remote(tmp_path: Path, home: Store) -> None:
    mirrors = asking(*((tmp_path / each).as_uri() for each in "12"))
    with pytest.raises(Exception, match=r"tiny \(in .*/1.*tiny \(in .*/2"):
        mirrors.pull(Reference(name="tiny"), home)


def test_a_damaged_remote_is_not_passed_over(tmp_path: Path, home: Store) -> None:
    first, second = Store(tmp_path / "1"), Store(tmp_path / "2")
    stored = publish(first)
    publish(second)
    first.blob_path(stored.digest).write_bytes(b"?")
    with pytest.raises(Exception, match=stored.digest.removeprefix("sha256:")):
        asking(first.root.as_uri(), second.root.as_uri()).pull(Reference(name="tiny"), home)


def test_offline_asks_no_network(
    run: Run, config: Path, home: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_connection(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("upt_zoo.remote.connection.Connection", no_connection)
    stored, other = publish(Store(tmp_path / "1")), Store(tmp_path / "1").root.as_uri()
    config.write_text(f'remotes = ["{OCI}", "{other}"]\n')
    assert run("pull", "tiny", "--offline").stdout == f"tiny:1.0.0@{stored.digest}\n"
    monkeypatch.setenv("UPT_ZOO_OFFLINE", "1")
    for command in (["pull", f"{OCI}/tiny"], ["push", "tiny", OCI], ["show", f"{OCI}/tiny"]):
        result = run(*command)
        assert (result.code, "offline" in result.stderr) == (69, True)
    assert run("login", "127.0.0.1:1").code == 69
    config.write_text(f'remotes = ["{OCI}"]\nallow = ["oci://127.0.0.1:1"]\n')
    assert "no remote to ask" in run("pull", "tiny").stderr


def test_what_is_not_allowed_is_not_used(run: Run, config: Path, home: Store) -> None:
    publish(home)
    config.write_text('allow = ["oci://good.example"]\n')
    for command in (
        ["pull", f"{OCI}/tiny"],
        ["pull", "embedded/tiny"],
        ["push", "tiny", OCI],
        ["push", "tiny", "file:///tmp/zoo"],
        ["login", "127.0.0.1:1"],
        ["show", f"{OCI}/tiny"],
    ):
        result = run(*command)
        assert (result.code, "remotes.toml allows" in result.stderr) == (64, True), command


def test_the_catalogue_is_asked_last(
    run: Run, home: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = publish(Store(tmp_path / "embedded"))
    embedded = Store(tmp_path / "embedded", is_read_only=True)
    monkeypatch.setattr(catalogue, "embedded_catalogue", lambda: embedded)
    monkeypatch.setenv("UPT_ZOO_REMOTES", (tmp_path / "empty").as_uri())
    assert run("pull", "tiny").stdout == f"tiny:1.0.0@{stored.digest}\n"


# Bundles


def test_a_bundle_carries_adapters_to_a_site_without_a_network(
    run: Run, home: Store, tmp_path: Path
) -> None:
    first = publish(home, version="1.0.0")
    second = publish(home, name="other", version="2.0.0", seed=1)
    publish(home, name="third", version="1.0.0", seed=2)
    out = tmp_path / "a bundle.tar"
    result = run("bundle", "tiny", "other:2.0.0", "--out", str(out), "--json")
    assert [each["digest"] for each in json.loads(result.stdout)] == [first.digest, second.digest]
    copy = Store(tmp_path / "copy")
    pulled = run("pull", f"{out.as_uri()}/other", "--offline", "--home", str(copy.root))
    assert pulled.stdout == f"other:2.0.0@{second.digest}\n"
    assert run("show", f"{out.as_uri()}/tiny").code == 0
    assert run("pull", f"{out.as_uri()}/third", "--home", str(copy.root)).code == 66
    again = tmp_path / "again.tar"
    run("bundle", "tiny", "other:2.0.0", "--out", str(again))
    assert again.read_bytes() == out.read_bytes()
    with tarfile.open(out) as archive:
        assert {"index.json", "oci-layout"} < set(archive.getnames())


def test_a_bundle_that_is_none_is_corrupt(run: Run, home: Store, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(b"not a tar archive" * 100)
    assert run("pull", f"{path.as_uri()}/tiny").code == 65
    with tarfile.open(path, "w") as archive:
        for name in ("../evil", "/tmp/evil", "blobs/sha256/../../../evil"):
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("index.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    result = run("pull", f"{path.as_uri()}/tiny")
    assert (result.code, "no index.json" in result.stderr) == (65, True)
    assert not list(tmp_path.rglob("evil"))


def test_a_directory_is_pushed_to_and_the_catalogue_is_not(
    run: Run, home: Store, tmp_path: Path
) -> None:
    stored = publish(home, version="1.0.0")
    target = Store(tmp_path / "target")
    assert run("push", "tiny", target.root.as_uri(), "--offline").code == 0
    assert target.resolve(Reference(name="tiny")) == stored
    assert "read-only" in run("push", "tiny", "embedded").stderr
    assert "pull it first" in run("push", "embedded/tiny", target.root.as_uri()).stderr


@pytest.mark.parametrize("path", ["/srv/zoo/%2e%2e/secret", "/srv/zoo/../secret"])
def test_a_path_cannot_climb_out_of_what_is_allowed(path: str) -> None:
    with pytest.raises(InvalidReference, match=r"without \.\."):
        remote_store(f"file://{path}")
