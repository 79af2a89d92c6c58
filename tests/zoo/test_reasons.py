from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from upt_zoo.reasons import all_reasons, first_reason


class Wish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: Literal["green", "blue"] = "green"
    pages: list[int] = []

    @model_validator(mode="after")
    def _has_a_page(self) -> "Wish":
        if self.pages == [0]:
            raise ValueError("pages count from 1")
        return self


def refuse(**values: object) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Wish.model_validate(values)
    return caught.value


def test_a_reason_stands_behind_its_place_and_without_the_value() -> None:
    reason = first_reason(refuse(pages=[1, "a secret"]))
    assert reason.startswith("pages.1: Input should be a valid integer")
    assert "secret" not in reason


def test_the_word_that_was_meant_is_named() -> None:
    assert first_reason(refuse(colour="gren")).endswith("'green' or 'blue'; did you mean green?")
    assert first_reason(refuse(colour=7)).endswith("'green' or 'blue'")
    misspelt = refuse(color="blue")
    assert first_reason(misspelt, Wish.model_fields).endswith("; did you mean colour?")
    assert "mean" not in first_reason(misspelt)


def test_all_reasons_are_told() -> None:
    told = all_reasons(refuse(colour="red", pages=1)).split("; ")
    assert [each.partition(":")[0] for each in told] == ["colour", "pages"]


def test_what_the_code_itself_refuses_is_told_in_its_words() -> None:
    assert first_reason(refuse(pages=[0])) == "pages count from 1"
    assert all_reasons(ValueError("no file")) == "no file"
