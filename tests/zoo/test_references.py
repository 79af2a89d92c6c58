import pytest
from hypothesis import given
from hypothesis import strategies as st

from upt_zoo.errors import InvalidReference
from upt_zoo.references import Reference, is_version, newest, next_patch, version_order

DIGEST = "sha256:" + "0f" * 32

names = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)*", fullmatch=True).filter(lambda n: len(n) <= 128)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
remotes = st.one_of(
    names,
    st.sampled_from(["file:///srv/zoo", "oci://localhost:5000/team/zoo", "hf://team", "embedded"]),
)
numbers = st.integers(min_value=0, max_value=999_999_999)
versions = st.builds("{}.{}.{}".format, numbers, numbers, numbers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sst2", Reference(name="sst2")),
        ("sst2:1.2.0", Reference(name="sst2", tag="1.2.0")),
        (f"sst2@{DIGEST}", Reference(name="sst2", digest=DIGEST)),
        ("embedded/sst2:stable", Reference(name="sst2", tag="stable", remote="embedded")),
        ("file:///srv/a.b/sst2", Reference(name="sst2", remote="file:///srv/a.b")),
        (
            f"oci://localhost:5000/zoo/sst2:1.2.0@{DIGEST}",
            Reference(name="sst2", tag="1.2.0", digest=DIGEST, remote="oci://localhost:5000/zoo"),
        ),
    ],
)
def test_a_reference_parses_into_its_parts(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected
    assert str(expected) == text


@given(
    st.builds(
        Reference,
        name=names,
        tag=st.none() | tags,
        digest=st.none() | st.just(DIGEST),
        remote=st.none() | remotes,
    )
)
def test_every_reference_survives_a_round_trip(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


@given(st.text(max_size=40))
def test_any_text_parses_into_itself_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference as error:
        assert "expected" in str(error)  # noqa: PT017 - most examples raise, some do not
    else:
        assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1.0.0",
        "../x",
        "a/../x",
        "/etc/passwd",
        "file:///srv/../etc/x",
        "file:///x",
        "http://host/x",
        "Sst2",
        "sst2\n",
        "sst2:1.0.0\n",
        "sst2:",
        "sst2:-x",
        "sst2:" + "x" * 129,
        "x" * 129,
        "sst2@sha256:12",
        "sst2@md5:" + "0f" * 32,
        "sst2@" + DIGEST.upper(),
        f"sst2@{DIGEST}:1.0.0",
        "a..b",
        "ss t2",
        "sst2\x00",
    ],
)
def test_what_is_not_a_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match=r"expected .* got"):
        Reference.parse(text)


@pytest.mark.parametrize("tag", ["0.0.0", "1.2.3", "10.0.999999999"])
def test_three_numbers_are_a_version(tag: str) -> None:
    assert is_version(tag)


@pytest.mark.parametrize(
    "tag", ["stable", "1", "1.0", "1.0.0.0", "01.0.0", "1.0.0-rc1", "v1.0.0", "1.0.0\n", "1.0.٣"]
)
def test_everything_else_is_an_alias(tag: str) -> None:
    assert not is_version(tag)


def test_versions_are_ordered_by_number_not_by_letter() -> None:
    assert newest(["1.9.0", "1.10.0", "1.2.10"]) == "1.10.0"
    assert newest([]) is None


@given(st.lists(versions, min_size=1))
def test_the_patch_after_the_newest_is_newer_than_all(known: list[str]) -> None:
    following = version_order(next_patch(newest(known)))
    assert all(version_order(version) < following for version in known)


def test_the_first_version_is_1_0_0() -> None:
    assert next_patch(None) == "1.0.0"
