"""A recipe: everything that decides a training run but the machine it runs on."""

from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)

from upt_training.methods import METHODS, Method, Traits
from upt_training.user_tasks import UserTask
from upt_zoo.backbone import EMBEDDED_HUB_ID
from upt_zoo.errors import InvalidSpec
from upt_zoo.reasons import all_reasons
from upt_zoo.references import Reference
from upt_zoo.tasks import Task, find_task

_PAPERS_BLOCKS = 3
_Count = Annotated[int, Field(gt=0)]
_Rate = Annotated[float, Field(gt=0, lt=1)]
_Weight = Annotated[float, Field(gt=0)]
_YAML = (".yaml", ".yml")
AnyTask = Annotated[
    Annotated[str, Tag("of the catalogue")] | Annotated[UserTask, Tag("own")],
    Discriminator(lambda task: "of the catalogue" if isinstance(task, str) else "own"),
]


class Learning(BaseModel):
    """How weights learn, whatever they learn.

    ``holdout_rows`` rows are taken out of train to watch the run: with ``patience`` the run stops
    after so many epochs without a better metric there and keeps the best epoch. Without a holdout
    the last epoch is kept. The dev file is read once, after training.

    Without ``has_gates`` a union of components has none (ablation). ``blocks`` are those of
    ``stacked_unipelt`` in each layer.

    ``lora_factor`` multiplies the LoRA product while training and is folded into B on publishing.
    ``gate_rate_share`` scales the gates' learning rate against the adapter's.
    ``initial_adapter`` is a reference (``[remote/]name[:version][@digest]``) to an adapter of the
    same method and backbone whose components the run starts from, with a new head.
    ``batch_size`` rows make a step, ``rows_at_once`` of them are computed together (gradient
    accumulation). ``precision`` is that of the backbone's products while training; ``auto`` is bf16
    where the device multiplies it in hardware, else fp32, and ``int8`` computes in fp32 what a
    server with int8 products will.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Method = "unipelt_prompt"
    backbone: str = EMBEDDED_HUB_ID
    seed: int = 1
    has_gates: bool = True
    blocks: Annotated[int, Field(gt=0, le=16)] = _PAPERS_BLOCKS
    epochs: _Count = 10
    batch_size: _Count = 32
    rows_at_once: _Count | None = None
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
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    holdout_rows: Annotated[int, Field(ge=0)] = 0
    patience: _Count | None = None
    precision: Literal["auto", "bf16", "fp32", "int8"] = "auto"

    @property
    def traits(self) -> Traits:
        """What the method learns, and whether it gives an adapter."""
        return METHODS[self.method]

    @model_validator(mode="after")
    def _patience_needs_a_holdout(self) -> Self:
        if self.patience is not None and not self.holdout_rows:
            raise ValueError("patience needs holdout_rows: rows of train that watch the run")
        return self

    @model_validator(mode="after")
    def _start_is_one(self) -> Self:
        if self.initial_adapter is not None and self.is_prefix_reparametrised:
            raise ValueError("a reparametrised prefix cannot start from an initial_adapter")
        can_start = self.traits.parts and self.traits.gives_adapter
        if self.initial_adapter is not None and not can_start:
            raise ValueError(f"method {self.method} cannot start from an adapter")
        return self

    @model_validator(mode="after")
    def _what_learns_is_not_rounded(self) -> Self:
        if self.traits.learns_backbone and self.precision == "int8":
            raise ValueError(f"method {self.method} learns in the layers that int8 would round")
        return self

    @model_validator(mode="after")
    def _keys_are_of_the_method(self) -> Self:
        if not self.has_gates and not self.traits.is_union:
            raise ValueError(f"has_gates: method {self.method} has none to leave out")
        if self.blocks != _PAPERS_BLOCKS and self.method != "stacked_unipelt":
            raise ValueError(f"blocks: only stacked_unipelt has them, got method {self.method}")
        return self


class Trial(BaseModel):
    """What a search tried, and the deciding metric of its best epoch on the held-out rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter_rate: float
    head_rate: float
    backbone_rate: float
    epochs: int
    holdout: float


