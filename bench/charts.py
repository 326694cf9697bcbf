"""Charts of a run, as SVG. Only this module imports matplotlib, which the development environment lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.row import Result
from bench.runner import Measured

__all__ = ["cpu_chart", "ratio_chart"]

#: Readable on a light and on a dark page.
_STYLE = {
    "svg.fonttype": "none",
    # The same file for the same numbers.
    "svg.hashsalt": "bench",
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def cpu_chart(measured: Measured, path: Path) -> None:
    """Bars of the CPU that a call takes, in each process, with each contender."""
    contenders = [c for c in measured.family.contenders if all(c.name in one for one in measured.rounds)]
    processes = list(
        dict.fromkeys(name for one in measured.rounds for run in one.values() for name in run.cpu)
    )
    with _figure(path, 0.9 + 0.4 * len(contenders)) as axes:
        left = [0.0] * len(contenders)
        for process in processes:
            widths = [
                median(one[contender.name].cpu_per_call(process) for one in measured.rounds)
                for contender in contenders
            ]
            axes.barh([contender.title for contender in contenders], widths, 0.6, left=left, label=process)
            left = [begin + width for begin, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("µs of CPU a call, median")
        axes.set_title(measured.family.title, loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def ratio_chart(results: Sequence[Result], path: Path) -> None:
    """Each row that has a limit, as a part of it: the median, and the spread of the rounds."""
    judged = [result for result in results if result.values and result.row.must]
    with _figure(path, 0.9 + 0.25 * len(judged)) as axes:
        for place, result in enumerate(judged):
            one, *spread = (_part(result, value) for value in (result.value, *result.values))
            colour = "tab:red" if result.failed else "tab:green"
            axes.plot([min(spread), max(spread)], [place, place], color=colour, linewidth=2, alpha=0.5)
            axes.plot([one], [place], "o", color=colour)
        axes.axvline(1, color="grey", linewidth=1)
        axes.set_yticks(range(len(judged)), [result.row.name for result in judged])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("part of what is allowed: up to 1 is within the limit")
        axes.set_title("Every row with a limit", loc="left")


def _part(result: Result, value: float) -> float:
    """How much of a row's limit a value takes; more than 1 is too much, in either direction."""
    limit = result.row.must or 1.0
    part = limit / value if result.row.at_least else value / limit
    # A difference may be none at all, and the scale has no place for that.
    return max(part, 0.01)


@contextmanager
def _figure(path: Path, height: float) -> Iterator[Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, height), layout="constrained")
        yield figure.subplots()
        figure.savefig(path, format="svg", metadata={"Date": None})
