"""The rows that foreign checkpoints are asked, on the tiny backbones of ``upt_testing``.

The foreign libraries' environments run this module too, so it needs nothing but Python.
"""

from typing import Literal

Family = Literal["bert", "roberta"]

# ids, token types: one unpadded row each
ROWS: dict[Family, list[tuple[list[int], list[int]]]] = {
    "bert": [
        ([2, 6, 13, 9, 18, 3], [0] * 6),
        ([2, 12, 25, 3, 33, 40, 7, 51, 3], [0] * 4 + [1] * 5),
    ],
    "roberta": [
        ([0, 6, 13, 9, 18, 2], [0] * 6),
        ([0, 12, 25, 2, 2, 33, 40, 7, 51, 2], [0] * 10),
    ],
}
