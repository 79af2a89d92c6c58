"""Kills ``upt-zoo push`` and ``upt-zoo pull`` on their way to a remote, and looks at what is left.

    python -m upt_testing.remote_crashes OPERATION REMOTE FOLDER FIRST STRIDE

A push is killed before each piece of a request that it sends, a pull before each piece of an answer
that it reads; of these moments only each STRIDEth, from the FIRST on. After each kill a version is
at the remote to the last byte, its signature too, or nothing of it can be seen; the store verifies;
and the same command leads to the same end. It prints how many times it killed. It is a program of
its own because it forks, which a process with threads must not.
"""

import itertools
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from huggingface_hub import constants

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_testing.keys import Keys
from upt_testing.kills import ANSWERED, SENT, is_killed, run_in_child
from upt_testing.stores import check_whole, needs
from upt_zoo import cli
from upt_zoo.errors import AdapterNotFound
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference, newest
from upt_zoo.remote import hub_page  # noqa: F401 - once, and not in each child
from upt_zoo.remote.hf import HfRemote
from upt_zoo.remote.oci import OciRemote
from upt_zoo.remote.remotes import Remotes
from upt_zoo.remote.source import Remote

CARD = "# Tiny\n" + "All about it.\n" * 10_000  # so long that it is sent and read in pieces


@dataclass(frozen=True)
class Transfer:
    """One version between a store and a remote; ``there`` are the versions there before it."""

    store: Store
    stored: StoredAdapter
    remote: str
    there: frozenset[str] = frozenset()

    def push(self) -> None:
        upt_zoo("push", self.stored.reference, self.remote, "--home", str(self.store.root))

    def pull(self, home: Path) -> None:
        constants.HF_HUB_CACHE = str(home / "cache")
        reference = f"{self.remote}/{self.stored.reference}"
        upt_zoo("pull", reference, "--home", str(home / "zoo"))

    def check_visible(self, *, is_done: bool) -> None:
        """Assert that the remote lists the version or does not, and that a pull agrees."""
        version = self.stored.version
        with Remotes().open(self.remote) as remote:
            listed = versions(remote)
            is_there = version in listed
            assert listed == (self.there | {version} if is_there else self.there)
            assert is_there or not is_done
            assert is_there or self.seen(remote, f"tiny:{version}") is None
            assert self.seen(remote, "tiny") == newest(listed)

    def seen(self, remote: Remote, text: str) -> str | None:
        """Pull into an empty store; return the version, if there is one."""
        with TemporaryDirectory() as folder:
            constants.HF_HUB_CACHE = f"{folder}/cache"
            home = Store(Path(folder) / "zoo")
            try:
                pulled = home.copy_from(remote, Reference.parse(text))
            except AdapterNotFound:
                assert not home.root.exists()
                return None
            self.check_equal(home, pulled)
            return pulled.version

    def check_equal(self, home: Store, pulled: StoredAdapter) -> None:
        """Assert that two stores have a version to the last byte, and its signatures."""
        check_whole(home.root)
        for name in needs(pulled):
            path = home.blob_path(f"sha256:{name}")
            assert path.read_bytes() == self.store.blob_path(f"sha256:{name}").read_bytes()
        signatures = [each.read_signatures("tiny", pulled.digest) for each in (home, self.store)]
        assert len(signatures[0]) == 1
        assert signatures[0] == signatures[1]


def versions(remote: Remote) -> frozenset[str]:
    assert isinstance(remote, HfRemote | OciRemote)
    try:
        return frozenset(remote.versions("tiny"))
    except AdapterNotFound:  # no repository
        return frozenset()


def upt_zoo(*arguments: str) -> None:
    """Run a command line, which must succeed."""
    sys.argv = ["upt-zoo", *arguments]
    with redirect_stdout(StringIO()), pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, arguments


def do(*actions: Callable[[], None]) -> None:
    """Do it in a child: clients have threads."""
    for action in actions:
        assert run_in_child(action) == 0


def is_push_killed(transfer: Transfer, point: int) -> bool:
    killed = is_killed(transfer.push, SENT, point)
    check_whole(transfer.store.root)
    do(lambda: transfer.check_visible(is_done=not killed))
    if killed:
        do(transfer.push, lambda: transfer.check_visible(is_done=True))
    return killed


def is_pull_killed(transfer: Transfer, home: Path, point: int) -> bool:
    killed = is_killed(lambda: transfer.pull(home), ANSWERED, point)
    zoo = Store(home / "zoo")
    check_whole(zoo.root)
    do(lambda: transfer.pull(home))
    transfer.check_equal(zoo, transfer.stored)
    assert not list(zoo.leftovers())
    assert not list((zoo.root / ".partial").glob("*"))
    return killed


class Kills:
    """The operations; ``point`` is the step, counted from 1, before which they are killed."""

    def __init__(self, folder: Path, remote: str) -> None:
        self.folder, self.remote = folder, remote
        self.store = Store(folder / "zoo")
        self.keys = Keys(folder, "ours")
        self.first = self.publish(0)
        self.there: frozenset[str] = frozenset()

    def publish(self, patch: int) -> StoredAdapter:
        spec = tiny_spec(lora=LORA)
        tensors = random_tensors(spec, patch)
        stored = self.store.publish(spec, tensors, CARD, version=f"1.0.{patch}")
        self.store.add_signatures(stored, [self.keys.sign(stored.name, stored.digest)])
        return stored

    def push_first(self, point: int) -> bool:
        """Push to where nothing is."""
        transfer = Transfer(self.store, self.first, f"{self.remote}-{point}")
        return is_push_killed(transfer, point)

    def push_next(self, point: int) -> bool:
        """Push one more version to where others are."""
        self.push_once()
        transfer = Transfer(self.store, self.publish(point), self.remote, self.there)
        self.there |= {transfer.stored.version}
        return is_push_killed(transfer, point)

    def pull(self, point: int) -> bool:
        self.push_once()
        transfer = Transfer(self.store, self.first, self.remote)
        return is_pull_killed(transfer, self.folder / str(point), point)

    def push_once(self) -> None:
        if not self.there:
            do(Transfer(self.store, self.first, self.remote).push)
            self.there = frozenset({self.first.version})


OPERATIONS = {
    "push_first": Kills.push_first,
    "push_next": Kills.push_next,
    "pull": Kills.pull,
}


def main() -> None:
    """Run what the command line names."""
    operation, remote, folder, *numbers = sys.argv[1:]
    kills, (first, stride) = Kills(Path(folder), remote), map(int, numbers)
    points = itertools.count(first, stride)
    count = sum(1 for _ in itertools.takewhile(partial(OPERATIONS[operation], kills), points))
    print(count)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
