"""The table of brokers and result backends in ``docs/transports.md``, read and written by columns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from tests.support.process import ROOT

__all__ = ["DOCUMENT", "read_column", "write_column"]

#: Where the table stands.
DOCUMENT = ROOT / "docs" / "transports.md"


def read_column(name: str, document: Path = DOCUMENT) -> dict[str, str]:
    """What one column says of each feature, in the table's order."""
    _, header, rows, _ = _parts(document)
    place = header.index(name)
    return {row[0]: row[place] for row in rows}


def write_column(name: str, column: Mapping[str, str], document: Path = DOCUMENT) -> None:
    """Replace one column. Features that the table lacks become rows, and those it has too many of go."""
    before, header, rows, after = _parts(document)
    place = header.index(name)
    known = {row[0]: row for row in rows}
    lines = [header, ["---"] * len(header)]
    for feature, said in column.items():
        row = known.get(feature, [feature, *[""] * (len(header) - 1)])
        lines.append([*row[:place], said, *row[place + 1 :]])
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    table[1] = "|" + "---|" * len(header)
    document.write_text("\n".join([*before, *table, *after]) + "\n")


def _parts(document: Path) -> tuple[list[str], list[str], list[list[str]], list[str]]:
    """The text before the first table, its header, its rows, and the text after it."""
    lines = document.read_text().splitlines()
    before = list(takewhile(lambda line: not line.startswith("|"), lines))
    table = list(takewhile(lambda line: line.startswith("|"), lines[len(before) :]))
    header, _, *rows = map(_cells, table)
    return before, header, rows, lines[len(before) + len(table) :]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
