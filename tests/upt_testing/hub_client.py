"""Pushes to a Hub and pulls from it, in the test's own process."""

import pytest
from huggingface_hub import constants

from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference
from upt_zoo.remote.remotes import Remotes


def name_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Do what HF_ENDPOINT does when huggingface-hub is imported."""
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def push(remotes: Remotes, store: Store, remote: str, text: str = "tiny") -> StoredAdapter:
    return remotes.push(Reference.parse(text), store, remote)


def pull(remotes: Remotes, store: Store, text: str) -> StoredAdapter:
    return remotes.pull(Reference.parse(text), store)
