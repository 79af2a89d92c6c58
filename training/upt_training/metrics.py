"""Metrics of answers against gold answers, in percent.

Sources: GLUE (Wang et al. 2018) for the GLUE tasks; "Don't Stop Pretraining" (Gururangan et al.
2020) for macro and micro F1; the SQuAD 1.1 evaluation (Rajpurkar et al. 2016) for exact match and
F1 of spans.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

from upt_training.data import Example, GoldSpans
from upt_zoo.answers import Answer, LabelAnswer, SpanAnswer, ValueAnswer
from upt_zoo.tasks import Metric, Task

_Score = Callable[[Sequence[float], Sequence[float]], float]
_SCORES: dict[str, _Score] = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": lambda gold, got: sklearn_metrics.f1_score(gold, got, zero_division=0.0),
    "macro_f1": lambda gold, got: sklearn_metrics.f1_score(gold, got, average="macro"),
    "micro_f1": lambda gold, got: sklearn_metrics.f1_score(gold, got, average="micro"),
    "matthews_correlation": sklearn_metrics.matthews_corrcoef,
    "pearson": lambda gold, got: stats.pearsonr(gold, got).statistic,
    "spearmanr": lambda gold, got: stats.spearmanr(gold, got).statistic,
}


def score(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, float]:
    """Return the task's metrics in percent, rounded to 4 places; the deciding one comes first.

    A correlation with constants is 0, as is an F1 where nothing is positive.
    """
    if task.kind == "span":
        return _span_scores(task.metrics, examples, answers)
    gold = [float(example.gold) for example in examples if not isinstance(example.gold, GoldSpans)]
    got = [_number(answer) for answer in answers]
    if task.kind == "regression" and 0 in (np.ptp(gold), np.ptp(got)):
        return dict.fromkeys(task.metrics, 0.0)
    return {name: round(100 * float(_SCORES[name](gold, got)), 4) for name in task.metrics}


def _number(answer: Answer) -> float:
    if isinstance(answer, LabelAnswer):
        return float(answer.index)
    if isinstance(answer, ValueAnswer):
        return answer.value
    raise TypeError(f"no number in {answer!r}")


def _span_scores(
    names: Sequence[Metric], examples: Sequence[Example], answers: Sequence[Answer]
) -> dict[str, float]:
    measures = {"exact_match": _exact_match, "f1": _token_f1}
    totals = dict.fromkeys(names, 0.0)
    for example, answer in zip(examples, answers, strict=True):
        if not isinstance(answer, SpanAnswer) or not isinstance(example.gold, GoldSpans):
            raise TypeError(f"no span in {answer!r}")
        for name in names:
            totals[name] += max(measures[name](answer.text, text) for text in example.gold.texts)
    return {name: round(100 * total / len(examples), 4) for name, total in totals.items()}


def _normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces, as the SQuAD evaluation does."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _exact_match(got: str, gold: str) -> float:
    return float(_normalised(got) == _normalised(gold))


def _token_f1(got: str, gold: str) -> float:
    got_tokens, gold_tokens = _normalised(got).split(), _normalised(gold).split()
    shared = sum((Counter(got_tokens) & Counter(gold_tokens)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(got_tokens), shared / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)
