"""Kills a writer before each of its file operations in turn, and looks at what is left.

    python -m upt_testing.crashes DIRECTORY OPERATION     prints how many times it killed
    python -m upt_testing.crashes DIRECTORY race          two processes want the same version

It is a program of its own because it forks, which a process with threads must not. After each
kill every version listed must verify, and the operation must be repeatable to the same end.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from upt_testing.kills import FILES, is_killed
from upt_testing.stores import age, check_whole, draft, publish
from upt_zoo.errors import Conflict
from upt_zoo.local import tags
from upt_zoo.local.recovery import rebuild
from upt_zoo.local.store import Store
from upt_zoo.local.upkeep import collect
from upt_zoo.references import Reference
from upt_zoo.remote.remotes import Remotes

CONFLICT = 3


def _remove(store: Store) -> None:
    if "1.0.2" in store.versions("tiny"):
        tags.remove(store, Reference.parse("tiny:1.0.2"), reason="a test")


def _roll_back(store: Store) -> None:
    if store.resolve(Reference.parse("tiny:stable")).version == "1.0.1":
        tags.roll_back(store, Reference.parse("tiny:stable"))


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "publish": lambda store: publish(store, seed=9, version="2.0.0"),
    "register": lambda store: store.publish_all(
        [draft(name="b", seed=seed, version=f"1.0.{seed}") for seed in range(3)]
    ),
    "pull": lambda store: store.copy_from(
        Store(store.root.with_name("remote")), Reference.parse("far")
    ),
    "push": lambda store: Remotes.read({}).push(
        Reference.parse("far"), Store(store.root.with_name("remote")), f"file://{store.root}"
    ),
    "tag": lambda store: tags.move_alias(store, Reference.parse("tiny:1.0.0"), "stable"),
    "rollback": _roll_back,
    "rm": _remove,
    "gc": collect,
    "reindex": rebuild,
}


def main() -> None:
    """Run what the command line names."""
    folder, operation = Path(sys.argv[1]), sys.argv[2]
    if operation == "race":
        _race(folder / "zoo")
        return
    template = folder / "template"
    _prepare(template, folder / "remote")
    run = OPERATIONS[operation]
    shutil.copytree(template, folder / "expected", copy_function=shutil.copy2)
    run(Store(folder / "expected"))  # warms up all imports, too
    point = 0
    while _is_killed(template, folder / "zoo", run, point + 1):
        point += 1
        zoo = Store(folder / "zoo")
        check_whole(zoo.root)
        run(zoo)
        check_whole(zoo.root)
        _check_same(zoo, Store(folder / "expected"))
    print(point)  # noqa: T201 - the answer


def _prepare(root: Path, remote: Path) -> None:
    """Make a store with three versions, an alias that moved, and garbage."""
    store = Store(root)
    for seed in range(4):
        publish(store, seed=seed)
    for version in ("1.0.0", "1.0.1"):
        tags.move_alias(store, Reference.parse(f"tiny:{version}"), "stable")
    tags.remove(store, Reference.parse("tiny:1.0.3"))
    age(store)
    publish(Store(remote), name="far")


def _is_killed(template: Path, root: Path, run: Callable[[Store], object], point: int) -> bool:
    """Run on a fresh copy in a child that dies at its nth file operation; False if it does not."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root, copy_function=shutil.copy2)
    return is_killed(lambda: run(Store(root)), FILES, point)


def _check_same(store: Store, expected: Store) -> None:
    """Times apart, both say the same, and nothing is left over."""
    assert store.list() == expected.list()
    aliases = store.listing().aliases
    assert aliases == expected.listing().aliases
    for name in store.listing().versions:
        kinds = [(event.action, event.after) for event in tags.history(store, name)]
        assert kinds == [(event.action, event.after) for event in tags.history(expected, name)]
    assert not list(store.leftovers())


def _race(root: Path) -> None:
    children = [_fork_writer(root, seed) for seed in (1, 2)]
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0, CONFLICT], codes
    store = Store(root)
    check_whole(root)
    assert len(store.list()) == 11, store.list()
    assert set(store.listing().aliases["tiny"]) == {"a1", "a2"}
    print(len(store.list()))  # noqa: T201 - the answer


def _fork_writer(root: Path, seed: int) -> int:
    child = os.fork()
    if child:
        return child
    store, code = Store(root), 0
    for number in range(5):
        publish(store, name=f"own{seed}", seed=number)
    try:
        publish(store, seed=seed, version="1.0.0")
    except Conflict:
        code = CONFLICT
    tags.move_alias(store, Reference.parse("tiny:1.0.0"), f"a{seed}")
    os._exit(code)


if __name__ == "__main__":
    main()
