"""Answers as columns of a table, for ``datasets`` and pandas.

    ask = ask_columns(client, "sst2", ["sentence"])
    dataset = dataset.map(ask, batched=True)
    frame = frame.assign(**ask(frame))

Neither library is imported: a table is whatever gives a column by its name.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from upt_server.client import DEFAULT_OPTIONS, Client
from upt_server.inputs import Options
from upt_server.scoring.lines import answer_facts
from upt_zoo.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import JsonValue


class Table(Protocol):
    """Gives a column's cells by the column's name."""

    def __getitem__(self, column: str, /) -> Iterable[object]:
        """Return the cells, in the order of the rows."""
        ...


def ask_columns(
    client: Client,
    adapter: str,
    columns: Sequence[str],
    *,
    prefix: str = "answer_",
    options: Options = DEFAULT_OPTIONS,
) -> "Callable[[Table], dict[str, list[JsonValue]]]":
    """Return what answers each row of a table, in new columns: ``answer_label``, ``answer_score``.

    ``columns`` stand in the order of the task's fields. The new ones are the keys of a line of
    ``upt-server score``, behind ``prefix``. What is returned raises what ``Client.predict_all``
    does, and ``InvalidInput`` for a cell that is no text.

    Raises:
        InvalidInput: ``columns`` are none, or one text.
    """
    if isinstance(columns, str) or not columns:
        raise InvalidInput(f"expected a list of the fields' columns, got {columns!r}")

    def ask(table: Table) -> "dict[str, list[JsonValue]]":
        cells = [_texts(table, column) for column in columns]
        inputs = ((adapter, texts) for texts in zip(*cells, strict=True))
        outputs = client.predict_all(inputs, options=options)
        rows = [answer_facts(output.answer, output.labels) for output in outputs]
        return {f"{prefix}{key}": [row[key] for row in rows] for key in (rows[0] if rows else ())}

    return ask


def _texts(table: Table, column: str) -> list[str]:
    texts: list[str] = []
    for row, cell in enumerate(table[column]):
        if not isinstance(cell, str):
            raise InvalidInput(
                f"column {column}, row {row}: expected a text, got {type(cell).__name__}; "
                f"fill or drop such rows"
            )
        texts.append(cell)
    return texts
