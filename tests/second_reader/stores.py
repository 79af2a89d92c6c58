"""A store on disk: what it lists, what a reference means, and whether all of it is whole."""

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from second_reader.forms import (
    DIGEST_FORM,
    VERSION_FORM,
    Damaged,
    digest_of,
    fail,
    is_name,
    need,
    parse_json,
)
from second_reader.manifests import (
    ARTIFACT,
    MANIFEST,
    MAX_BLOB_BYTES,
    MAX_MANIFEST_BYTES,
    TITLE,
    VERSION,
    Manifest,
    pointer_of,
    read_manifest,
)
from second_reader.specs import read_spec
from second_reader.tensors import Tensor, read_tensors

OURS = "vnd.upt.adapter."
REF_NAME = "org.opencontainers.image.ref.name"
_TAG_FORM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REFERENCE = re.compile(r"([^/:@\s]+)(?::([^/:@\s]+))?(?:@([^/@\s]+))?")
_EVENT_KEYS = {"time", "action", "alias", "before", "after", "reason"}
_ACTIONS = ("tag", "rollback", "untag", "yank", "unyank", "remove")


class Missing(Exception):
    """No such name, version, alias or digest."""


@dataclass
class Entry:
    """One version, or one alias, as the index says."""

    name: str
    version: str
    digest: str
    size: int
    notes: dict[str, str]


@dataclass
class Index:
    """What ``index.json`` says."""

    versions: dict[tuple[str, str], Entry] = field(default_factory=dict)
    aliases: dict[tuple[str, str], Entry] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class Adapter:
    """A whole adapter."""

    manifest: Manifest
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    card: str


