"""Signatures: made, checked, carried, demanded, and read by other tools."""

import json
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from upt_testing.commands import Run
from upt_testing.fake_registry import FakeRegistry, manifest_route, running_fake
from upt_testing.keys import Keys, no_password
from upt_testing.registries import need
from upt_testing.stores import publish, resolve
from upt_zoo.errors import Corrupt, InvalidInput, Unavailable, Untrusted
from upt_zoo.keys import PrivateKey, PublicKey, signer_of
from upt_zoo.local import tags
from upt_zoo.local.recovery import rebuild
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference
from upt_zoo.remote.remotes import Remotes
from upt_zoo.signatures import (
    MAX_SIGNATURES,
    SIGNATURES,
    Signature,
    SignatureArtifact,
    of_digest,
    parse_signatures,
    payload_of,
    read_artifact,
    tag_of,
)

DIGEST = f"sha256:{'7' * 64}"


@pytest.fixture
def ours(tmp_path: Path) -> Keys:
    return Keys(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Keys:
    return Keys(tmp_path, "theirs")


def sign(store: Store, stored: StoredAdapter, *keys: Keys) -> StoredAdapter:
    store.add_signatures(stored, [key.sign(stored.name, stored.digest) for key in keys])
    return stored


def signers(store: Store, stored: StoredAdapter) -> list[str | None]:
    return [each.key_id for each in store.read_signatures(stored.name, stored.digest)]


def demand(remote: str, *keys: Keys) -> Remotes:
    return Remotes(trusted_keys={remote: tuple(key.public for key in keys)})


# Keys


def test_the_payload_is_that_of_cosign() -> None:
    assert payload_of("sst2", DIGEST, "sha256:k") == (
        b'{"critical":{"identity":{"docker-reference":"sst2"},"image":{"docker-manifest-digest":'
        b'"sha256:7777777777777777777777777777777777777777777777777777777777777777"},"type":'
        b'"cosign container image signature"},"optional":{"key":"sha256:k"}}'
    )


def test_openssl_confirms_a_signature_and_the_id_of_its_key(ours: Keys, tmp_path: Path) -> None:
    need("openssl")
    signature = ours.sign("tiny", DIGEST)
    (tmp_path / "payload").write_bytes(signature.payload)
    (tmp_path / "signature").write_bytes(signature.signature)
    verify = ["openssl", "dgst", "-sha256", "-verify", str(ours.public)]
    verify += ["-signature", str(tmp_path / "signature"), str(tmp_path / "payload")]
    assert subprocess.run(verify, check=True, capture_output=True).stdout == b"Verified OK\n"
    der = ["openssl", "pkey", "-pubin", "-in", str(ours.public), "-outform", "DER"]
    made = subprocess.run(der, check=True, capture_output=True).stdout
    shown = subprocess.run(["openssl", "dgst", "-sha256"], input=made, capture_output=True)
    assert shown.stdout.decode().split()[-1] == ours.id.removeprefix("sha256:")


def test_a_key_that_openssl_made_signs(tmp_path: Path) -> None:
    need("openssl")
    key, public = tmp_path / "ec.key", tmp_path / "ec.pem"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)]
    subprocess.run(make, check=True, capture_output=True)
    extract = ["openssl", "ec", "-in", str(key), "-pubout", "-out", str(public)]
    subprocess.run(extract, check=True, capture_output=True)
    signature = PrivateKey.read(key, no_password).sign("tiny", DIGEST)
    assert PublicKey.read(public).has_signed(signature)


def test_a_changed_payload_and_a_changed_signature_are_refused(ours: Keys) -> None:
    signature, key = ours.sign("tiny", DIGEST), PublicKey.read(ours.public)
    payload = signature.payload.replace(b"tiny", b"tinz")
    assert not key.has_signed(Signature(payload=payload, signature=signature.signature))
    assert not key.has_signed(Signature(payload=signature.payload, signature=b"\x30\x00"))
    assert not key.has_signed(Signature(payload=signature.payload, signature=b""))


