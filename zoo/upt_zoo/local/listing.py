"""What the index of a store says: versions, aliases, and what is yanked. Pure.

An entry of the index carries what a list shows, so that a list opens no blob. The blobs stay the
truth: ``Store.verify_listing`` compares, ``upt_zoo.local.upkeep.rebuild`` writes the entries anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import TypeAdapter, ValidationError

from upt_zoo.errors import Corrupt
from upt_zoo.local.history import Event, parse_events
from upt_zoo.manifest import ARTIFACT_TYPE, TITLE, VERSION, Descriptor, Index
from upt_zoo.references import Reference, is_alias, is_version, newest, version_order
from upt_zoo.signatures import SIGNATURES, Signature, parse_signatures
from upt_zoo.spec import AdapterSpec, Name

CREATED = "org.opencontainers.image.created"
ALIAS = "vnd.upt.adapter.alias"
YANKED = "vnd.upt.adapter.yanked"
METHOD = "vnd.upt.adapter.method"
METRICS = "vnd.upt.adapter.metrics"
SIZE = "vnd.upt.adapter.size"
_SUMMARY = {METHOD, METRICS, SIZE}
HISTORY = "vnd.upt.adapter.history."  # and the adapter's name: a key of the index itself
_NAME = TypeAdapter[str](Name)
_METRICS = TypeAdapter(dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a list shows of a version beside its name; metrics in percent."""

    method: str
    metrics: Mapping[str, float]
    size_bytes: int

    def to_annotations(self) -> dict[str, str]:
        """Return the annotations of an index entry that hold it."""
        metrics = _METRICS.dump_json(dict(sorted(self.metrics.items()))).decode()
        return {METHOD: self.method, METRICS: metrics, SIZE: str(self.size_bytes)}

    @classmethod
    def of(cls, spec: AdapterSpec, size_bytes: int) -> Self:
        """Summarise a version."""
        return cls(method=spec.method, metrics=spec.lineage.metrics, size_bytes=size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One version as the index states it."""

    name: str
    version: str
    digest: str
    manifest_bytes: int
    annotations: Mapping[str, str]

    @property
    def reference(self) -> str:
        """``name:version``."""
        return f"{self.name}:{self.version}"

    @property
    def created(self) -> str | None:
        """When it was published, RFC 3339; None if nobody said."""
        return self.annotations.get(CREATED)

    @property
    def yanked(self) -> str | None:
        """When it was yanked, RFC 3339; None if it is not."""
        return self.annotations.get(YANKED)

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """Who says to have signed it; what that is worth, a key tells.

        Raises:
            Corrupt: the entry does not say it readably.
        """
        return parse_signatures(self.annotations.get(SIGNATURES))

    @property
    def summary(self) -> Summary | None:
        """Return what a list shows; None if the entry does not say it readably."""
        noted = self.annotations
        try:
            return Summary(
                method=noted[METHOD],
                metrics=_METRICS.validate_json(noted[METRICS]),
                size_bytes=int(noted[SIZE]),
            )
        except (KeyError, ValueError):  # of pydantic too
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A tag that may move, and the version it points to."""

    name: str
    alias: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The index, read: ``versions`` by name and version, ``aliases`` by name and alias."""

    versions: Mapping[str, Mapping[str, Listed]]
    aliases: Mapping[str, Mapping[str, Alias]]

    @classmethod
    def of(cls, index: Index) -> Self:
        """Read an index; of several entries for one version or alias the first counts.

        Raises:
            Corrupt: an adapter's entry lacks a valid name, version or alias.
        """
        versions: dict[str, dict[str, Listed]] = {}
        aliases: dict[str, dict[str, Alias]] = {}
        pointers: list[Listed] = []
        for entry in index.manifests:
            if entry.artifact_type != ARTIFACT_TYPE:
                continue
            listed = read_entry(entry)
            alias = listed.annotations.get(ALIAS)
            if alias is None:
                versions.setdefault(listed.name, {}).setdefault(listed.version, listed)
                continue
            pointers.append(listed)
            aliases.setdefault(listed.name, {}).setdefault(alias, _read_alias(listed, alias))
        for listed in pointers:  # another tool may have dropped the version's own entry
            versions.setdefault(listed.name, {}).setdefault(listed.version, listed)
        return cls(versions=versions, aliases=aliases)

    def select(self, reference: Reference) -> Listed | None:
        """Return the version that is meant: by version, alias or digest, else the newest.

        What is yanked is meant only by its version, an alias or its digest.

        Raises:
            Corrupt: an alias and its version have different digests.
        """
        known = self.versions.get(reference.name, {})
        if reference.tag is not None:
            return self._select_tag(reference.name, reference.tag)
        if reference.digest is not None:
            meant = newest(v for v, listed in known.items() if listed.digest == reference.digest)
        else:
            meant = newest(v for v, listed in known.items() if listed.yanked is None)
        return None if meant is None else known[meant]

    def _select_tag(self, name: str, tag: str) -> Listed | None:
        if is_version(tag):
            return self.versions.get(name, {}).get(tag)
        alias = self.aliases.get(name, {}).get(tag)
        if alias is None:
            return None
        listed = self.versions[name][alias.version]
        if listed.digest != alias.digest:
            raise Corrupt(
                f"{name}:{tag} points to {alias.digest}, and {listed.reference} is "
                f"{listed.digest}; `upt-zoo tag {listed.reference} {tag}` sets it anew"
            )
        return listed

    def check_aliases(self, listed: Listed) -> None:
        """Check that the aliases of a version lead to its digest.

        Raises:
            Corrupt: one of them has another.
        """
        for alias in self.aliases_of(listed):
            self._select_tag(listed.name, alias)

    def aliases_of(self, listed: Listed) -> tuple[str, ...]:
        """Return the aliases that point to a version, sorted."""
        known = self.aliases.get(listed.name, {}).values()
        return tuple(sorted(each.alias for each in known if each.version == listed.version))

    def all(self) -> tuple[Listed, ...]:
        """Return every version, by name, then from oldest to newest."""
        return tuple(
            self.versions[name][version]
            for name in sorted(self.versions)
            for version in sorted(self.versions[name], key=version_order)
        )


def events_of(index: Index, name: str) -> tuple[Event, ...]:
    """Return what happened to the tags of an adapter, from the oldest event to the newest.

    Raises:
        Corrupt: the history cannot be read.
    """
    return parse_events((index.annotations or {}).get(HISTORY + name))


def check_listed(listed: Listed, summary: Summary, manifest_bytes: int | None) -> None:
    """Compare what an entry says with what the blobs of its version say.

    Raises:
        Corrupt: they differ.
    """
    says_nothing = not listed.annotations.keys() & _SUMMARY
    if listed.manifest_bytes != manifest_bytes or not (says_nothing or listed.summary == summary):
        raise Corrupt(
            f"the index says other things of {listed.reference} than its blobs; "
            f"`upt-zoo reindex` rebuilds it"
        )


def check_notes(index: Index, listed: Listed) -> None:
    """Check that a version's summary, its signatures and the history of its name can be read.

    Raises:
        Corrupt: one of them cannot.
    """
    if listed.summary is None and listed.annotations.keys() & _SUMMARY:
        raise Corrupt(
            f"the index says of {listed.reference} not all of method, metrics and size, or not "
            f"readably; `upt-zoo reindex` rebuilds it"
        )
    try:
        events_of(index, listed.name)
        parse_signatures(listed.annotations.get(SIGNATURES))
    except Corrupt as error:
        raise Corrupt(f"{error}; `upt-zoo reindex` drops what cannot be read") from error


def histories(index: Index) -> tuple[str, ...]:
    """Return the names of which the index holds a history."""
    notes = index.annotations or {}
    return tuple(note.removeprefix(HISTORY) for note in notes if note.startswith(HISTORY))


def read_entry(entry: Descriptor) -> Listed:
    """Read one entry of an adapter.

    Raises:
        Corrupt: it lacks a valid name or version.
    """
    annotations = entry.annotations or {}
    name, version = annotations.get(TITLE, ""), annotations.get(VERSION, "")
    if not (_is_name(name) and is_version(version)):
        raise Corrupt(
            f"index entry {entry.digest}: expected {TITLE} and {VERSION}, a name and "
            f"MAJOR.MINOR.PATCH, got {name!r} and {version!r}; `upt-zoo reindex` rebuilds the index"
        )
    return Listed(
        name=name,
        version=version,
        digest=entry.digest,
        manifest_bytes=entry.size,
        annotations=annotations,
    )


def _read_alias(listed: Listed, alias: str) -> Alias:
    if not is_alias(alias):
        raise Corrupt(
            f"index entry {listed.digest}: expected an alias, got {alias!r}; "
            f"`upt-zoo reindex` rebuilds the index"
        )
    return Alias(name=listed.name, alias=alias, version=listed.version, digest=listed.digest)


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True
