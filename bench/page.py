"""Writes ``docs/performance.md``: the table, the charts and the machine of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from bench.charts import cpu_chart, ratio_chart
from bench.machine import description
from bench.runner import Measured
from bench.table import FIGURES, HEADER, cells, markdown_table

__all__ = ["write_page"]

_INTRODUCTION = """\
# Performance

What a call costs beside Celery's own client, other clients and the wire. `make bench` wrote this page; run it
to get your own. {how}

Compare the ratios, not the absolute figures: ratios travel from machine to machine, microseconds do not. All
absolute figures on this page are those of one machine, which is described at the end.

- Each contender runs in a process of its own. The contenders of a family take turns, round after round, and
  each round begins with another one. A ratio compares runs of one round. The table has the median of the
  rounds (for lateness the worst), and the lowest and the highest.
- CPU is user and system time of whole processes, all threads included. Memory is what is resident at the end;
  of the client, the most that it had.
- Every result is compared with what it should be. Where calls failed, or gave another value, there is no
  verdict.
- A *stub worker* answers at once, in Celery's format. It runs where the client or the bridge is measured, so
  that the worker is not the limit. A *solo worker* is Celery's own with `--pool=solo`.
- *p50* and *p99*: half, and 99 of 100, calls took at most so long.
"""


def write_page(measured: Sequence[Measured], rounds: int, path: Path) -> None:
    """Write the page, and its charts into a folder beside it.

    :param rounds: how many each family ran, but for those that have a number of their own
    """
    charts = path.with_suffix("")
    charts.mkdir(parents=True, exist_ok=True)
    results = [result for one in measured for result in one.results]
    ratio_chart(results, charts / "rows.svg")
    parts = [
        _INTRODUCTION.format(how=_how(measured, rounds)),
        markdown_table(HEADER, map(cells, results)) + "\n",
        f"![Every row with a limit]({charts.name}/rows.svg)\n",
        "## The figures of this machine\n",
    ]
    for one in measured:
        parts.append(f"### {one.family.title}\n\n{_counted(one)}\n")
        if one.rounds:
            cpu_chart(one, charts / f"{one.family.name}.svg")
            parts.append(_figures(one) + "\n")
            parts.append(f"![CPU a call: {one.family.title}]({charts.name}/{one.family.name}.svg)\n")
        parts += (f"Not measured: {problem}.\n" for problem in one.problems.values())
    parts.append("## The machine\n\n" + markdown_table(("part", "of this machine"), description()) + "\n")
    path.write_text("\n".join(parts))


def _how(measured: Iterable[Measured], rounds: int) -> str:
    changed = sorted(one.family.name for one in measured if one.calls != one.family.calls)
    how = f"It is of a run with {_number(rounds, 'round')}"
    return (
        f"{how}, and with fewer or more calls than usual in {', '.join(changed)}." if changed else f"{how}."
    )


def _counted(measured: Measured) -> str:
    rounds = _number(len(measured.rounds), "round")
    return f"`{measured.family.name}`: {rounds} of {measured.calls:,} calls with each contender."


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _figures(measured: Measured) -> str:
    """The medians of each contender: throughput, CPU and memory of each process, and the rest."""
    lines = []
    for contender in measured.family.contenders:
        rounds = [one for one in measured.rounds if contender.name in one]
        if not rounds:
            continue
        runs = [one[contender.name] for one in rounds]
        cpu = ", ".join(
            f"{name} {median(run.cpu_per_call(name) for run in runs):,.0f}" for name in runs[0].cpu
        )
        memory = ", ".join(
            f"{name} {median(run.memory[name] for run in runs) / 2**20:.0f}" for name in runs[0].memory
        )
        besides = ", ".join(
            f"{median(run.figures[name] for run in runs):,.2f} {unit}"
            for name, unit in FIGURES.items()
            if name in runs[0].figures
        )
        rate = f"{median(run.calls_per_second for run in runs):,.0f}"
        errors = str(sum(run.errors for run in runs))
        lines.append((contender.title, rate, cpu, memory, besides, errors))
    header = ("contender", "calls/s", "µs CPU a call", "MiB", "besides", "errors")
    return markdown_table(header, lines)
