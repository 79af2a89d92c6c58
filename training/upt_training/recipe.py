"""A recipe: everything that decides a training run but the machine it runs on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from upt_zoo.backbone import EMBEDDED_HUB_ID
from upt_zoo.errors import InvalidSpec
from upt_zoo.tasks import find_task

Method = Literal[
    "unipelt_prompt", "unipelt", "lora", "prefix", "bottleneck", "prompt", "head", "full"
]
_Count = Annotated[int, Field(gt=0)]
_Rate = Annotated[float, Field(gt=0, lt=1)]


class Recipe(BaseModel):
    """One training run; equal recipes on equal data give equal adapters.

    ``holdout_rows`` rows are taken out of train to watch the run: with ``patience`` the run stops
    after so many epochs without a better metric there and keeps the best epoch. Without a holdout
    the last epoch is kept. The dev file is read once, after training.

    ``lora_factor`` multiplies the LoRA product while training and is folded into B on publishing.
    ``pooling`` is what a head of one answer a row reads: [CLS], or the mean of the real tokens.
    ``gate_rate_share`` scales the gates' learning rate against the adapter's.
    ``initial_adapter`` is a reference (``[remote/]name[:version][@digest]``) to an adapter of the
    same method and backbone whose components the run starts from, with a new head.
    ``files`` are the names of the train files, read one after the other. ``precision`` is that of
    the backbone's products while training; ``auto`` is bf16 on CPUs that have it, else fp32, and
    ``int8`` computes in fp32 what a server with int8 products will.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str
    method: Method = "unipelt_prompt"
    backbone: str = EMBEDDED_HUB_ID
    seed: int = 1
    epochs: _Count = 10
    batch_size: _Count = 32
    adapter_rate: _Rate = 2e-3
    head_rate: _Rate = 5e-4
    backbone_rate: _Rate = 1e-4
    gate_rate_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    gate_bias: float = 0.0
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    lora_factor: Annotated[float, Field(gt=0)] = 4.0
    is_prefix_reparametrised: bool = False
    initial_adapter: str | None = None
    pooling: Literal["cls", "mean"] = "cls"
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    files: Annotated[tuple[str, ...], Field(min_length=1)] = ("train",)
    holdout_rows: Annotated[int, Field(ge=0)] = 0
    patience: _Count | None = None
    precision: Literal["auto", "bf16", "fp32", "int8"] = "auto"

    @model_validator(mode="after")
    def _patience_needs_a_holdout(self) -> Self:
        if self.patience is not None and not self.holdout_rows:
            raise ValueError("patience needs holdout_rows: rows of train that watch the run")
        return self

    @model_validator(mode="after")
    def _start_is_one(self) -> Self:
        if self.initial_adapter is not None and self.is_prefix_reparametrised:
            raise ValueError("a reparametrised prefix cannot start from an initial_adapter")
        if self.initial_adapter is not None and self.method in ("full", "head"):
            raise ValueError(f"method {self.method} has no components to start from an adapter")
        return self

    @model_validator(mode="after")
    def _what_learns_is_not_rounded(self) -> Self:
        if self.method == "full" and self.precision == "int8":
            raise ValueError("full fine-tuning learns the weights that int8 would round")
        return self

    def changed(self, changes: Mapping[str, str | int]) -> Self:
        """Return the recipe with some keys changed.

        Raises:
            InvalidSpec: a value out of range.
        """
        try:
            return self.model_validate(self.model_dump() | dict(changes))
        except ValidationError as error:
            raise InvalidSpec(f"recipe of {self.task}: {error}") from error


def recipe_of_task(task: str) -> Recipe:
    """Return the recipe that ships for a task of the catalogue, else the defaults.

    Raises:
        NotFound: the catalogue has no such task.
    """
    find_task(task)
    file = Path(__file__).with_name("recipes") / f"{task}.yaml"
    return read_recipe(file) if file.is_file() else Recipe(task=task)


def read_recipe(file: Path) -> Recipe:
    """Read a recipe from YAML.

    Raises:
        InvalidSpec: not YAML, an unknown key, or a value out of range.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise InvalidSpec(f"recipe {file}: {error}") from error
