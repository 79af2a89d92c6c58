"""What is to be known of the rows before they are learnt from: labels, repeats, leakage. Pure.

Rows are told by their numbers; no word of a text is in what is said.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upt_training.starting.detection import Layout, parts_of
from upt_training.starting.rows import Labelled

MOST_IMBALANCE = 10.0  # the commonest label by the rarest; beyond it labels are weighted
_FEW_DEV_ROWS = 100
_FEW_ROWS_OF_A_LABEL = 10
_NUMBERS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Facts of the rows by split.

    ``rows`` and, where there are labels, ``labels`` count by split. ``left_out`` rows of each file
    had no text or no answer. ``repeated`` are train rows that stood before with the same answer,
    ``contradicting`` rows whose texts stood before with another one, ``leaked`` dev and test rows
    whose texts are train rows' too, each told by its place; texts
    are equal that differ in case and blanks alone.
    ``half_leaked`` share one of two texts.
    """

    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, int]
    repeated: tuple[str, ...]
    contradicting: tuple[str, ...]
    leaked: tuple[str, ...]
    half_leaked: tuple[str, ...]

    @property
    def imbalance(self) -> float:
        """The commonest label of the train rows by the rarest that is there, 1 without labels."""
        counts = [counts["train"] for counts in self.labels.values() if counts["train"]]
        return max(counts) / min(counts) if counts else 1.0


def survey(
    layout: Layout, splits: Mapping[str, Sequence[Labelled]], *, left_out: Mapping[str, int]
) -> Survey:
    """Count and compare; the split ``train`` goes first."""
    seen: dict[tuple[str, ...], str] = {}
    repeated, contradicting = [], []
    for split, rows in splits.items():
        for row in rows:
            key = plain(row.texts)
            if key in seen and seen[key] != row.answer:
                contradicting.append(row.place)
            elif key in seen and split == "train":
                repeated.append(row.place)
            seen.setdefault(key, row.answer)
    train = {plain(row.texts) for row in splits["train"]}
    pieces = {text for key in train for text in key}
    held = [row for split, rows in splits.items() if split != "train" for row in rows]
    leaked = [row.place for row in held if plain(row.texts) in train]
    half = [row.place for row in held if pieces.intersection(plain(row.texts))]
    return Survey(
        rows={split: len(rows) for split, rows in splits.items()},
        labels=_labels(layout, splits),
        left_out=left_out,
        repeated=tuple(repeated),
        contradicting=tuple(contradicting),
        leaked=tuple(leaked),
        half_leaked=tuple(place for place in half if place not in set(leaked)),
    )


def plain(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return texts such that those are equal that differ in case and blanks alone."""
    return tuple(" ".join(text.casefold().split()) for text in texts)


def warnings_of(found: Survey) -> list[str]:
    """Say what is to be looked at, a sentence each."""
    said = [
        f"rows of {name} without a text or an answer, which are left out: {count:,}"
        for name, count in found.left_out.items()
        if count
    ]
    said += [
        f"{meaning}: {len(places):,} ({_listed(places)})"
        for meaning, places in (
            ("rows with the texts of another row and another answer", found.contradicting),
            ("train rows that repeat another", found.repeated),
            ("rows to measure on that are train rows, which flatters", found.leaked),
            ("rows to measure on that share a text with a train row", found.half_leaked),
        )
        if places
    ]
    return said + _warnings_of_labels(found) + _warnings_of_sizes(found)


def _warnings_of_labels(found: Survey) -> list[str]:
    said = []
    if found.imbalance >= MOST_IMBALANCE:
        said.append(
            f"the commonest label has {found.imbalance:.0f} times the rows of the rarest: all "
            f"labels are made to count the same (class_weights: balanced)"
        )
    for split in found.rows:
        none = [label for label, counts in found.labels.items() if not counts[split]]
        if none:
            said.append(f"labels without a row in {split}: {', '.join(none)}")
    rare = [
        label
        for label, counts in found.labels.items()
        if 0 < counts["train"] < _FEW_ROWS_OF_A_LABEL
    ]
    if rare:
        said.append(f"labels of fewer than {_FEW_ROWS_OF_A_LABEL} train rows: {', '.join(rare)}")
    return said


def _warnings_of_sizes(found: Survey) -> list[str]:
    if "dev" not in found.rows:
        return ["there is no dev file: nothing will be measured"]
    if found.rows["dev"] < _FEW_DEV_ROWS:
        return [f"few dev rows, so figures will be uncertain: {found.rows['dev']}"]
    return []


def _labels(layout: Layout, splits: Mapping[str, Sequence[Labelled]]) -> dict[str, dict[str, int]]:
    """Count the rows of each label by split; of entities the words."""
    counts = {
        split: Counter(part for row in rows for part in parts_of(row.cells[layout.gold]))
        for split, rows in splits.items()
        if layout.labels
    }
    return {
        label: {split: count[label] for split, count in counts.items()}
        for label in layout.labels or ()
    }


def _listed(places: Sequence[str]) -> str:
    more = len(places) - _NUMBERS_SHOWN
    return ", ".join(places[:_NUMBERS_SHOWN]) + (f" and {more} more" if more > 0 else "")
