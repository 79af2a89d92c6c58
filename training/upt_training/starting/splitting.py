"""Which rows are learnt from and which measure: as the table says, else by a seed. Pure."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from upt_training.data import groups_of
from upt_training.starting.detection import Layout
from upt_training.starting.rows import Labelled
from upt_training.starting.survey import plain
from upt_zoo.errors import InvalidInput

DEV_SHARE = 0.2
MOST_DEV_ROWS = 2000
_LEAST_ROWS = 10
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("dev", "development", "val", "valid", "validation", "eval"), "dev")


def splits_of(
    layout: Layout, files: Mapping[str, Sequence[Labelled]], *, seed: int
) -> dict[str, list[Labelled]]:
    """Return the rows of each split: ``train``, ``dev`` and perhaps ``test``, in this order.

    ``files`` has the rows of each file that was named, a single one where the layout has a column
    of splits; dev rows that nobody named are split off the train rows.

    Raises:
        InvalidInput: a split of an unknown name, or too few train rows.
    """
    splits = {name: list(rows) for name, rows in files.items()}
    if layout.split is not None:
        splits = _told_apart(layout.split, splits["train"])
    train = splits["train"]
    if len(train) < _LEAST_ROWS:
        raise InvalidInput(
            f"expected {_LEAST_ROWS} rows or more with texts and an answer, got {len(train)}"
        )
    if "dev" not in splits:
        has_strata = layout.head == "classification"
        kept, dev = split_off(
            [plain(row.texts) for row in train],
            [row.answer if has_strata else "" for row in train],
            seed=seed,
        )
        splits |= {"train": [train[place] for place in kept], "dev": [train[p] for p in dev]}
    return {name: splits[name] for name in ("train", "dev", "test") if splits.get(name)}


def split_off(
    texts: Sequence[tuple[str, ...]], strata: Sequence[str], *, seed: int
) -> tuple[list[int], list[int]]:
    """Return the places of train and of dev rows, about ``DEV_SHARE`` of each stratum for dev.

    Rows that share a text, or that others join by shared texts, stay together. Where that leaves
    less than half of the dev rows, only rows with all texts in common do.
    """
    first = _drawn(groups_of(texts), strata, seed)
    wanted = sum(_quotas(strata).values())
    if 2 * len(first) >= wanted:
        dev = set(first)
    else:
        dev = set(_drawn(groups_of([("\0".join(each),) for each in texts]), strata, seed))
    places = range(len(texts))
    return [place for place in places if place not in dev], sorted(dev)


def _told_apart(column: str, rows: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    splits: dict[str, list[Labelled]] = {"train": []}
    for row in rows:
        name = _SPLITS.get(row.split or "")
        if name is None:
            raise InvalidInput(
                f"{row.place}, column {column}: expected train, dev or test, got {row.split!r}"
            )
        splits.setdefault(name, []).append(row)
    return splits


def _drawn(group_of: Sequence[int], strata: Sequence[str], seed: int) -> list[int]:
    members: dict[int, list[int]] = {}
    for place, group in enumerate(group_of):
        members.setdefault(group, []).append(place)
    order = sorted(members)
    random.Random(f"dev/{seed}").shuffle(order)
    left = _quotas(strata)
    drawn: list[int] = []
    for group in order:
        stratum = strata[group]  # of the group's first row
        if len(members[group]) <= left[stratum]:
            left[stratum] -= len(members[group])
            drawn += members[group]
    return drawn


def _quotas(strata: Sequence[str]) -> Counter[str]:
    counts = Counter(strata)
    share = min(DEV_SHARE, MOST_DEV_ROWS / len(strata))
    return Counter(
        {name: min(count - 1, max(1, round(share * count))) for name, count in counts.items()}
    )