def test_the_error_says_what_is_wrong_with_the_signatures(ours: Keys, theirs: Keys) -> None:
    keys = [PublicKey.read(ours.public)]
    assert signer_of("tiny", DIGEST, [ours.sign("tiny", DIGEST)], keys).id == ours.id
    with pytest.raises(Untrusted, match=r"tiny: expected .* by ours\.pem, got none"):
        signer_of("tiny", DIGEST, [], keys)
    with pytest.raises(Untrusted, match=f"say to be by {theirs.id}"):
        signer_of("tiny", DIGEST, [theirs.sign("tiny", DIGEST)], keys)
    other = f"sha256:{'8' * 64}"
    with pytest.raises(Untrusted, match=f"what ours.pem has signed is {other}"):
        signer_of("tiny", DIGEST, [ours.sign("tiny", other)], keys)
    forged = Signature(payload=ours.sign("tiny", DIGEST).payload, signature=b"0")
    with pytest.raises(Untrusted, match=ours.id):  # it says so, and is not
        signer_of("tiny", DIGEST, [forged], keys)


OTHER_KEYS: dict[str, Callable[[], ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


@pytest.mark.parametrize("kind", OTHER_KEYS)
def test_a_key_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    path, key = tmp_path / "key", OTHER_KEYS[kind]()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(InvalidInput, match=r"private key .*P-256, got another kind"):
        PrivateKey.read(path, no_password)
    public = key.public_key()
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(InvalidInput, match=r"public key .*P-256, got another kind"):
        PublicKey.read(path)


def test_what_is_no_key_is_refused(tmp_path: Path, ours: Keys) -> None:
    path = tmp_path / "key"
    with pytest.raises(InvalidInput, match=f"{path}: the key cannot be read"):
        PublicKey.read(path)
    path.write_text("no key")
    with pytest.raises(InvalidInput, match="expected a PEM file with a private key"):
        PrivateKey.read(path, no_password)
    with pytest.raises(InvalidInput, match="expected a PEM file with a public key"):
        PublicKey.read(ours.private)


# The commands


def test_an_adapter_is_signed_and_checked_and_stays_what_it_is(
    run: Run, home: Store, ours: Keys, theirs: Keys
) -> None:
    stored = publish(home)
    before = home.read_manifest(Reference(name="tiny"))
    result = run("sign", "tiny", "--key", str(ours.private))
    assert (result.code, result.stdout) == (0, f"tiny:1.0.0@{stored.digest}\n")
    assert result.stderr == f"signed tiny:1.0.0 with {ours.id}\n"
    assert home.read_manifest(Reference(name="tiny")) == before
    assert ours.id in run("verify", "tiny", "--key", str(ours.public)).stdout
    result = run("verify", "--key", str(ours.public), "--key", str(theirs.public), "--json")
    assert json.loads(result.stdout) == [
        {"reference": "tiny:1.0.0", "damage": None, "signer": ours.id}
    ]
    result = run("verify", "tiny", "--key", str(theirs.public))
    assert (result.code, ours.id in result.stdout.replace("\n", "")) == (65, True)
    result = run("sign", "tiny", "--key", str(theirs.private), "--json")
    assert json.loads(result.stdout)["key"] == theirs.id
    assert signers(home, stored) == [theirs.id, ours.id]


def test_the_key_may_have_a_password(
    run: Run, home: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, stored = Keys(tmp_path, "safe", password="open sesame"), publish(home)
    answers = ["close", "open sesame"]
    monkeypatch.setattr("typer.prompt", lambda *_, **__: answers.pop(0))
    result = run("sign", "tiny", "--key", str(keys.private))
    assert (result.code, "password" in result.stderr) == (64, True)
    assert run("sign", "tiny", "--key", str(keys.private)).code == 0
    assert signers(home, stored) == [keys.id]


def test_what_is_damaged_or_elsewhere_is_not_signed(run: Run, home: Store, ours: Keys) -> None:
    stored = publish(home)
    home.blob_path(stored.manifest.tensors.digest).write_bytes(b"x")
    assert run("sign", "tiny", "--key", str(ours.private)).code == 65
    assert signers(home, stored) == []
    assert run("sign", "embedded/tiny", "--key", str(ours.private)).code == 64
    assert run("sign", "other", "--key", str(ours.private)).code == 66
    tags.remove(home, Reference.parse("tiny:1.0.0"))
    with pytest.raises(Exception, match="removed"):
        sign(home, stored, ours)


def test_show_tells_tags_and_who_signed(
    run: Run, home: Store, config: Path, ours: Keys, theirs: Keys
) -> None:
    stored = publish(home)
    shown = json.loads(run("show", "tiny", "--json").stdout)
    assert (shown["aliases"], shown["yanked"], shown["signers"]) == ([], None, [])
    assert "by nobody" in run("show", "tiny").stdout
    tags.move_alias(home, Reference.parse("tiny"), "stable")
    tags.yank(home, Reference.parse("tiny:1.0.0"))
    sign(home, stored, ours, theirs)
    config.write_text(f'[require_signature]\n"oci://host" = ["{ours.public}"]\n')
    shown = json.loads(run("show", "tiny:stable", "--json").stdout)
    assert shown["aliases"] == ["stable"]
    assert shown["yanked"] is not None
    assert shown["signers"] == [
        {"key": ours.id, "trusted_as": "ours.pem"},
        {"key": theirs.id, "trusted_as": None},
    ]
    told = run("show", "tiny:stable").stdout
    assert f"by {ours.id} (ours.pem)" in told
    assert "stable" in told
    assert f"yanked      {shown['yanked']}" in told
    assert f"not checked: it says by {theirs.id}" in " ".join(told.split())


# In a store


def test_signatures_are_kept_when_the_index_is_rebuilt_and_go_with_their_version(
    home: Store, ours: Keys
) -> None:
    first, second = publish(home, seed=1), publish(home, seed=2)
    tags.move_alias(home, Reference.parse("tiny:1.0.0"), "stable")
    sign(home, first, ours)
    rebuild(home)
    assert (signers(home, first), signers(home, second)) == ([ours.id], [])
    tags.remove(home, Reference.parse("tiny:1.0.0"), reason="a test")
    assert signers(home, first) == []


def test_signing_twice_and_signatures_of_other_digests_add_nothing(home: Store, ours: Keys) -> None:
    stored = publish(home)
    signature = ours.sign("tiny", stored.digest)
    home.add_signatures(stored, [signature])
    stamp = home.stamp()
    home.add_signatures(stored, [signature, ours.sign("tiny", DIGEST)])
    assert home.stamp() == stamp
    assert home.read_signatures("tiny", stored.digest) == (signature,)


def test_a_version_takes_no_more_signatures_than_are_allowed(home: Store, ours: Keys) -> None:
    stored = publish(home)
    many = [ours.sign("tiny", stored.digest) for _ in range(MAX_SIGNATURES + 4)]
    home.add_signatures(stored, many[:10])
    home.add_signatures(stored, many[10:])
    assert home.read_signatures("tiny", stored.digest) == (*many[10:], *many[:6])


@pytest.mark.parametrize(
    "text", ["", "{}", '[{"payload":"x"}]', '[{"payload":"","signature":"%"}]']
)
def test_signatures_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(Corrupt, match=SIGNATURES):
        parse_signatures(text)


def test_payloads_of_other_kinds_are_of_no_digest() -> None:
    for payload in (b"", b"{}", b"\xff", b'{"critical":{"type":"x"}}'):
        signature = Signature(payload=payload, signature=b"")
        assert (signature.digest, signature.key_id) == (None, None)
        assert of_digest([signature], DIGEST) == ()
    plain = payload_of("tiny", DIGEST, "k").replace(b'{"key":"k"}', b"null")
    signature = Signature(payload=plain, signature=b"")  # as cosign writes it
    assert (signature.digest, signature.key_id) == (DIGEST, None)


# On its way


def test_signatures_travel_to_a_registry_a_bundle_and_back(
    run: Run, home: Store, remote: str, ours: Keys, theirs: Keys, tmp_path: Path
) -> None:
    stored, other = publish(home), Store(tmp_path / "other")
    assert run("push", "tiny", remote).code == 0
    sign(home, stored, ours)
    assert run("push", "tiny", remote).code == 0  # the version is there; its signature is not
    assert other.copy_from(home, Reference(name="tiny")) == stored
    assert signers(other, stored) == [ours.id]
    sign(other, stored, theirs)
    assert run("push", "tiny", remote, "--home", str(other.root)).code == 0
    assert run("push", "tiny", remote).code == 0  # which loses none of the others
    assert run("pull", f"{remote}/tiny").stdout == f"tiny:1.0.0@{stored.digest}\n"
    assert set(signers(home, stored)) == {ours.id, theirs.id}
    assert run("bundle", "tiny", "--out", str(tmp_path / "b.tar")).code == 0
    bundle, last = f"{(tmp_path / 'b.tar').as_uri()}/tiny", Store(tmp_path / "last")
    assert run("pull", bundle, "--home", str(last.root)).code == 0
    assert set(signers(last, stored)) == {ours.id, theirs.id}


def test_skopeo_and_openssl_find_the_signature_where_cosign_puts_it(
    home: Store, remote: str, ours: Keys, tmp_path: Path
) -> None:
    need("skopeo", "openssl")
    stored = sign(home, publish(home), ours)
    Remotes().push(Reference(name="tiny"), home, remote)
    place, copy = remote.replace("oci:", "docker:"), tmp_path / "copy"
    tag = stored.digest.replace(":", "-") + ".sig"
    command = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false"]
    command += [f"{place}/tiny:{tag}", f"dir:{copy}"]
    subprocess.run(command, check=True, capture_output=True)
    (layer,) = json.loads((copy / "manifest.json").read_text())["layers"]
    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    payload = copy / layer["digest"].removeprefix("sha256:")
    critical = json.loads(payload.read_text())["critical"]
    assert critical["image"] == {"docker-manifest-digest": stored.digest}
    signature = b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    (tmp_path / "signature").write_bytes(signature)
    verify = ["openssl", "dgst", "-sha256", "-verify", str(ours.public)]
    verify += ["-signature", str(tmp_path / "signature"), str(payload)]
    assert subprocess.run(verify, check=True, capture_output=True).stdout == b"Verified OK\n"


# What a remote must show


@pytest.mark.parametrize("kind", ["registry", "directory", "bundle"])
def test_a_remote_that_must_be_signed_is_held_to_it(
    run: Run, home: Store, config: Path, remote: str, ours: Keys, theirs: Keys, kind: str
) -> None:
    folder = home.root.with_name("there")
    there = Store(folder / "zoo")
    stored = publish(there)
    places = {"directory": there.root.as_uri(), "bundle": (folder / "b.tar").as_uri()}
    place = places.get(kind, remote)

    def offer() -> None:
        if kind == "registry":
            Remotes().push(Reference(name="tiny"), there, remote)
        elif kind == "bundle":
            run("bundle", "tiny", "--out", str(folder / "b.tar"), "--home", str(there.root))

    config.write_text(f'[require_signature]\n"{place}" = ["{ours.public}"]\n')
    offer()
    refused = run("pull", f"{place}/tiny")
    assert (refused.code, "got none" in refused.stderr) == (65, True)
    sign(there, stored, theirs)
    offer()
    for command in ("pull", "show", "verify"):
        refused = run(command, f"{place}/tiny")
        assert (refused.code, f"say to be by {theirs.id}" in refused.stderr) == (65, True)
    assert not home.root.exists()
    sign(there, stored, ours)
    offer()
    assert run("pull", f"{place}/tiny").stdout == f"tiny:1.0.0@{stored.digest}\n"
    assert json.loads(run("show", f"{place}/tiny", "--json").stdout)["digest"] == stored.digest


def test_a_signature_of_another_digest_opens_nothing(
    home: Store, remote: str, ours: Keys, tmp_path: Path
) -> None:
    """A remote that hands out the signature of an adapter for another one."""
    there, other = Store(tmp_path / "1"), Store(tmp_path / "2")
    good, bad = publish(there, seed=1), publish(other, seed=2)
    index = json.loads((other.root / "index.json").read_text())
    signature = ours.sign("tiny", good.digest)
    index["manifests"][0]["annotations"][SIGNATURES] = json.dumps(
        [
            {
                "payload": signature.payload.decode(),
                "signature": b64encode(signature.signature).decode(),
            }
        ]
    )
    (other.root / "index.json").write_text(json.dumps(index))
    place = other.root.as_uri()
    match = f"expected a signature of {bad.digest} by ours.pem; .* is {good.digest}"
    with pytest.raises(Untrusted, match=match):
        demand(place, ours).pull(Reference.parse(f"{place}/tiny"), home)
    assert not home.root.exists()
    Remotes().pull(Reference.parse(f"{place}/tiny"), home)
    assert signers(home, bad) == []  # it is not carried on either


def test_what_is_here_already_must_be_signed_there_all_the_same(
    home: Store, ours: Keys, tmp_path: Path
) -> None:
    there = Store(tmp_path / "there")
    publish(there)
    home.copy_from(there, Reference(name="tiny"))
    mirrors = Remotes(order=(there.root.as_uri(),), trusted_keys={"file:///": (ours.public,)})
    with pytest.raises(Untrusted):
        mirrors.pull(Reference(name="tiny"), home)


def test_of_several_rules_the_one_furthest_down_counts(
    home: Store, ours: Keys, theirs: Keys, tmp_path: Path
) -> None:
    there = Store(tmp_path / "there")
    stored = sign(there, publish(there), ours)
    place, above = there.root.as_uri(), tmp_path.as_uri()
    reference = Reference.parse(f"{place}/tiny")
    rules = {above: (theirs.public,), place: (ours.public,), f"{place}-2": (theirs.public,)}
    assert Remotes(trusted_keys=rules).pull(reference, home) == stored
    with pytest.raises(Untrusted):
        demand(above, theirs).pull(reference, home)
    assert demand(above, theirs, ours).pull(reference, home) == stored


def test_no_other_spelling_gets_around_a_rule(
    home: Store, ours: Keys, tmp_path: Path, remote: str
) -> None:
    there = Store(tmp_path / "there")
    publish(there)
    (tmp_path / "link").symlink_to(there.root)
    rule, place = demand(there.root.as_uri(), ours), there.root.as_uri()
    for spelling in (
        place.replace("there", "the%72e"),
        place.replace("/there", "/./there"),
        place.replace("/there", "//there"),
        place.replace("there", "link"),
    ):
        with pytest.raises(Untrusted):
            rule.pull(Reference.parse(f"{spelling}/tiny"), home)
    named = demand("oci://registry.example.com/team", ours)
    assert named._check_of("oci://registry.example.com:443/team", "tiny") is not None
    assert named._check_of("oci://registry.example.com/team2", "tiny") is None


def test_a_rule_may_name_a_single_adapter(home: Store, ours: Keys, tmp_path: Path) -> None:
    there = Store(tmp_path / "there")
    stored = publish(there)
    place = there.root.as_uri()
    reference = Reference.parse(f"{place}/tiny")
    with pytest.raises(Untrusted):
        demand(f"{place}/tiny", ours).pull(reference, home)
    assert demand(f"{place}/tin", ours).pull(reference, home) == stored
    team = "oci://registry.example.com/team"
    for remote, name in ((team, "sst2"), ("oci://registry.example.com:443/team", "sst2")):
        assert demand(f"{team}/sst2", ours)._check_of(remote, name) is not None
    assert demand(f"{team}/sst2", ours)._check_of(team, "sst22") is None
    assert demand("oci://host/tiny", ours)._check_of("oci://host/", "tiny") is not None


def test_another_librarys_checkpoint_is_refused_where_signatures_are_required(ours: Keys) -> None:
    for rule in ("hf://owner", "hf://Owner/Lora"):
        strict = Remotes(trusted_keys={rule: (ours.public,)}, is_offline=True)
        with pytest.raises(Untrusted, match="owner/lora: expected a signature"):
            strict.fetch_checkpoint("hf://owner/lora")
        with pytest.raises(Unavailable, match="offline"):
            strict.fetch_checkpoint("hf://other/lora")


def test_the_settings_name_keys_beside_themselves(
    run: Run, config: Path, ours: Keys, theirs: Keys
) -> None:
    config.write_text(f'[require_signature]\n"oci://host/team" = ["team.pem", "{ours.public}"]\n')
    read = Remotes.read({})
    assert read.trusted_keys == {"oci://host/team": (config.with_name("team.pem"), ours.public)}
    with pytest.raises(InvalidInput, match=r"team\.pem: the key cannot be read"):
        read.public_keys()
    config.with_name("team.pem").write_bytes(theirs.public.read_bytes())
    assert [key.id for key in read.public_keys()] == [theirs.id, ours.id]


@pytest.mark.parametrize(
    "text", ['"oci://host" = []', '"https://host" = ["k"]', '"oci://HOST" = ["k"]', "x = 1"]
)
def test_a_rule_that_cannot_hold_is_refused(config: Path, text: str) -> None:
    config.write_text(f"[require_signature]\n{text}\n")
    with pytest.raises(InvalidInput):
        Remotes.read({})


# Registries that misbehave


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with running_fake() as started:
        yield started


def test_a_signature_artifact_is_read_back(ours: Keys, theirs: Keys) -> None:
    signatures = [ours.sign("tiny", DIGEST), theirs.sign("tiny", DIGEST)]
    made = SignatureArtifact.of(signatures)
    config, *payloads = made.blobs
    assert [each for each, _ in read_artifact(made.manifest)] == [each for each, _ in payloads]
    assert [data for _, data in payloads] == [each.payload for each in signatures]
    document = json.loads(made.manifest)
    assert document["config"]["digest"] == config[0].digest
    noted = [layer["annotations"] for layer in document["layers"]]
    assert [b64decode(each["dev.cosignproject.cosign/signature"]) for each in noted] == [
        each.signature for each in signatures
    ]
    document["layers"][0]["mediaType"] = "text/plain"
    assert len(read_artifact(json.dumps(document).encode())) == 1


def _spoil(change: Callable[[dict[str, list[dict[str, object]]]], object]) -> bytes:
    signatures = [Signature(payload=payload_of("tiny", DIGEST, "k"), signature=b"s")]
    document = json.loads(SignatureArtifact.of(signatures).manifest)
    change(document)
    return json.dumps(document).encode()


HOSTILE = {
    "no JSON": b"<html>",
    "no layers": _spoil(lambda document: document.pop("layers")),
    "too many": _spoil(lambda document: document.update(layers=document["layers"] * 17)),
    "too large": _spoil(lambda document: document["layers"][0].update(size=4097)),
    "no base64": _spoil(
        lambda document: document["layers"][0].update(
            annotations={"dev.cosignproject.cosign/signature": "%"}
        )
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_signatures_are_refused_and_nothing_is_left(
    fake: FakeRegistry, home: Store, tmp_path: Path, kind: str
) -> None:
    there = Store(tmp_path / "there")
    stored = publish(there)
    fake.serve_adapter(there, "tiny")
    path = f"/v2/team/tiny/manifests/{tag_of(stored.digest)}"
    fake.routes[path] = manifest_route(HOSTILE[kind])
    with pytest.raises(Corrupt, match="signatures"):
        Remotes().pull(Reference.parse(f"oci://{fake.host}/team/tiny:1.0.0"), home)
    assert not (home.root / "index.json").exists()


def test_what_is_signed_can_be_resolved_as_before(home: Store, ours: Keys) -> None:
    stored = sign(home, publish(home), ours)
    assert resolve(home, f"tiny@{stored.digest}") == stored
    home.verify_listing(stored)
