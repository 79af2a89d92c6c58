"""Training curves for pages, out of the run records that ``upt-train`` keeps."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from upt_zoo.errors import Corrupt, InvalidInput
from upt_zoo.reasons import first_reason


class Curve(BaseModel):
    """How one run went, epoch by epoch.

    ``holdout`` is the task's metric on the held-out rows in percent, ``losses`` each epoch's mean
    loss (older records have none); ``best_epoch`` counts from 1.
    """

    # the rest of a record is training's own affair
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    holdout: list[float]
    losses: list[float] = []
    best_epoch: int
    train_rows: int
    seconds: float


class _Record(Curve):
    adapter: str | None


def read_curves(folder: Path) -> Mapping[str, Curve]:
    """Read the curves of all ``*.json`` of a folder, by the digest of what each run published.

    Raises:
        Corrupt: a file is not a run record.
        InvalidInput: there is no such folder.
    """
    if not folder.is_dir():
        raise InvalidInput(f"expected a folder of run records, got {folder}")
    curves = {}
    for file in sorted(folder.glob("*.json")):
        try:
            record = _Record.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise Corrupt(f"{file} is not a run record: {first_reason(error)}") from error
        if record.adapter is not None:
            curves[record.adapter.rpartition("@")[2]] = Curve(
                **record.model_dump(exclude={"adapter"})
            )
    return curves
