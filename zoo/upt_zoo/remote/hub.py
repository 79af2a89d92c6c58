"""One Hugging Face Hub: files at a revision, commits and tags.

It is reached by huggingface-hub, which knows the endpoint, the token, the cache and whether it is
offline (``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME``, ``HF_HUB_OFFLINE``). Added here: TLS, but on
loopback and with hosts that the user has named; no download beyond the size that was expected; the
library's errors are ours. It knows nothing of adapters; see ``upt_zoo.remote.hf``.

Source: the HTTP API as huggingface-hub 2.4 speaks it.
"""

import importlib.metadata
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils.tqdm import tqdm

from upt_zoo.errors import (
    AdapterNotFound,
    Corrupt,
    InvalidInput,
    InvalidReference,
    Unavailable,
    UptError,
)
from upt_zoo.remote.connection import is_loopback

MAIN = "main"
_SLACK_BYTES = 64 * 1024 * 1024  # Xet, one of the Hub's ways, loads more than it asked for
_NOT_SHOWN, _ABSENT, _TAKEN, _MOVED = 401, 404, 409, 412
_UNKNOWN_TOKEN = "Invalid credentials in Authorization header"
_MET = (httpx2.HTTPError, EntryNotFoundError, OSError, ValueError, KeyError, TypeError)
_WHO = "set HF_TOKEN or run `hf auth login`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """What a repository's names point to: its tags, and the commit of its main branch."""

    tags: tuple[str, ...] = ()
    main: str | None = None


class Hub:
    """The Hub at ``endpoint``; everything left out is as huggingface-hub finds it.

    ``plain_http`` are ``host[:port]`` that are spoken to without TLS.

    Raises:
        InvalidInput: the endpoint is one without TLS, and not named.
    """

    def __init__(
        self,
        *,
        plain_http: Collection[str] = (),
        endpoint: str | None = None,
        token: str | None = None,
        cache: Path | None = None,
    ) -> None:
        self._api = HfApi(
            endpoint=endpoint,
            token=token,
            library_name="upt-zoo",
            library_version=importlib.metadata.version("upt-zoo"),
        )
        self._cache = cache
        url = urlsplit(self._api.endpoint)
        if url.scheme != "https" and not (url.netloc in plain_http or is_loopback(url.netloc)):
            raise InvalidInput(
                f"HF_ENDPOINT {self._api.endpoint}: expected https://, or its host among those "
                f"that plain_http in remotes.toml names"
            )

    @property
    def is_offline(self) -> bool:
        """Whether ``HF_HUB_OFFLINE`` leaves nothing but the cache."""
        return is_offline_mode()

    def fetch(
        self,
        repository: str,
        path: str,
        revision: str,
        *,
        max_bytes: int,
        is_fresh: bool = False,
    ) -> Path:
        """Return where the cache keeps a file at a branch, a tag or a commit.

        ``is_fresh`` loads it again, unless we are offline.

        Raises:
            AdapterNotFound: no such repository, revision or file.
            Corrupt: the file is longer than ``max_bytes``, or it is not a Hub that answers.
            InvalidInput: the Hub does not let us.
            Unavailable: no answer in time, or offline and not in the cache.
        """
        with _translated(f"{repository}/{path} at {revision}"):
            return Path(
                self._api.hf_hub_download(
                    repository,
                    path,
                    revision=revision,
                    cache_dir=self._cache,
                    force_download=is_fresh and not self.is_offline,
                    tqdm_class=_bounded(f"{repository}/{path}", max_bytes),
                )
            )

    def refs(self, repository: str) -> Refs:
        """Return the tags and the main branch.

        Raises:
            AdapterNotFound: no such repository.
            Corrupt, InvalidInput, Unavailable: see ``fetch``.
        """
        with _translated(repository):
            refs = self._api.list_repo_refs(repository)
        return Refs(
            tags=tuple(tag.name for tag in refs.tags),
            main=next((each.target_commit for each in refs.branches if each.name == MAIN), None),
        )

    def files(self, repository: str, revision: str) -> frozenset[str]:
        """Return the paths of all files at a revision.

        Raises:
            AdapterNotFound, Corrupt, InvalidInput, Unavailable: see ``fetch``.
        """
        with _translated(f"{repository} at {revision}"):
            return frozenset(self._api.list_repo_files(repository, revision=revision))

    def create(self, repository: str) -> None:
        """Create a repository, public or private as the owner's account has it.

        Raises:
            InvalidInput: the Hub does not let us.
            Unavailable: no answer in time, or offline.
        """
        with _translated(repository):
            self._api.create_repo(repository, exist_ok=True)

    def commit(
        self,
        repository: str,
        message: str,
        *,
        added: Mapping[str, bytes],
        deleted: Collection[str] = (),
        parent: str | None,
    ) -> str:
        """Change files of the main branch in one commit on top of ``parent``; return the commit.

        Raises:
            InvalidInput: the Hub does not let us, or does not take a file.
            Unavailable: no answer in time, offline, or the branch has moved on from ``parent``.
        """
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)
            for path, data in added.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=path) for path in deleted]
        with _translated(repository):
            return self._api.create_commit(
                repository, operations, commit_message=message, parent_commit=parent
            ).oid

    def tag(self, repository: str, tag: str, commit: str) -> bool:
        """Tag a commit; False if the tag exists, which then stays.

        Raises:
            InvalidInput: the Hub does not let us.
            Unavailable: no answer in time, or offline.
        """
        with _translated(repository):
            try:
                self._api.create_tag(repository, tag=tag, revision=commit)
            except HfHubHTTPError as error:
                if error.response.status_code != _TAKEN:
                    raise
                return False
        return True


