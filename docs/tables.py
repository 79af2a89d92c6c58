"""Writes tables in Markdown."""

from collections.abc import Iterable


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table of cells that are Markdown already; an empty one stays empty."""
    titles = tuple(header)
    lines = (titles, ("---",) * len(titles), *rows)
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
