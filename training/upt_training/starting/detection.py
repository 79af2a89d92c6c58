"""What a table is for: which columns are texts, which is the answer, and what kind of answer. Pure.

Names decide first, then what the cells hold. What cannot be told is an error that says how to tell.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from upt_training.starting.columns import Column, Kind, value_of
from upt_zoo.errors import InvalidInput
from upt_zoo.spec import LABELLED, MAX_FIELDS, HeadKind

# names of answers, the first that a table has is taken
_GOLD_NAMES = (
    *("label", "labels", "gold", "target", "class", "category", "topic", "intent", "sentiment"),
    *("answers", "answer", "tags", "ner_tags", "tag", "score", "rating", "stars", "similarity"),
)
# names of numbers that are more or less of something
_MEASURES = ("score", "rating", "stars", "similarity", "grade", "points", "price", "value")
# names of texts, however short they are
_TEXT_NAMES = (
    *("text", "sentence", "review", "message", "content", "body", "comment", "utterance", "title"),
    *("subject", "question", "query", "context", "passage", "premise", "hypothesis", "headline"),
    *("sentence1", "sentence2", "question1", "question2", "text1", "text2", "text_a", "text_b"),
)
_GOLD_KINDS: dict[HeadKind, tuple[Kind, ...]] = {
    "classification": ("text", "number"),
    "multi_label": ("list", "text"),
    "regression": ("number",),
    "span": ("object", "text"),
    "token_classification": ("list",),
    "embedding": ("number",),
}
_QUESTION_NAMES = ("question", "query")
_START_NAMES = ("answer_start", "start")
_SPLIT_NAMES = ("split", "set", "fold", "partition", "subset")
_WORDS_OF_A_TEXT = 3.0  # what has fewer on average is a name or a code
_MOST_CLASSES = 20  # whole numbers beyond it measure something
_LEAST_ROWS_A_CLASS = 5
_SEPARATORS = ("|", ";")
_FOUND_SHARE = 0.9  # of the answers that stand in their context, where they are spans of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the user said; the rest is looked for.

    With ``has_files`` each split has a file of its own, and no column tells them apart.
    """

    texts: tuple[str, ...] = ()
    gold: str | None = None
    head: HeadKind | None = None
    has_files: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a table is for.

    ``fields`` are the columns of texts in the order of the task, ``gold`` that of the answers,
    ``reason`` says why they are of this ``head``. ``labels`` stand in the order of their numbers.
    ``separator`` stands between the labels of a set that is no list. ``start`` is the column with
    the places of spans that are plain texts; without one they are looked for. ``split`` is the
    column that tells train from dev rows, ``unused`` are all others.
    """

    fields: tuple[str, ...]
    gold: str
    head: HeadKind
    reason: str
    labels: tuple[str, ...] | None
    separator: str | None = None
    start: str | None = None
    split: str | None = None
    unused: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Say it in a line."""
        return f"{', '.join(self.fields)} -> {self.gold}: {self.head}, since {self.reason}"


def detect(columns: Sequence[Column], choice: Choice) -> Layout:
    """Tell what the columns are for.

    Raises:
        InvalidInput: it cannot be told, or the choice does not fit; the message names the option
            that decides.
    """
    if not columns:
        raise InvalidInput("expected a table with rows, got none")
    _check_names(columns, choice)
    split = next((each.name for each in columns if _is_split(each)), None)
    left = [each for each in columns if each.name != split and each.filled]
    gold = _gold(left, choice)
    others = [each for each in left if each is not gold]
    head, reason = _head(gold, others, choice)
    if gold.kind not in _GOLD_KINDS[head]:
        wanted = " or a ".join(_GOLD_KINDS[head])
        raise InvalidInput(
            f"column {gold.name}: expected a {wanted} in each row for {head}, got {gold.kind}; "
            f"name the column of the answers with --label, or their kind with --head"
        )
    fields = choice.texts or _fields(gold, others, head)
    _check_fields(fields, head)
    if choice.gold is None:
        _check_header(gold, fields)
    starts = [each.name for each in others if each.name.lower() in _START_NAMES]
    start = starts[0] if head == "span" and gold.kind == "text" and starts else None
    separator = None
    if head == "multi_label" and gold.kind == "text":
        separator = _separator(gold, is_sure=choice.head == head)
    split = None if choice.has_files else split
    used = {*fields, gold.name, start, split}
    return Layout(
        fields=fields,
        gold=gold.name,
        head=head,
        reason=reason,
        labels=labels_of(gold, separator) if head in LABELLED else None,
        separator=separator,
        start=start,
        split=split,
        unused=tuple(each.name for each in columns if each.name not in used),
    )


