"""One row that cannot be computed must not fail those that share its batch."""

import logging
from collections.abc import Sequence

from upt_server.runner import Runner
from upt_zoo.answers import Logits
from upt_zoo.nn.packing import Row

_LOGGER = logging.getLogger(__name__)


def run_isolated(runner: Runner, rows: Sequence[Row]) -> list[Logits | Exception]:
    """Compute rows; where that fails, halves of them, until each row has logits or its error.

    One bad row of n costs about 2 log2 n passes more. A batch that only fails as a whole, for want
    of memory say, is computed in parts.
    """
    try:
        return [*runner.run(rows)]
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to one row
        if len(rows) == 1:
            return [error]
        _LOGGER.warning("%d rows are computed apart: %s", len(rows), type(error).__name__)
    middle = len(rows) // 2
    return [*run_isolated(runner, rows[:middle]), *run_isolated(runner, rows[middle:])]
