"""What a run answered on each row, small enough for its record to resample metrics from."""

import base64
import zlib
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from upt_zoo.errors import Corrupt

Numbers = NDArray[np.float64]
Rows = NDArray[np.int64]
_MOST_STEPS = 2**16 - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """The gold and the given answer of every row.

    Labels and values are [row, 1], sets of labels [row, label] of 0 and 1. Spans have no ``gold``
    columns, [row, 0], and in ``got`` [row, metric] the row's own scores between 0 and 1. Entities
    are counted: ``gold`` [row, 1] those there are, ``got`` [row, 2] those given and those right.
    """

    gold: Numbers
    got: Numbers

    def __len__(self) -> int:
        return len(self.got)

    def take(self, rows: Rows) -> "Outcomes":
        """Return the outcomes of these rows, some perhaps repeated."""
        return Outcomes(gold=self.gold[rows], got=self.got[rows])


class PackedOutcomes(BaseModel):
    """Outcomes in a record: gold and given columns one after the other, deflated, in base64.

    Whole numbers up to 255 are kept as bytes. Others are kept as one of 65,536 steps between the
    least and the largest of their column, its ``bounds``; without bounds the numbers are whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    gold_columns: int
    bounds: tuple[tuple[float, float], ...] = ()
    data: str

    @classmethod
    def of(cls, outcomes: Outcomes) -> Self:
        """Pack."""
        both = np.hstack([outcomes.gold, outcomes.got])
        bounds: tuple[tuple[float, float], ...] = ()
        if np.all((both >= 0) & (both <= 255) & (both == np.floor(both))):
            numbers = both.astype(np.uint8)
        else:
            least, most = both.min(0), both.max(0)
            bounds = tuple(zip(least.tolist(), most.tolist(), strict=True))
            numbers = np.round((both - least) / _steps(least, most)).astype(np.uint16)
        return cls(
            rows=len(outcomes),
            gold_columns=outcomes.gold.shape[1],
            bounds=bounds,
            data=base64.b64encode(zlib.compress(numbers.T.tobytes(), 9)).decode(),
        )

    def unpack(self) -> Outcomes:
        """Return the outcomes.

        Raises:
            Corrupt: the data are not those of so many rows.
        """
        try:
            data = zlib.decompress(base64.b64decode(self.data, validate=True))
            numbers = np.frombuffer(data, dtype=np.uint16 if self.bounds else np.uint8)
            both = numbers.reshape(-1, self.rows).T.astype(np.float64)
            if self.bounds:
                least, most = np.array(self.bounds).T
                both = both * _steps(least, most) + least
        except (ValueError, zlib.error) as error:
            raise Corrupt(f"outcomes of {self.rows} rows are damaged: {error}") from error
        return Outcomes(gold=both[:, : self.gold_columns], got=both[:, self.gold_columns :])


def _steps(least: Numbers, most: Numbers) -> Numbers:
    """Return the width of a step in each column; any will do where all numbers are the same."""
    return np.where(most > least, (most - least) / _MOST_STEPS, 1.0)
