"""Checkpoints of other libraries on a Hub: ``hf://owner/repository[@revision]``."""

import re
from pathlib import Path

from upt_zoo.errors import InvalidInput, InvalidReference
from upt_zoo.interop import adapterhub_names, peft
from upt_zoo.references import hub_repository
from upt_zoo.remote.hub import MAIN, Hub
from upt_zoo.remote.hub_files import CHECKPOINT_FILES

_MAX_BYTES = 1024 * 1024 * 1024  # as an adapter's own blobs
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_CONFIG = peft.CONFIG  # AdapterHub's has the same name
_SAFE_OF = {
    peft.PICKLED: peft.WEIGHTS,
    adapterhub_names.PICKLED: adapterhub_names.WEIGHTS,
    adapterhub_names.HEAD_PICKLED: adapterhub_names.HEAD_WEIGHTS,
}


def parse_checkpoint(source: str) -> tuple[str, str]:
    """Return the repository, ``owner/name``, and the revision, by default the main branch.

    Raises:
        InvalidReference: not ``hf://owner/repository[@revision]``.
    """
    remote, _, revision = source.partition("@")
    repository = hub_repository(remote, "")
    if revision and not _REVISION.fullmatch(revision):
        raise InvalidReference(f"{source!r}: expected a branch, a tag or a commit behind the @")
    return repository, revision or MAIN


def fetch_checkpoint(hub: Hub, repository: str, revision: str) -> tuple[Path, str]:
    """Return the directory, in the library's cache, of a checkpoint's files, and their commit.

    Pickled files are fetched only where there are no others.

    Raises:
        AdapterNotFound: no such repository or revision.
        Corrupt: a file is too long, or it is not a Hub that answers.
        InvalidInput: there is no checkpoint, or the Hub does not let us.
        Unavailable: no answer in time, or offline and not in the cache.
    """
    there = hub.files(repository, revision) & CHECKPOINT_FILES
    if _CONFIG not in there:
        raise InvalidInput(f"{repository} at {revision}: expected a checkpoint with {_CONFIG}")
    config = hub.fetch(repository, _CONFIG, revision, max_bytes=_MAX_BYTES)
    commit = config.parent.name
    for path in sorted(there):
        if _SAFE_OF.get(path) not in there:
            hub.fetch(repository, path, commit, max_bytes=_MAX_BYTES)
    return config.parent, commit
