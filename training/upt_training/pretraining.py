"""The recipe of continued pretraining: which texts, how they are masked, and what learns."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upt_training.recipe import AnyTask, Learning, load_keys
from upt_zoo.errors import InvalidSpec
from upt_zoo.reasons import all_reasons
from upt_zoo.spec import Name

_Share = Annotated[float, Field(gt=0, lt=1)]


class Pretraining(Learning):
    """Masked-language modelling on the texts of tasks (TAPT) or of any files (DAPT).

    One of ``task``, whose train ``files`` are read without their answers; ``tasks`` of the
    catalogue, whose train files are pooled, as a stand-in for the corpus of their domain; or
    ``texts``: text files of one text a line, or tables with the texts in ``column``, relative to
    the recipe.

    ``masked_share`` of the tokens are predicted, whole words of them with ``whole_words``. A
    backbone without a masked-language head gets one, tied to its embeddings, that learns alone for
    ``head_epochs`` first. ``name`` is that of the adapter; method ``full`` learns the backbone
    itself, ``head`` its masked-language head alone.

    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1; Gururangan et al. 2020 (arXiv
    2004.10964) for DAPT and TAPT.
    """

    name: Name
    task: AnyTask | None = None
    tasks: tuple[str, ...] = ()
    files: Annotated[tuple[str, ...], Field(min_length=1)] = ("train",)
    texts: tuple[str, ...] = ()
    column: str = "text"
    title: str | None = None
    licence: str = "not stated"
    commercial_use: Literal["yes", "no", "unclear"] = "unclear"
    adapter_licence: str = "not stated"
    masked_share: _Share = 0.15
    whole_words: bool = False
    head_epochs: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _texts_have_one_source(self) -> Self:
        sources = {"task": self.task, "tasks": self.tasks, "texts": self.texts}
        given = [key for key, value in sources.items() if value]
        if len(given) != 1:
            raise ValueError(
                f"expected one of task, tasks and texts, got {', '.join(given) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _each_task_is_read_once(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: expected each one once, got {', '.join(self.tasks)}")
        return self

    @model_validator(mode="after")
    def _what_learns_can_be_kept(self) -> Self:
        if not self.traits.gives_adapter and self.method != "full":
            raise ValueError(f"method {self.method} cannot be kept; take full or an adapter")
        return self

    @property
    def is_of_catalogue(self) -> bool:
        """Whether the texts are those of tasks of the catalogue, in the folder of their rows."""
        return bool(self.tasks) or isinstance(self.task, str)

    @property
    def is_of_backbone(self) -> bool:
        """Whether a backbone comes out of it, not an adapter."""
        return self.method in ("full", "head")


def read_pretraining(file: Path) -> Pretraining:
    """Read a recipe of continued pretraining from YAML.

    Raises:
        InvalidSpec: not YAML, an unknown key, or a value out of range.
    """
    try:
        return Pretraining.model_validate(load_keys(file))
    except ValueError as error:
        reasons = all_reasons(error, Pretraining.model_fields)
        raise InvalidSpec(f"recipe {file}: {reasons}") from error
