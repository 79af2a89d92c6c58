"""Small data sets for training tests, in the words of the tiny backbone and the layout on disk.

The texts follow from the labels by simple rules, so that there is something to learn.
"""

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

JsonRow = Mapping[str, object]

_GOOD, _BAD = ("good", "great", "fine", "funny", "gripping"), ("bad", "dull", "poor", "boring")
_THINGS = ("film", "movie", "story", "book", "song", "house")
_COLOURS, _PEOPLE, _DEEDS = ("red", "green", "blue"), ("man", "woman"), ("wrote", "painted")


def write_split(folder: Path, task: str, split: str, rows: Sequence[JsonRow]) -> Path:
    """Write ``<task>/<split>.jsonl.gz``; equal rows, equal bytes."""
    file = folder / task / f"{split}.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_bytes(gzip.compress(lines.encode(), mtime=0))
    return file


def sentiment_rows(count: int, seed: int = 0) -> list[JsonRow]:
    """Rows of sst2: 1 where the adjective is kind."""
    source = random.Random(seed)
    rows: list[JsonRow] = []
    for _ in range(count):
        label = source.randrange(2)
        adjective = source.choice(_GOOD if label else _BAD)
        tail = " and very old" * source.randrange(3)
        sentence = f"this {source.choice(_THINGS)} is {adjective}{tail} ."
        rows.append({"sentence": sentence, "label": label})
    return rows


def similarity_rows(count: int, seed: int = 0) -> list[JsonRow]:
    """Rows of stsb: 5 for equal sentences, one point less for each word that differs."""
    source = random.Random(seed)
    rows: list[JsonRow] = []
    for _ in range(count):
        first, second = (
            (source.choice(_COLOURS), source.choice(_THINGS), source.choice(_GOOD + _BAD))
            for _ in range(2)
        )
        differing = sum(one != other for one, other in zip(first, second, strict=True))
        rows.append(
            {
                "sentence1": "the {} {} is {} .".format(*first),
                "sentence2": "the {} {} is {} .".format(*second),
                "label": 5.0 - differing,
            }
        )
    return rows


def question_rows(count: int, seed: int = 0, *, distance: int = 6) -> list[JsonRow]:
    """Rows of squad: who did it; ``distance`` sentences without an answer stand in front."""
    source = random.Random(seed)
    rows: list[JsonRow] = []
    for _ in range(count):
        answer = f"{source.choice(_COLOURS)} {source.choice(_PEOPLE)}"
        deed, thing = source.choice(_DEEDS), source.choice(_THINGS)
        front = "it is a city of the old river . " * source.randrange(distance + 1)
        start = len(front) + len("the ")
        rows.append(
            {
                "question": f"who {deed} the {thing} ?",
                "context": f"{front}the {answer} {deed} the {thing} .",
                "answers": {"text": [answer], "answer_start": [start]},
            }
        )
    return rows


def write_tasks(folder: Path) -> Path:
    """Write train and dev files of sst2, stsb and squad."""
    makers = {"sst2": sentiment_rows, "stsb": similarity_rows, "squad": question_rows}
    for task, rows in makers.items():
        write_split(folder, task, "train", rows(24, seed=1))
        write_split(folder, task, "dev", rows(12, seed=2))
    return folder
