"""Which remotes there are, in which order they are asked, and what may be asked at all.

The user says so in ``remotes.toml`` in the configuration directory of upt; all keys may be left
out:

    remotes = ["oci://registry.example.com/team", "file:///srv/zoo"]   # asked in this order
    allow = ["oci://registry.example.com", "embedded"]                 # nothing else is used
    plain_http = ["registry.lan:5000"]                                 # hosts without TLS
    offline = false

``UPT_ZOO_REMOTES``, URLs with white space in between, goes before ``remotes``, and
``UPT_ZOO_OFFLINE`` before ``offline``. The embedded catalogue is asked last.
"""

import logging
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from upt_zoo.catalogue import EMBEDDED, remote_store
from upt_zoo.errors import AdapterNotFound, InvalidInput, InvalidReference, Unavailable, UptError
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference, registry_host, repository_prefix
from upt_zoo.remote.credentials import Credentials, read_credentials, save_credentials
from upt_zoo.remote.source import Remote

if TYPE_CHECKING:
    from upt_zoo.remote.connection import Connection

_LOG = logging.getLogger(__name__)
_NO = ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remotes:
    """The user's remotes; by default the embedded catalogue alone.

    ``allowed`` are remotes that may be used together with all below them; None allows all.
    ``plain_http`` are ``host[:port]`` that are spoken to without TLS. ``credential_files`` are
    looked through in order.
    """

    order: tuple[str, ...] = (EMBEDDED,)
    allowed: tuple[str, ...] | None = None
    plain_http: frozenset[str] = frozenset()
    is_offline: bool = False
    credential_files: tuple[Path, ...] = ()

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Read the user's settings; ``environment`` is that of the process.

        Raises:
            InvalidInput: a setting is unknown, malformed, or contradicts another one.
        """
        folder = platformdirs.user_config_path("upt", appauthor=False)
        settings = _Settings.read(folder / "remotes.toml")
        order = environment.get("UPT_ZOO_REMOTES", "").split() or settings.remotes
        offline = environment.get("UPT_ZOO_OFFLINE")
        docker = environment.get("DOCKER_CONFIG") or f"{environment.get('HOME', '')}/.docker"
        return cls(
            order=_with_embedded(order, settings.allow),
            allowed=None if settings.allow is None else tuple(settings.allow),
            plain_http=frozenset(settings.plain_http),
            is_offline=settings.offline if offline is None else offline.lower() not in _NO,
            credential_files=(credentials_path(), Path(docker) / "config.json"),
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
        """
        failures: list[UptError] = []
        for remote in (reference.remote,) if reference.remote else self._reachable():
            if failures and isinstance(failures[-1], Unavailable):
                _LOG.warning("%s; asking %s", failures[-1], remote)
            try:
                with self.open(remote, partial=store.root / ".partial") as source:
                    return store.copy_from(source, reference)
            except (AdapterNotFound, Unavailable) as error:
                failures.append(error)
        raise _joined(failures)

    def push(self, reference: Reference, store: Store, remote: str) -> StoredAdapter:
        """Copy a version from the store to a remote: ``oci://host/prefix`` or a directory.

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
        with self.open(remote) as source:
            if isinstance(source, Store):
                yield source
                return
            with tempfile.TemporaryDirectory(prefix="upt-") as folder:
                store = Store(Path(folder))
                store.copy_from(source, reference)
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
        if self.is_offline:
            raise Unavailable(f"{remote}: offline, by --offline, UPT_ZOO_OFFLINE or remotes.toml")
        connection = Connection(host, credentials=credentials, plain_http=self.plain_http)
        try:
            yield connection
        finally:
            connection.close()

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
            yield OciRemote(remote, connection, partial=partial)

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

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (ValidationError, ValueError) as error:
            raise InvalidInput(f"{path}: {error}") from error


def credentials_path() -> Path:
    """Return the file of the user's names and passwords."""
    return platformdirs.user_config_path("upt", appauthor=False) / "credentials.json"


def _with_embedded(order: Sequence[str], allowed: Sequence[str] | None) -> tuple[str, ...]:
    """Put the embedded catalogue last, unless it stands somewhere or is not allowed."""
    for remote in order:
        if remote.startswith("oci://"):
            repository_prefix(remote)
        else:
            _store_of(remote)
        if not _is_allowed(remote, allowed):
            raise InvalidInput(f"remote {remote}: to be asked, but not allowed in remotes.toml")
    is_added = EMBEDDED not in order and _is_allowed(EMBEDDED, allowed)
    return (*order, EMBEDDED) if is_added else tuple(order)


def _is_allowed(remote: str, allowed: Sequence[str] | None) -> bool:
    """Tell whether a remote is one of the allowed ones, or below one."""
    return allowed is None or any(
        f"{remote}/".startswith(f"{each.rstrip('/')}/") for each in allowed
    )


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
        raise InvalidReference(f"{error} or oci://host[:port]/prefix") from error


def _joined(failures: Sequence[UptError]) -> UptError:
    """Make one error of those of several remotes; one that was not asked may have the adapter."""
    if len(failures) == 1:
        return failures[0]
    kind = Unavailable if any(isinstance(e, Unavailable) for e in failures) else AdapterNotFound
    return kind("; ".join(str(error) for error in failures))
