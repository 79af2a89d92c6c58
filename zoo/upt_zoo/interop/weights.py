"""Foreign tensors, taken one by one; what is left over at the end was not understood."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from upt_zoo.errors import Corrupt, InvalidSpec
from upt_zoo.tensors import Array

Wide = NDArray[np.float64]
ANY = -1  # an axis whose size the tensor itself decides


class Weights:
    """The tensors of a checkpoint; ``source`` names it in messages."""

    def __init__(self, tensors: Mapping[str, Array], source: str) -> None:
        self._left = dict(tensors)
        self.source = source

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """Return the names of what is left, sorted."""
        return sorted(self._left)

    def take(self, name: str, *shape: int) -> Wide:
        """Remove a tensor and return it; ``ANY`` leaves an axis open.

        Raises:
            Corrupt: it is missing.
            InvalidSpec: it has another shape, so it is of another backbone or setting.
        """
        if name not in self._left:
            raise Corrupt(f"{self.source}: the tensor {name} is missing")
        tensor = self._left.pop(name)
        fits = len(tensor.shape) == len(shape) and all(
            size > 0 and expected in (ANY, size)
            for size, expected in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size == ANY else str(size) for size in shape)
            raise InvalidSpec(
                f"{self.source}: tensor {name}: the backbone and the configuration ask for the "
                f"shape [{wanted}], got {list(tensor.shape)}"
            )
        return tensor.astype(np.float64)

    def drop_copies(self, name: str, original: str) -> None:
        """Remove a tensor that repeats another one.

        Raises:
            InvalidSpec: it has other numbers.
        """
        if not np.array_equal(self._left.pop(name), self._left[original]):
            raise InvalidSpec(f"{self.source}: tensor {name}: expected a copy of {original}")

    def refuse_others(self) -> None:
        """Check that nothing is left.

        Raises:
            InvalidSpec: something is.
        """
        if self._left:
            raise InvalidSpec(
                f"{self.source}: the tensor {self.names()[0]} cannot be imported: upt has no place "
                f"for it ({len(self._left)} such tensors)"
            )


def narrow(tensor: Wide) -> Array:
    """Round to what an adapter stores."""
    return tensor.astype(np.float32)