def _bounded(name: str, max_bytes: int) -> type[tqdm]:
    """Return a progress bar that ends the download when it grows too long."""

    def check(size: float, limit: int) -> None:
        if size > limit:
            raise Corrupt(f"{name}: expected at most {max_bytes} bytes, got more")

    class Bounded(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)  # type: ignore[no-untyped-call]  # it ships untyped
            self._size = 0.0
            check(settings.get("total") or 0, max_bytes)

        def update(self, size: float | None = 1) -> bool | None:
            self._size += size or 0  # negative where the download starts again
            check(self._size, max_bytes + _SLACK_BYTES)
            shown: bool | None = super().update(size)
            return shown

    return Bounded


@contextmanager
def _translated(place: str) -> Iterator[None]:
    """Make the library's errors ours; those of the disk stay."""
    try:
        yield
    except (*_MET, RuntimeError) as error:
        cause = _cause(error)
        if not isinstance(cause, _MET) or getattr(cause, "errno", None) is not None:
            raise
        raise _meaning(cause, place) from error


def _cause(error: BaseException) -> BaseException:
    """Return what the library has met, without what it has wrapped it in."""
    is_answer = isinstance(error, HfHubHTTPError)
    wrappers = LocalEntryNotFoundError | ValueError | RuntimeError
    is_wrapper = isinstance(error, wrappers) and not is_answer
    return _cause(error.__cause__) if is_wrapper and error.__cause__ is not None else error


def _meaning(error: BaseException, place: str) -> UptError:
    match error:
        case HfHubHTTPError():
            return _refusal(error, place)
        case HFValidationError():
            return InvalidReference(f"{place}: {_line(error)}")
        case OfflineModeIsEnabled():
            return Unavailable(f"{place}: offline, by HF_HUB_OFFLINE, and not in the cache")
        case LocalEntryNotFoundError() | FileMetadataError():
            return Corrupt(f"{place}: expected the answers of a Hub: {_line(error)}")
        case httpx2.HTTPError() | OSError():
            return Unavailable(f"{place}: no answer from the Hub: {_line(error)}")
        case _:
            return Corrupt(
                f"{place}: expected the answers of a Hub, got others ({type(error).__name__})"
            )


def _refusal(error: HfHubHTTPError, place: str) -> UptError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return InvalidInput(f"{place}: ask for access on its page, then {_WHO}")
    is_reading = error.response.request.method in ("GET", "HEAD")
    is_known = error.response.headers.get("X-Error-Message") != _UNKNOWN_TOKEN
    if status == _ABSENT or (status == _NOT_SHOWN and is_reading and is_known):
        return AdapterNotFound(f"no {place} on the Hub; if it is private, {_WHO}")
    if status in (401, 403):
        return InvalidInput(f"{place}: the Hub does not let us ({status}); {_WHO}")
    if status == _MOVED:
        return Unavailable(f"{place}: somebody else has changed it meanwhile; try again")
    if status == 429 or status >= 500:
        return Unavailable(f"{place}: the Hub answers {status}; try again later")
    return InvalidInput(f"{place}: the Hub answers {status}: {_line(error)}")


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
