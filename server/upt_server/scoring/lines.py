"""What stands in the file of scores: a JSON object for each row. Pure."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from upt_server import statuses
from upt_server.results import Output
from upt_zoo.answers import (
    Answer,
    EmbeddingAnswer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    SpanAnswer,
    ValueAnswer,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

_FAILURE = re.compile(rb'\{"row": \d+, "error": ')  # no answer is parsed, which may be long


def answer_line(number: int, output: Output) -> str:
    """Write a row's answer; ``number`` counts rows from 1."""
    line: dict[str, JsonValue] = {"row": number}
    line |= answer_facts(output.answer, output.labels)
    line |= {"tokens": output.tokens, "truncated": output.is_truncated, "windows": output.windows}
    if output.candidates:
        line["candidates"] = [answer_facts(each, ()) for each in output.candidates]
    if output.logits:
        line["logits"] = [_rounded(value) for value in output.logits]
    if output.gates:
        line["gates"] = [
            {name: _rounded(value) for name, value in layer.items()} for layer in output.gates
        ]
    return json.dumps(line, ensure_ascii=False)


def failure_line(number: int, error: Exception) -> str:
    """Write why a row has no answer, in the words of a call's status."""
    reason = statuses.reason_of(type(error))
    message = str(error).removeprefix("inputs[0]: ")  # each row is the only input of its call
    return json.dumps({"row": number, "error": reason, "message": message}, ensure_ascii=False)


def count_failures(lines: Iterable[bytes]) -> int:
    """Count the lines that say why a row has no answer."""
    return sum(bool(_FAILURE.match(line)) for line in lines)


def answer_facts(answer: Answer, labels: tuple[str, ...]) -> "dict[str, JsonValue]":
    """Return an answer in JSON; ``labels`` name its scores."""
    match answer:
        case LabelAnswer(label=label, score=score, scores=scores):
            return {"label": label, "score": _rounded(score), "scores": _by_label(labels, scores)}
        case LabelSetAnswer(labels=given, scores=scores):
            return {"labels": list(given), "scores": _by_label(labels, scores)}
        case ValueAnswer(value=value):
            return {"value": _rounded(value)}
        case SpanAnswer(text=text, start=start, end=end, score=score):
            return {"text": text, "start": start, "end": end, "score": _rounded(score)}
        case EntitiesAnswer(entities=entities):
            return {
                "entities": [
                    {**asdict(entity), "score": _rounded(entity.score)} for entity in entities
                ]
            }
        case EmbeddingAnswer(vector=vector):
            return {"embedding": [_rounded(value) for value in vector]}


def _by_label(labels: tuple[str, ...], scores: tuple[float, ...]) -> "JsonValue":
    return {label: _rounded(score) for label, score in zip(labels, scores, strict=True)}


def _rounded(value: float) -> float:
    """Keep what an fp32 number holds."""
    return float(f"{value:.7g}")
