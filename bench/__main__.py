"""The command: measure, print the table with its verdicts, and write the page of a whole run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.row import Family
from bench.rows import FAMILIES
from bench.runner import run
from bench.table import text_table

#: Exit status: a row that must reach something and did not, and a machine that cannot run the bench.
MISSED, CANNOT_RUN = 1, 2

#: What a run of all rows writes.
PAGE = Path("docs/performance.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench.

    :return: the exit status
    """
    options = _parser().parse_args(arguments)
    families = chosen(options.rows)
    measured = run(families, options.rounds, options.calls, lambda line: print(line, flush=True))
    results = [result for one in measured for result in one.results]
    print("\n" + text_table(results))
    if not any(result.values for result in results):
        return CANNOT_RUN
    page = options.page or (None if options.rows else PAGE)
    if page is not None:
        from bench.page import write_page

        write_page(measured, options.rounds, page)
        print(f"\nwritten: {page}")
    return MISSED if any(result.failed for result in results) else 0


def chosen(names: str) -> tuple[Family, ...]:
    """The families that are named, or have a row that is named; all of them unless there is a name.

    :param names: of families and rows, with commas
    :raises SystemExit: for a name that nothing has
    """
    wanted = {name for name in names.split(",") if name}
    known = {name for family in FAMILIES for name in (family.name, *(row.name for row in family.rows))}
    if unknown := wanted - known:
        sys.exit(f"no such rows: {', '.join(sorted(unknown))}. There are: {', '.join(sorted(known))}")
    if not wanted:
        return FAMILIES
    return tuple(family for family in FAMILIES if wanted & {family.name, *(row.name for row in family.rows)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--rows", default="", metavar="NAME,NAME", help="rows, or families of them; all unless given"
    )
    parser.add_argument("--page", type=Path, help=f"what to write; {PAGE}, if all rows are run")
    parser.add_argument("--calls", type=_positive, help="instead of each family's own number")
    parser.add_argument("--rounds", type=_positive, default=5, help="runs of each contender (%(default)s)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
