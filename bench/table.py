"""The table of results, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.row import Result

__all__ = ["FIGURES", "HEADER", "cells", "markdown_table", "text_table"]

#: What contenders measure besides, in words.
FIGURES = {
    "p50": "ms p50",
    "p99": "ms p99",
    "kib": "KiB in flight a call",
    "worst": "ms late at worst",
}

HEADER = ("row", "what", "must", "aim", "measured", "from", "to", "verdict")


def text_table(results: Iterable[Result]) -> str:
    """The table for a terminal."""
    lines = [HEADER, *map(cells, results)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Any table for a page."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(result: Result) -> tuple[str, ...]:
    """A line of the table."""
    row = result.row
    limits = [_limit(row.must, row.unit, row.at_least), _limit(row.aim, row.unit, row.at_least)]
    if not result.values:
        return (row.name, row.title, *limits, "", "", "", f"{result.verdict}: {result.problem}")
    figures = [_number(value, row.unit) for value in (result.value, min(result.values), max(result.values))]
    verdict = f"{result.verdict}: {result.problem}" if result.problem else result.verdict
    return (row.name, row.title, *limits, *figures, verdict)


def _limit(limit: float | None, unit: str, at_least: bool) -> str:
    return "" if limit is None else f"{'≥' if at_least else '≤'} {_number(limit, unit)}"


def _number(value: float, unit: str) -> str:
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{digits} {unit}".rstrip()
