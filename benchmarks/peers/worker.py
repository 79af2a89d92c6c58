"""The loop of every peer's worker: one JSON object a line in, one a line out.

Runs in the peer's own environment and knows nothing of upt.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The batch: row i is answered by adapter i modulo ``adapters``."""

    checkpoint: str
    rows: Sequence[list[int]]
    adapters: int
    threads: int


def work(
    prepare: Callable[[Any], Callable[[], object]],
    packages: Sequence[str],
    *,
    setup: type[Any] = Setup,
) -> None:
    """Answer until the input ends; whatever libraries print goes to standard error.

    What ``prepare`` returns runs without gradients and is timed here, unless it returns its own
    milliseconds: then it learns.
    """
    is_learning = setup is not Setup
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    run: Callable[[], object] | None = None
    for line in sys.stdin:
        message = json.loads(line)
        if "setup" in message:
            wanted = setup(**message["setup"])
            torch.set_num_threads(wanted.threads)
            torch.manual_seed(0)
            run = prepare(wanted)
            answer: Mapping[str, object] = {name: version(name) for name in packages}
        elif run is not None:
            with torch.inference_mode(not is_learning):
                started = time.perf_counter()
                result = run()
                ms = result if is_learning else (time.perf_counter() - started) * 1000
                answer = {"ms": ms}
        answers.write(json.dumps(answer) + "\n")


def padded(rows: Sequence[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Return the inputs of transformers, padded to the longest row."""
    longest = max(len(row) for row in rows)
    ids = [row + [pad] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
