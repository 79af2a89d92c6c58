"""Tables of what was simulated, as Markdown."""

from collections.abc import Mapping, Sequence

Row = Mapping[str, float | int | str | None]


def as_markdown(rows: Sequence[Row]) -> str:
    """Return a table; None is n/a."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([_cell(row[key]) for key in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else str(value)
