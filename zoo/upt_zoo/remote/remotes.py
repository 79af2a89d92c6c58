"""Which remotes there are, in which order they are asked, and what may be asked at all.

The user says so in ``remotes.toml`` in the configuration directory of upt; all keys may be left
out:

    remotes = ["oci://registry.example.com/team", "file:///srv/zoo"]   # asked in this order
    allow = ["oci://registry.example.com", "embedded"]                 # nothing else is used
    plain_http = ["registry.lan:5000"]                                 # hosts without TLS
    offline = false

    [require_signature]                                                # of all from there
    "oci://registry.example.com/team" = ["team.pem"]                   # by one of these keys

``UPT_ZOO_REMOTES``, URLs with white space in between, goes before ``remotes``, and
``UPT_ZOO_OFFLINE`` before ``offline``. The embedded catalogue is asked last. What is said of a
remote holds for all below it.
"""

import logging
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self
from urllib.parse import unquote, urlsplit

import platformdirs
from pydantic import BaseModel, ConfigDict, Field

from upt_zoo.catalogue import EMBEDDED, remote_store
from upt_zoo.errors import (
    AdapterNotFound,
    InvalidInput,
    InvalidReference,
    Unavailable,
    Untrusted,
    UptError,
)
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.progress import Report, silent
from upt_zoo.reasons import all_reasons
from upt_zoo.references import Reference, hub_repository, registry_host, repository_prefix
from upt_zoo.remote.credentials import Credentials, read_credentials, save_credentials
from upt_zoo.remote.source import Remote, TrustCheck
from upt_zoo.signatures import Signature

if TYPE_CHECKING:
    from upt_zoo.keys import PublicKey
    from upt_zoo.remote.connection import Connection
    from upt_zoo.remote.hub import Hub