class Recipe(Learning):
    """One training run; equal recipes on equal data give equal adapters.

    ``task`` is a task of the catalogue or the description of one's own. ``files`` are the names of
    the train files, read one after the other; ``train_rows`` of their rows are drawn by the seed,
    from those that are not held out. ``pooling`` is what a head of one answer a row reads: [CLS],
    or the mean of the real tokens. ``class_weights`` say how much a row counts by its label, 1
    where none is named; ``balanced`` makes all labels count the same. Of a set of labels they weigh
    those that a row has, and ``balanced`` makes having a label count as much as not having it.
    ``label_smoothing`` is the share of a row's target that goes to all labels alike (Szegedy et
    al. 2016, arXiv 1512.00567, section 7). ``search`` tells which trials led to the recipe; it
    changes nothing.
    """

    task: AnyTask
    files: Annotated[tuple[str, ...], Field(min_length=1)] = ("train",)
    train_rows: _Count | None = None
    pooling: Literal["cls", "mean"] = "cls"
    class_weights: Literal["balanced"] | dict[str, _Weight] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    search: tuple[Trial, ...] = ()

    @property
    def task_name(self) -> str:
        """Name of the task, and of the adapter."""
        return self.task if isinstance(self.task, str) else self.task.name

    @property
    def variant(self) -> str:
        """The method, with what sets it apart from the paper's: the name of a table's column.

        An adapter to start from is named, and a backbone whose name begins with the task's, as one
        does that was pretrained on its texts; both without the task's name, so that those of all
        tasks make one column.

        Raises:
            InvalidReference: ``initial_adapter`` is none.
        """
        blocks = "" if self.blocks == _PAPERS_BLOCKS else f"-{self.blocks}blocks"
        gates = "" if self.has_gates else "-ungated"
        backbone, own = self._without_task(PurePath(self.backbone).name)
        on = f"-on-{backbone}" if own else ""
        start = ""
        if self.initial_adapter is not None:
            start = f"-from-{self._without_task(Reference.parse(self.initial_adapter).name)[0]}"
        return f"{self.method}{blocks}{gates}{on}{start}"

    def _without_task(self, name: str) -> tuple[str, bool]:
        """Return what a name says beside the task's, and whether it begins with that."""
        whole = name.replace("_", "-")
        rest = whole.removeprefix(f"{self.task_name.replace('_', '-')}-")
        return rest, rest != whole

    def changed(self, changes: Mapping[str, JsonValue]) -> Self:
        """Return the recipe with some keys changed.

        Raises:
            InvalidSpec: a value out of range, or another method where the recipe starts from an
                adapter of its own method.
        """
        method = changes.get("method", self.method)
        if method != self.method and self.initial_adapter and "initial_adapter" not in changes:
            raise InvalidSpec(
                f"recipe of {self.task_name}: {self.method} starts from {self.initial_adapter}, "
                f"which method {method} cannot; add --no-initial-adapter to start from nothing, "
                f"in a sweep the change `initial_adapter: null`"
            )
        try:
            return self.model_validate(self.model_dump() | dict(changes))
        except ValidationError as error:
            reasons = all_reasons(error, type(self).model_fields)
            raise InvalidSpec(f"recipe of {self.task_name}: {reasons}") from error


def task_of(recipe: Recipe) -> Task:
    """Return the task that a recipe trains for.

    Raises:
        NotFound: the catalogue has no such task.
    """
    return find_any_task(recipe.task)


def find_any_task(task: str | UserTask) -> Task:
    """Return a task of the catalogue by its name, or a user's own by its description.

    Raises:
        NotFound: the catalogue has no such task.
    """
    return find_task(task) if isinstance(task, str) else task.task()


def recipe_of_task(task: str) -> Recipe:
    """Return the recipe that ships for a task of the catalogue.

    Raises:
        NotFound: the catalogue has no such task.
    """
    return read_recipe(Path(__file__).with_name("recipes") / f"{find_task(task).name}.yaml")


def read_recipe(file: Path) -> Recipe:
    """Read a recipe from YAML, with its task from a YAML file beside it if it names one.

    Raises:
        InvalidSpec: not YAML, an unknown key, or a value out of range.
    """
    try:
        return Recipe.model_validate(load_keys(file))
    except ValueError as error:
        reasons = all_reasons(error, Recipe.model_fields)
        raise InvalidSpec(f"recipe {file}: {reasons}") from error


def load_keys(file: Path) -> object:
    """Load the keys of a recipe, with its task from a YAML file beside it if it names one.

    Raises:
        ValueError: not a file, not YAML, or the task's file is not a task.
    """
    try:
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(keys, dict) and str(keys.get("task")).endswith(_YAML):
            keys["task"] = _read_task(file.parent, keys["task"])
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from error
    return keys


def _read_task(folder: Path, name: str) -> UserTask:
    keys = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    try:
        return UserTask.model_validate(keys).moved(PurePosixPath(name).parent)
    except ValidationError as error:
        reasons = all_reasons(error, UserTask.model_fields)
        raise ValueError(f"task {folder / name}: {reasons}") from error