class Store:
    """A directory in the OCI image layout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def index(self) -> Index:
        """Read the index."""
        blobs = self.root / "blobs" / "sha256"
        path = self.root / "index.json"
        if not path.exists():
            named = [each for each in blobs.glob("*") if re.fullmatch("[0-9a-f]{64}", each.name)]
            need(not named, "blobs and no index")
            return Index()
        values = json.loads(path.read_bytes())
        need(values.get("schemaVersion") == 2, "index: schemaVersion")
        index = Index(notes=dict(values.get("annotations") or {}))
        for each in values.get("manifests", []):
            self._take(index, each)
        for entry in index.aliases.values():
            index.versions.setdefault((entry.name, entry.version), entry)
        return index

    def _take(self, index: Index, values: dict[str, Any]) -> None:
        digest, size = pointer_of(values)
        notes = dict(values.get("annotations") or {})
        if "artifactType" in values:
            if values["artifactType"] != ARTIFACT:
                return
            name, version = notes.get(TITLE), notes.get(VERSION, "")
            alias = notes.get(OURS + "alias")
        else:
            if values.get("mediaType") != MANIFEST:
                return
            try:
                manifest = read_manifest(self._blob(digest, MAX_MANIFEST_BYTES))
            except Damaged:
                return
            name, version = manifest.name, manifest.version
            alias = notes.get(REF_NAME, "").partition("--")[2] or None
        need(is_name(name) and VERSION_FORM.fullmatch(version), "index: name or version")
        entry = Entry(str(name), version, digest, size, notes)
        if alias is None:
            index.versions.setdefault((entry.name, version), entry)
        else:
            need(_TAG_FORM.fullmatch(alias) and not VERSION_FORM.fullmatch(alias), "index: alias")
            index.aliases.setdefault((entry.name, alias), entry)

    def versions(self) -> list[tuple[str, str, str]]:
        """Return name, version and digest of each version, by name and number."""
        versions = self.index().versions.values()
        ordered = sorted(versions, key=lambda each: (each.name, _number(each.version)))
        return [(each.name, each.version, each.digest) for each in ordered]

    def resolve(self, text: str) -> Entry:
        """Return the version that a reference without a remote means."""
        found = _REFERENCE.fullmatch(text)
        need(found, f"no reference: {text}")
        name, tag, digest = found.groups() if found else fail(text)
        index = self.index()
        if tag is None:
            entry = self._newest(index, name, digest)
        elif VERSION_FORM.fullmatch(tag):
            entry = index.versions.get((name, tag))
        else:
            entry = _behind(index, name, tag)
        if entry is None:
            raise Missing(text)
        need(digest in (None, entry.digest), f"{text} has the digest {entry.digest}")
        return entry

    def _newest(self, index: Index, name: str, digest: str | None) -> Entry | None:
        meant = [
            each
            for each in index.versions.values()
            if each.name == name
            and (each.digest == digest if digest else OURS + "yanked" not in each.notes)
        ]
        return max(meant, key=lambda each: _number(each.version), default=None)

    def load(self, entry: Entry) -> Adapter:
        """Read an adapter; every byte is compared with its digest."""
        manifest = read_manifest(self._blob(entry.digest, MAX_MANIFEST_BYTES))
        need((manifest.name, manifest.version) == (entry.name, entry.version), "another manifest")
        blobs = [self._blob(digest, size, is_exact=True) for digest, size in manifest.blobs]
        spec = read_spec(blobs[0])
        need(spec["task"]["name"] == manifest.name, "the task has another name")
        try:
            card = blobs[2].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged("card: no UTF-8") from error
        return Adapter(manifest, spec, read_tensors(blobs[1], spec), card)

    def verify(self) -> list[str]:
        """Check everything; return the versions, which are whole."""
        index = self.index()
        if (self.root / "index.json").exists():
            self._check_layout()
        for (name, tag), alias in index.aliases.items():
            need(index.versions[name, alias.version].digest == alias.digest, f"alias {name}:{tag}")
        for note, text in index.notes.items():
            if note.startswith(OURS + "history."):
                _check_history(text)
        for entry in index.versions.values():
            self._check_entry(entry, self.load(entry))
        return [f"{name}:{version}" for name, version, _ in self.versions()]

    def _check_layout(self) -> None:
        path = self.root / "oci-layout"
        need(path.is_file(), "no oci-layout")
        values = parse_json(path.read_bytes(), "oci-layout")
        version = values.get("imageLayoutVersion") if isinstance(values, dict) else None
        need(version == "1.0.0", "another version of the layout")

    def _check_entry(self, entry: Entry, adapter: Adapter) -> None:
        data = self._blob(entry.digest, MAX_MANIFEST_BYTES)
        need(len(data) == entry.size, f"{entry.name}: the entry's size")
        said = {key: entry.notes.get(OURS + key) for key in ("method", "metrics", "size")}
        if any(value is not None for value in said.values()):
            need(said["method"] == adapter.spec["method"], f"{entry.name}: method")
            metrics = parse_json((said["metrics"] or "").encode(), "metrics")
            need(metrics == adapter.spec["lineage"]["metrics"], f"{entry.name}: metrics")
            size = sum(size for _, size in adapter.manifest.blobs)
            need(said["size"] == str(size), f"{entry.name}: size")
        _check_signatures(entry.notes.get(OURS + "signatures"))

    def _blob(self, digest: str, size: int, *, is_exact: bool = False) -> bytes:
        need(DIGEST_FORM.fullmatch(digest), "a digest")
        path = self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")
        need(path.is_file() and path.stat().st_size <= MAX_BLOB_BYTES, f"{digest} is missing")
        data = path.read_bytes()
        need(len(data) == size if is_exact else len(data) <= size, f"{digest}: size")
        need(digest_of(data) == digest, f"{digest}: other bytes")
        return data


def _behind(index: Index, name: str, tag: str) -> Entry | None:
    alias = index.aliases.get((name, tag))
    if alias is None:
        return None
    entry = index.versions[name, alias.version]
    need(entry.digest == alias.digest, f"alias {name}:{tag} has another digest")
    return entry


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _check_history(text: str) -> None:
    events = parse_json(text.encode(), "history")
    need(isinstance(events, list), "history: no list")
    for event in events:
        need(isinstance(event, dict) and event.keys() <= _EVENT_KEYS, "history: an event")
        need({"time", "action"} <= event.keys(), "history: an event")
        need(all(isinstance(value, str) for value in event.values()), "history: an event")
        need(event["action"] in _ACTIONS, "history: an action")


def _check_signatures(text: str | None) -> None:
    if text is None:
        return
    signatures = parse_json(text.encode(), "signatures")
    need(isinstance(signatures, list) and len(signatures) <= 16, "signatures: no list")
    for each in signatures:
        need(isinstance(each, dict), "signatures: one")
        need(each.keys() == {"payload", "signature"}, "signatures: one")
        need(len(each["payload"]) <= 4096, "signatures: a payload")
        try:
            base64.b64decode(each["signature"], validate=True)
        except ValueError as error:
            raise Damaged("signatures: no base64") from error