_LOG = logging.getLogger(__name__)
_NO = ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remotes:
    """The user's remotes; by default the embedded catalogue alone.

    ``allowed`` are remotes that may be used together with all below them; None allows all.
    ``plain_http`` are ``host[:port]`` that are spoken to without TLS. ``credential_files`` are
    looked through in order. ``trusted_keys`` are, by remote, the files of the public keys of which
    one must have signed whatever comes from there; of several remotes the one furthest down counts.
    ``report`` is told how far blobs have come on their way from and to registries.
    """

    order: tuple[str, ...] = (EMBEDDED,)
    allowed: tuple[str, ...] | None = None
    plain_http: frozenset[str] = frozenset()
    is_offline: bool = False
    credential_files: tuple[Path, ...] = ()
    trusted_keys: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    report: Report = silent

    @classmethod
    def read(cls, environment: Mapping[str, str], *, report: Report = silent) -> Self:
        """Read the user's settings; ``environment`` is that of the process.

        Raises:
            InvalidInput: a setting is unknown, malformed, or contradicts another one.
        """
        folder = platformdirs.user_config_path("upt", appauthor=False)
        settings = _Settings.read(folder / "remotes.toml")
        order = environment.get("UPT_ZOO_REMOTES", "").split() or settings.remotes
        for remote in settings.require_signature:
            _check_remote(remote)  # one that is misspelt would never be met
        offline = environment.get("UPT_ZOO_OFFLINE")
        docker = environment.get("DOCKER_CONFIG") or f"{environment.get('HOME', '')}/.docker"
        return cls(
            order=_with_embedded(order, settings.allow),
            allowed=None if settings.allow is None else tuple(settings.allow),
            plain_http=frozenset(settings.plain_http),
            is_offline=settings.offline if offline is None else offline.lower() not in _NO,
            credential_files=(credentials_path(), Path(docker) / "config.json"),
            trusted_keys={
                remote: tuple(folder / key for key in keys)
                for remote, keys in settings.require_signature.items()
            },
            report=report,
        )

    def pull(self, reference: Reference, store: Store) -> StoredAdapter:
        """Copy a version into the store, from its remote or else from the first that has it.

        A remote that does not answer is passed over, with a warning.

        Raises:
            AdapterNotFound: no remote has it.
            Conflict: the version exists in the store with other bytes.
            Corrupt: what the remote sends is damaged; nothing was copied.
            InvalidInput: the remote is not allowed, or does not let us.
            Unavailable: no remote has it, and one did not answer; or we are offline.
            Untrusted: the remote's adapters must be signed, and this one is not, or by others.
        """
        failures: list[UptError] = []
        for remote in (reference.remote,) if reference.remote else self._reachable():
            if failures and isinstance(failures[-1], Unavailable):
                _LOG.warning("%s; asking %s", failures[-1], remote)
            try:
                with self.open(remote, partial=store.root / ".partial") as source:
                    check = self._check_of(remote, reference.name)
                    return store.copy_from(source, reference, check=check)
            except (AdapterNotFound, Unavailable) as error:
                failures.append(error)
        raise _joined(failures)

    def push(self, reference: Reference, store: Store, remote: str) -> StoredAdapter:
        """Copy a version from the store to a remote: a registry, a Hub's owner, or a directory.

        Raises:
            AdapterNotFound: the store does not have it.
            Conflict: the version exists there with other bytes.
            Corrupt: the store's bytes are damaged; nothing was copied.
            InvalidInput: the remote is not allowed, does not let us, or is read-only.
            Unavailable: no answer in time, or we are offline.
        """
        stored = store.resolve(reference)
        exact = Reference(name=stored.name, tag=stored.version, digest=stored.digest)
        with store.lease(stored), self.open(remote, is_read_only=False) as target:
            return target.copy_from(store, exact)

    @contextmanager
    def open(
        self, remote: str, *, partial: Path | None = None, is_read_only: bool = True
    ) -> Iterator[Remote]:
        """Open what stands before the name in a reference.

        ``partial`` is where a registry's blobs are kept until they are whole.

        Raises:
            InvalidInput: not allowed.
            InvalidReference: not a remote.
            Unavailable: we are offline.
        """
        self._check_allowed(remote)
        if remote.startswith("oci://"):
            with self._registry(remote, partial) as registry:
                yield registry
        elif remote.startswith("hf://"):
            yield self._hub_remote(remote)
        else:
            with _opened_store(remote, is_read_only=is_read_only) as store:
                yield store

    @contextmanager
    def borrow(self, reference: Reference, remote: str) -> Iterator[Store]:
        """Open a store that holds what the reference means at a remote.

        A registry's adapter is copied into one that goes away afterwards.

        Raises:
            UptError: as ``pull``.
        """
        check = self._check_of(remote, reference.name)
        with self.open(remote) as source:
            if isinstance(source, Store) and check is None:
                yield source
                return
            with tempfile.TemporaryDirectory(prefix="upt-") as folder:
                store = Store(Path(folder))
                store.copy_from(source, reference, check=check)
                yield store

    @contextmanager
    def connect(self, remote: str, credentials: Credentials | None) -> Iterator["Connection"]:
        """Open a connection to the registry of a remote, ``oci://host[:port][/prefix]``.

        Raises:
            InvalidInput: not allowed.
            InvalidReference: not such a remote.
            Unavailable: we are offline.
        """
        from upt_zoo.remote.connection import (
            Connection,  # a network library: only where there is one
        )

        host = registry_host(remote)
        self._check_allowed(remote)
        self._check_online(remote)
        connection = Connection(host, credentials=credentials, plain_http=self.plain_http)
        try:
            yield connection
        finally:
            connection.close()

    def public_keys(self) -> tuple["PublicKey", ...]:
        """Read every key that some remote's adapters must be signed with.

        Raises:
            InvalidInput: a file cannot be read, or holds another kind of key.
        """
        from upt_zoo.keys import PublicKey

        paths = {path: None for paths in self.trusted_keys.values() for path in paths}
        return tuple(PublicKey.read(path) for path in paths)

    def log_in(self, host: str, credentials: Credentials) -> None:
        """Try a name and a password at ``host[:port]`` and keep them.

        Raises:
            InvalidInput: the registry does not let them in.
            Unavailable: no answer in time, or we are offline.
        """
        with self.connect(f"oci://{host}", credentials) as connection:
            connection.request("GET", "/v2/", expected=(200,))
        save_credentials(host, credentials, credentials_path())

    @contextmanager
    def _registry(self, remote: str, partial: Path | None) -> Iterator[Remote]:
        from upt_zoo.remote.oci import OciRemote

        credentials = read_credentials(registry_host(remote), self.credential_files)
        with self.connect(remote, credentials) as connection:
            yield OciRemote(remote, connection, partial=partial, report=self.report)

    def fetch_checkpoint(self, source: str) -> tuple[Path, str]:
        """Fetch another library's checkpoint, ``hf://owner/repository[@revision]``, from the Hub.

        Returns its directory in the Hub's cache, and ``source`` with the commit for a revision.

        Raises:
            AdapterNotFound: no such repository or revision.
            Corrupt: a file is too long, or it is not a Hub that answers.
            InvalidInput: not allowed, no checkpoint, or the Hub does not let us.
            InvalidReference: not such a source.
            Unavailable: no answer in time, or we are offline.
            Untrusted: what comes from there must be signed, which no such checkpoint is.
        """
        from upt_zoo.remote.checkpoints import fetch_checkpoint, parse_checkpoint

        repository, revision = parse_checkpoint(source)
        remote = f"hf://{repository}"
        self._check_allowed(remote)
        if self._trusted_keys_of(_place(remote)) is not None:
            raise Untrusted(
                f"{remote}: expected a signature, as remotes.toml requires of what comes from "
                f"there, but another library's checkpoint has none; import a copy that you trust "
                f"from a directory"
            )
        directory, commit = fetch_checkpoint(self._hub(remote), repository, revision)
        return directory, f"{remote}@{commit}"

    def _hub_remote(self, remote: str) -> Remote:
        _check_remote(remote)
        from upt_zoo.remote.hf import HfRemote

        return HfRemote(remote, self._hub(remote))

    def _hub(self, remote: str) -> "Hub":
        self._check_online(remote)
        from upt_zoo.remote.hub import Hub  # a large library: only where there is a Hub

        return Hub(plain_http=self.plain_http)

    def _check_online(self, remote: str) -> None:
        if self.is_offline:
            raise Unavailable(f"{remote}: offline, by --offline, UPT_ZOO_OFFLINE or remotes.toml")

    def _check_of(self, remote: str, name: str) -> TrustCheck | None:
        """Return what looks at the signatures of an adapter from a remote; None if nothing does."""
        paths = self._trusted_keys_of(_place(remote, name))
        if paths is None:
            return None
        from upt_zoo.keys import PublicKey, signer_of  # a large library: only where there are keys

        keys = [PublicKey.read(path) for path in paths]

        def check(reference: str, digest: str, signatures: Sequence[Signature]) -> None:
            signer_of(f"{remote}/{reference}", digest, signatures, keys)

        return check

    def _trusted_keys_of(self, place: str) -> tuple[Path, ...] | None:
        """Return the keys of the rule furthest down that governs a place; None if none does."""
        governing = [each for each in self.trusted_keys if _is_below(place, _place(each))]
        if not governing:
            return None
        return self.trusted_keys[max(governing, key=lambda each: len(_place(each)))]

    def _check_allowed(self, remote: str) -> None:
        if not _is_allowed(remote, self.allowed):
            raise InvalidInput(f"remote {remote}: not among those that remotes.toml allows")

    def _reachable(self) -> Sequence[str]:
        remotes = [each for each in self.order if not (self.is_offline and _is_network(each))]
        if not remotes:
            raise Unavailable(f"no remote to ask: offline, and there are {', '.join(self.order)}")
        return remotes


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    remotes: list[str] = []
    allow: list[str] | None = None
    plain_http: list[str] = []
    offline: bool = False
    require_signature: dict[str, Annotated[list[str], Field(min_length=1)]] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except ValueError as error:
            raise InvalidInput(f"{path}: {all_reasons(error, cls.model_fields)}") from error


