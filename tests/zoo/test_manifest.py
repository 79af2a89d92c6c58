import json

import pytest

from upt_zoo.errors import Corrupt
from upt_zoo.local.listing import Listing
from upt_zoo.manifest import Descriptor, Index, Manifest, digest_of

MANIFEST = Manifest.of("tiny", "1.2.0", spec=b"{}", tensors=b"tensors", card=b"# Tiny")
FOREIGN = {
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "digest": "sha256:" + "ee" * 32,
    "size": 7,
    "platform": {"os": "linux"},
}


def _edited(**changes: object) -> bytes:
    return json.dumps(json.loads(MANIFEST.to_json()) | changes).encode()


def test_the_bytes_are_pinned() -> None:
    assert MANIFEST.to_json() == (
        b'{"annotations":{"org.opencontainers.image.title":"tiny",'
        b'"org.opencontainers.image.version":"1.2.0"},'
        b'"artifactType":"application/vnd.upt.adapter.v1",'
        b'"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",'
        b'"mediaType":"application/vnd.upt.adapter.config.v1+json","size":2},'
        b'"layers":[{"digest":"sha256:26cc73f9fbf623d9a49bbf3f3d88f70195f2de68d7f25b5161f6700e6644cf44",'
        b'"mediaType":"application/vnd.upt.adapter.tensors.v1+safetensors","size":7},'
        b'{"digest":"sha256:ffbba9aee914e5c943151cb5c7ec23cc51af1102d4fa04b4022c67dfa2bc21d6",'
        b'"mediaType":"application/vnd.upt.adapter.card.v1+markdown","size":6}],'
        b'"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
    )


def test_a_manifest_survives_a_round_trip() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_a_manifest_names_its_blobs_by_digest_and_size() -> None:
    assert (MANIFEST.name, MANIFEST.version) == ("tiny", "1.2.0")
    assert MANIFEST.tensors.digest == digest_of(b"tensors")
    assert MANIFEST.card.size == len(b"# Tiny")


def test_unknown_annotations_and_properties_of_other_tools_are_accepted() -> None:
    annotations = json.loads(MANIFEST.to_json())["annotations"] | {"org.example.note": "hello"}
    read = Manifest.from_json(_edited(annotations=annotations, subject=FOREIGN))
    assert json.loads(read.to_json())["annotations"] == annotations


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        MANIFEST.to_json()[:-1],
        _edited(schemaVersion=1),
        _edited(schemaVersion="2"),
        _edited(artifactType="application/vnd.other"),
        _edited(layers=[]),
        _edited(layers=json.loads(MANIFEST.to_json())["layers"][::-1]),
        _edited(config=FOREIGN),
        _edited(config=FOREIGN | {"digest": "sha256:../../etc/passwd"}),
        _edited(config=FOREIGN | {"size": 2**60}),
        _edited(config=FOREIGN | {"size": -1}),
        _edited(annotations={}),
        _edited(
            annotations={
                "org.opencontainers.image.title": "../x",
                "org.opencontainers.image.version": "1.0.0",
            }
        ),
        _edited(
            annotations={
                "org.opencontainers.image.title": "tiny",
                "org.opencontainers.image.version": "1.0." + "9" * 5000,
            }
        ),
    ],
    ids=range(18),
)
def test_what_is_not_an_adapters_manifest_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="manifest"):
        Manifest.from_json(data)


def test_an_index_lists_adapters_and_keeps_what_other_tools_wrote() -> None:
    foreign = {"schemaVersion": 2, "manifests": [FOREIGN], "annotations": {"a": "b"}}
    index = Index.from_json(json.dumps(foreign).encode()).with_manifest(MANIFEST.to_json())
    again = Index.from_json(index.to_json())
    (listed,) = Listing.of(again).all()
    assert (listed.reference, listed.digest) == ("tiny:1.2.0", digest_of(MANIFEST.to_json()))
    written = json.loads(again.to_json())
    assert written["manifests"][0] == FOREIGN
    assert written["annotations"] == {"a": "b"}


def test_an_index_entry_has_a_tag_that_registry_tools_can_address() -> None:
    entry = Index().with_manifest(MANIFEST.to_json()).manifests[0]
    assert entry.annotations is not None
    assert entry.annotations["org.opencontainers.image.ref.name"] == "tiny-1.2.0"


@pytest.mark.parametrize("data", [b"", b"[]", b'{"schemaVersion":1}', b'{"manifests":[{}]}'])
def test_what_is_not_an_index_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="index"):
        Index.from_json(data)


@pytest.mark.parametrize(
    "annotations",
    [
        None,
        {"org.opencontainers.image.title": "tiny"},
        {
            "org.opencontainers.image.title": "../x",
            "org.opencontainers.image.version": "1.0.0",
        },
    ],
)
def test_an_adapters_entry_without_a_valid_name_and_version_is_corrupt(
    annotations: dict[str, str] | None,
) -> None:
    entry = Descriptor(
        media_type="application/vnd.oci.image.manifest.v1+json",
        digest=digest_of(b""),
        size=0,
        artifact_type="application/vnd.upt.adapter.v1",
        annotations=annotations,
    )
    with pytest.raises(Corrupt, match="index entry"):
        Listing.of(Index(manifests=(entry,)))