def labels_of(gold: Column, separator: str | None) -> tuple[str, ...]:
    """Return the labels of a column in order: numbers by size, then texts; ``O`` goes first.

    Raises:
        InvalidInput: there are fewer than two, or nearly as many as rows.
    """
    found = {part for value in gold.values for part in parts_of(value, separator)}
    if len(found) < 2:
        raise InvalidInput(
            f"column {gold.name}: expected two labels or more, got {len(found)}; name the column "
            f"of the answers with --label, or their kind with --head"
        )
    if gold.kind == "text" and len(found) > max(_MOST_CLASSES, gold.filled // 2):
        raise InvalidInput(
            f"column {gold.name}: expected labels that repeat, got {len(found)} in {gold.filled} "
            f"rows; name the column of the answers with --label, or their kind with --head"
        )
    return tuple(sorted(found, key=lambda label: (label != "O", *_order(label))))


def parts_of(value: object, separator: str | None = None) -> list[str]:
    """Return the labels in a cell, none of an empty one."""
    if isinstance(value, list):
        return [str(part).strip() for part in map(value_of, value) if part is not None]
    text = "" if value is None else str(value)
    parts = text.split(separator) if separator else [text]
    return [part.strip() for part in parts if part.strip()]


def _check_names(columns: Sequence[Column], choice: Choice) -> None:
    known = [each.name for each in columns]
    for option, name in (("--label", choice.gold), *(("--text", each) for each in choice.texts)):
        if name is not None and name not in known:
            raise InvalidInput(f"{option}: expected one of {', '.join(known)}, got {name!r}")


def _check_fields(fields: Sequence[str], head: HeadKind) -> None:
    wanted = {"span": (2, 2), "embedding": (2, 2), "token_classification": (1, 1)}
    least, most = wanted.get(head, (1, MAX_FIELDS))
    if not least <= len(fields) <= most:
        size = f"{least}" if least == most else f"{least} or {most}"
        raise InvalidInput(
            f"expected {size} columns of texts for {head}, got {', '.join(fields) or 'none'}; "
            f"name them with --text"
        )


def _check_header(gold: Column, fields: Sequence[str]) -> None:
    """Refuse a row for a header: its answer is one of the column's, and a text is a sentence."""
    sentences = [name for name in fields if len(name.split()) >= _WORDS_OF_A_TEXT]
    if sentences and value_of(gold.name) in gold.values:
        raise InvalidInput(
            f"expected names of columns in the first row, got what looks like a text and its "
            f"answer, {gold.name!r}, which stands in other rows too; put names above it, such as "
            f"text and label, or say with --label that this is a name"
        )


def _is_split(column: Column) -> bool:
    names = {str(value).lower() for value in column.values}
    return column.name.lower() in _SPLIT_NAMES and "train" in names and column.distinct <= 3


def _gold(columns: Sequence[Column], choice: Choice) -> Column:
    if choice.gold is not None:
        return _one(columns, lambda each: each.name == choice.gold, f"--label {choice.gold}")
    for name in _GOLD_NAMES:
        for column in columns:
            if column.name.lower() == name and column.name not in choice.texts:
                return column
    left = [each for each in columns if each.name not in choice.texts]
    lists = [each for each in left if each.kind == "list"]
    if len(lists) == 2:  # words and their tags
        return min(lists, key=lambda each: each.distinct)
    return _one(left, _is_answer, "a column of answers")


def _is_answer(column: Column) -> bool:
    if column.is_key or column.name.lower() in _TEXT_NAMES:
        return False
    is_short = column.kind == "text" and column.words < _WORDS_OF_A_TEXT
    is_code = is_short and column.distinct <= max(2, column.filled // 5)
    return is_code or column.kind in ("number", "list", "object")


def _one(columns: Sequence[Column], is_meant: Callable[[Column], bool], wanted: str) -> Column:
    found = [each for each in columns if is_meant(each)]
    if len(found) != 1:
        names = ", ".join(each.name for each in found or columns)
        raise InvalidInput(
            f"expected {wanted}, got {len(found)} of them; name it with --label: {names}"
        )
    return found[0]


def _head(gold: Column, others: Sequence[Column], choice: Choice) -> tuple[HeadKind, str]:
    """Return the kind of answers, and why."""
    if choice.head is not None:
        return choice.head, "as --head says"
    if gold.kind == "object":
        return "span", f"{gold.name} has objects with places in the context"
    if gold.kind == "list":
        if any(_is_aligned(gold, each) for each in others):
            return "token_classification", f"{gold.name} has as many tags as the row has words"
        return "multi_label", f"{gold.name} has lists"
    if gold.kind == "number":
        return _head_of_numbers(gold)
    return _head_of_texts(gold, others)


def _head_of_numbers(gold: Column) -> tuple[HeadKind, str]:
    if not gold.is_whole:
        return "regression", f"{gold.name} has numbers with fractions"
    if gold.distinct <= 2:
        return "classification", f"{gold.name} has {gold.distinct} different numbers"
    if gold.name.lower() in _MEASURES:
        return "regression", f"{gold.name} measures; --head classification makes classes of it"
    if gold.distinct > min(_MOST_CLASSES, gold.filled // _LEAST_ROWS_A_CLASS):
        return "regression", f"{gold.name} has {gold.distinct} different whole numbers"
    return (
        "classification",
        f"{gold.name} has {gold.distinct} different whole numbers; --head regression measures them",
    )


def _head_of_texts(gold: Column, others: Sequence[Column]) -> tuple[HeadKind, str]:
    if _context_of(gold, others) is not None and (
        gold.name.lower() in ("answer", "answers") or gold.distinct > gold.filled // 2
    ):
        return "span", f"{gold.name} stands in another column"
    separator = _separator(gold)
    if separator is not None:
        return "multi_label", f"{gold.name} has labels with {separator} in between"
    return "classification", f"{gold.name} has {gold.distinct} different texts"


def _separator(gold: Column, *, is_sure: bool = False) -> str | None:
    """Return what stands between labels: with it there are fewer different ones than cells.

    That there are several labels in a cell may be known for sure.
    """
    cells = {str(value) for value in gold.values if value is not None}
    for separator in _SEPARATORS:
        parts = {part for cell in cells for part in parts_of(cell, separator)}
        if any(separator in cell for cell in cells) and (is_sure or len(parts) < len(cells)):
            return separator
    return None


def _is_aligned(gold: Column, other: Column) -> bool:
    return other.kind == "list" and all(
        len(one) == len(two)
        for one, two in zip(gold.values, other.values, strict=True)
        if isinstance(one, list) and isinstance(two, list)
    )


def _context_of(gold: Column, others: Iterable[Column]) -> Column | None:
    """Return the column of longer texts in which nearly all answers stand."""
    for column in others:
        if column.kind != "text" or column.words <= gold.words:
            continue
        pairs = [
            str(answer) in str(text)
            for answer, text in zip(gold.values, column.values, strict=True)
            if answer is not None and text is not None
        ]
        if pairs and sum(pairs) >= _FOUND_SHARE * len(pairs):
            return column
    return None


def _fields(gold: Column, others: Sequence[Column], head: HeadKind) -> tuple[str, ...]:
    """Return the columns of texts."""
    if head == "token_classification":
        return tuple(each.name for each in others if _is_aligned(gold, each))
    texts = [each for each in others if each.kind == "text"]
    if head == "span":
        return _span_fields(gold, texts)
    named = [each for each in texts if each.name.lower() in _TEXT_NAMES]
    long = [each for each in texts if each.words >= _WORDS_OF_A_TEXT or each in named]
    longest = sorted(texts, key=lambda each: -each.distinct)[:1]
    chosen = next((some for some in (long, named) if 0 < len(some) <= MAX_FIELDS), long or longest)
    if not chosen:
        raise InvalidInput(
            f"expected a column of texts beside {gold.name}, got none among "
            f"{', '.join(each.name for each in others) or 'no others'}"
        )
    if len(chosen) > MAX_FIELDS:
        raise InvalidInput(
            f"expected one or two columns of texts, got {len(chosen)}; name those that count with "
            f"--text: {', '.join(each.name for each in chosen)}"
        )
    return tuple(each.name for each in chosen)


def _span_fields(gold: Column, texts: Sequence[Column]) -> tuple[str, ...]:
    """Return the question and the context, which has the longer texts."""
    named = [each for each in texts if each.name.lower() in _TEXT_NAMES]
    pair = named if len(named) == MAX_FIELDS else texts
    context = _context_of(gold, pair) or max(pair, key=lambda each: each.words, default=None)
    questions = [each for each in pair if each is not context]
    asked = [each for each in questions if each.name.lower() in _QUESTION_NAMES] or questions
    if context is None or len(asked) != 1:
        raise InvalidInput(
            f"expected a question and a context beside {gold.name}; name both with --text, the "
            f"context last: {', '.join(each.name for each in texts)}"
        )
    return asked[0].name, context.name


def _order(label: str) -> tuple[bool, float, str]:
    """Sort numbers by their size and before texts."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label
