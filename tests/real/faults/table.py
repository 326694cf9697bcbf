"""The table of faults in ``docs/soak.md``, read and written by rows."""

from __future__ import annotations

import fcntl
from pathlib import Path

from tests.real.faults.trial import Counts, Trial
from tests.support.process import ROOT

__all__ = ["DOCUMENT", "cells", "row_names", "write_row"]

#: Where the table stands.
DOCUMENT = ROOT / "docs" / "soak.md"

_BEGIN, _END = "<!-- make soak writes from here -->", "<!-- make soak writes to here -->"
_HEADER = (
    "| fault | load | calls | results | named errors | lost | executed twice | longest lateness | memory |",
    "|---|---|---|---|---|---|---|---|---|",
)


def cells(trial: Trial) -> list[str]:
    """A trial's row."""
    counts: Counts = trial.counts
    size = trial.size
    load = [f"{size.rate:g} a second" if size.rate else "", f"{size.seconds:g} s" if size.seconds else ""]
    errors = ", ".join(f"{number:,} `{error}`" for error, number in sorted(counts.errors.items()))
    if counts.ran:
        errors += f"; {counts.ran:,} of them ran"
    return [
        trial.name,
        ", ".join(filter(None, load)) or "all at once",
        f"{counts.calls:,}",
        f"{counts.results:,}",
        errors or "none",
        f"{counts.lost:,}",
        f"{counts.twice:,}",
        f"{counts.lateness * 1000:.0f} ms",
        f"+ {counts.memory:.0f} MiB",
    ]


def row_names(document: Path = DOCUMENT) -> list[str]:
    """The first cell of each row."""
    _, rows, _ = _parts(document.read_text())
    return [_name(row) for row in rows]


def write_row(row: list[str], document: Path = DOCUMENT) -> None:
    """Replace a row, or add it where the alphabet has it. Several processes may do so at once."""
    with document.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before, rows, after = _parts(file.read())
        line = f"| {' | '.join(row)} |"
        rows = sorted([*(each for each in rows if _name(each) != row[0]), line])
        file.seek(0)
        file.write("\n".join([*before, *_HEADER, *rows, *after]) + "\n")
        file.truncate()


def _parts(text: str) -> tuple[list[str], list[str], list[str]]:
    """The lines up to the table, its rows, and the lines after it."""
    lines = text.splitlines()
    first, last = lines.index(_BEGIN), lines.index(_END)
    rows = [line for line in lines[first:last] if line.startswith("|")][len(_HEADER) :]
    return lines[: first + 1], rows, lines[last:]


def _name(row: str) -> str:
    return row.split("|")[1].strip()