def credentials_path() -> Path:
    """Return the file of the user's names and passwords."""
    return platformdirs.user_config_path("upt", appauthor=False) / "credentials.json"


def _with_embedded(order: Sequence[str], allowed: Sequence[str] | None) -> tuple[str, ...]:
    """Put the embedded catalogue last, unless it stands somewhere or is not allowed."""
    for remote in order:
        _check_remote(remote)
        if not _is_allowed(remote, allowed):
            raise InvalidInput(f"remote {remote}: to be asked, but not allowed in remotes.toml")
    is_added = EMBEDDED not in order and _is_allowed(EMBEDDED, allowed)
    return (*order, EMBEDDED) if is_added else tuple(order)


def _check_remote(remote: str) -> None:
    """Refuse what is no remote.

    Raises:
        InvalidReference: it is none.
    """
    if remote.startswith("oci://"):
        repository_prefix(remote)
    elif remote.startswith("hf://"):
        hub_repository(remote, "name")
    else:
        _store_of(remote)


def _is_allowed(remote: str, allowed: Sequence[str] | None) -> bool:
    """Tell whether a remote is one of the allowed ones, or below one."""
    return allowed is None or any(_is_below(remote, each) for each in allowed)


def _is_below(remote: str, other: str) -> bool:
    return f"{remote}/".startswith(f"{other.rstrip('/')}/")


def _place(remote: str, name: str | None = None) -> str:
    """Spell a remote in one way only, so that no other spelling gets around a rule.

    With the name of an adapter it is the adapter's place; at the Hub that is the repository, of
    which there are two spellings.
    """
    url = urlsplit(remote)
    if url.scheme == "file":
        return (Path(unquote(url.path)).resolve() / (name or "")).as_uri()
    if url.scheme == "oci":
        host = url.netloc.removesuffix(":443").removesuffix(":80")
        place = f"oci://{host}{url.path}"
        return f"{place.rstrip('/')}/{name}" if name else place
    if url.scheme == "hf":
        place = f"hf://{hub_repository(remote, name)}" if name else remote
        return place.lower()  # as the Hub does
    return remote


def _is_network(remote: str) -> bool:
    return not (remote == EMBEDDED or remote.startswith("file://"))


@contextmanager
def _opened_store(remote: str, *, is_read_only: bool) -> Iterator[Store]:
    """Open a directory, the catalogue, or a bundle, which is unpacked first."""
    store = _store_of(remote)
    if store.root.is_file():
        from upt_zoo.remote.bundle import unpacked

        with unpacked(store.root) as store:
            yield store
    elif is_read_only or remote == EMBEDDED:
        yield store
    else:
        yield Store(store.root)


def _store_of(remote: str) -> Store:
    try:
        return remote_store(remote)
    except InvalidReference as error:
        raise InvalidReference(f"{error}, oci://host[:port]/prefix or hf://owner") from error


def _joined(failures: Sequence[UptError]) -> UptError:
    """Make one error of those of several remotes; one that was not asked may have the adapter."""
    if len(failures) == 1:
        return failures[0]
    kind = Unavailable if any(isinstance(e, Unavailable) for e in failures) else AdapterNotFound
    return kind("; ".join(str(error) for error in failures))
