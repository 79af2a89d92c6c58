"""How an adapter is named, and how its versions are ordered. Pure: it knows no store.

    reference = [remote "/"] name [":" tag] ["@" digest]
    remote    = name | ("file" | "oci" | "hf") "://" path       no ".." in the path
    name      = as upt_zoo.spec.Name: a-z, 0-9, single "." "_" "-" in between
    tag       = A-Z, a-z, 0-9, "_", then also "." and "-"; at most 128 characters
    digest    = "sha256:" and 64 lower-case hexadecimal digits

A tag of the form MAJOR.MINOR.PATCH is a version. Without tag and digest the newest version is
meant. Source: the reference grammar of the OCI distribution specification 1.1.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError

from upt_zoo.errors import InvalidReference
from upt_zoo.spec import Digest, Name

_NUMBER = "(0|[1-9][0-9]{0,8})"  # nine digits at most, so that a number is always cheap to compare
Version = Annotated[str, Field(pattern=rf"^{_NUMBER}\.{_NUMBER}\.{_NUMBER}$")]

FIRST_VERSION = "1.0.0"
_REFERENCE = re.compile(
    r"(?:(?P<remote>\S+)/)?(?P<name>[^/:@\s]+)(?::(?P<tag>[^/:@\s]+))?(?:@(?P<digest>[^/@\s]+))?"
)
_REMOTE_URL = re.compile(r"(?:file|oci|hf)://\S+")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")  # one part of its path
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")  # of an owner or a repository
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}")
_NAME = TypeAdapter[str](Name)
_DIGEST = TypeAdapter[str](Digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a user writes to mean one adapter; the module's first lines give the grammar."""

    name: str
    tag: str | None = None
    digest: str | None = None
    remote: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse; ``str`` of the result is the text again.

        Raises:
            InvalidReference: the text does not follow the grammar.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise _invalid(text, "[remote/]name[:tag][@sha256:digest]", text)
        remote, name, tag, digest = found.group("remote", "name", "tag", "digest")
        if not _matches(_NAME, name):
            raise _invalid(text, "a name of a-z, 0-9 and single . _ - in between", name)
        if remote is not None and not _is_remote(remote):
            raise _invalid(text, "a remote's name, file://, oci:// or hf:// without ..", remote)
        if tag is not None and not _TAG.fullmatch(tag):
            raise _invalid(text, "a tag of letters, digits, _ . - (at most 128)", tag)
        if digest is not None and not _matches(_DIGEST, digest):
            raise _invalid(text, "a digest of sha256: and 64 hexadecimal digits", digest)
        return cls(name=name, tag=tag, digest=digest, remote=remote)

    def __str__(self) -> str:
        remote = f"{self.remote}/" if self.remote else ""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{remote}{self.name}{tag}{digest}"


def is_version(tag: str) -> bool:
    """Tell a version (immutable) from an alias tag (which may move)."""
    return _VERSION.fullmatch(tag) is not None


def is_alias(tag: str) -> bool:
    """Tell whether a tag may be an alias: it is a tag and not a version."""
    return _TAG.fullmatch(tag) is not None and not is_version(tag)


def version_order(version: str) -> tuple[int, ...]:
    """Return the key that sorts versions by number: 1.10.0 comes after 1.9.0."""
    return tuple(int(number) for number in version.split("."))


def newest(versions: Iterable[str]) -> str | None:
    """Return the highest version, which need not be the last published; None if there is none."""
    return max(versions, key=version_order, default=None)


def next_patch(version: str | None) -> str:
    """Return the version to publish after ``version``; the first one after None."""
    if version is None:
        return FIRST_VERSION
    major, minor, patch = version_order(version)
    return f"{major}.{minor}.{patch + 1}"


def repository_prefix(remote: str) -> str:
    """Return what stands before the names in the registry's repositories; it may be empty.

    Raises:
        InvalidReference: not ``oci://host[:port][/prefix]``.
    """
    url = urlsplit(remote)
    prefix = url.path.removeprefix("/")
    is_valid = remote == f"oci://{url.netloc}{url.path}" and _HOST.fullmatch(url.netloc)
    if not is_valid or not all(map(_REPOSITORY.fullmatch, prefix.split("/") if prefix else ())):
        raise InvalidReference(
            f"remote {remote!r}: expected oci://host[:port]/prefix in lower case, the parts of "
            f"the prefix as in names"
        )
    return prefix


def registry_host(remote: str) -> str:
    """Return ``host[:port]`` of ``oci://host[:port][/prefix]``.

    Raises:
        InvalidReference: not such a remote.
    """
    repository_prefix(remote)
    return urlsplit(remote).netloc


def hub_repository(remote: str, name: str) -> str:
    """Return the Hub's ``owner/repository`` of the adapter ``name``.

    At ``hf://owner`` the repository has the adapter's name, at ``hf://owner/repository`` its own.

    Raises:
        InvalidReference: not such a remote.
    """
    owner, *named = remote.removeprefix("hf://").split("/")
    parts = [owner, *(named or [name])]
    if not remote.startswith("hf://") or len(parts) > 2 or not all(map(_HUB_NAME.fullmatch, parts)):
        raise InvalidReference(
            f"remote {remote!r}: expected hf://owner or hf://owner/repository, as on the Hub"
        )
    return "/".join(parts)


def _is_remote(text: str) -> bool:
    is_url = _REMOTE_URL.fullmatch(text) is not None
    return _matches(_NAME, text) or (is_url and ".." not in text.split("/"))


def _matches(kind: TypeAdapter[str], text: str) -> bool:
    try:
        kind.validate_python(text)
    except ValidationError:
        return False
    return True


def _invalid(text: str, expected: str, got: str) -> InvalidReference:
    return InvalidReference(f"reference {text!r}: expected {expected}, got {got!r}")
