"""Training curves of adapters whose specs hold none, out of ``upt-train``'s run records."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from upt_zoo.errors import Corrupt, InvalidInput
from upt_zoo.reasons import first_reason
from upt_zoo.spec import Curve


class _Record(BaseModel):
    # the rest of a record is training's own affair
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    holdout: list[float]
    losses: list[float] = []  # older records have none
    best_epoch: int
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
            curve = Curve.of_run(
                holdout=record.holdout, losses=record.losses, best_epoch=record.best_epoch
            )
        except ValidationError as error:
            raise Corrupt(f"{file} is not a run record: {first_reason(error)}") from error
        if record.adapter is not None and curve is not None:
            curves[record.adapter.rpartition("@")[2]] = curve
    return curves
