"""What a row of the table claims, and the figures that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.contender import Contender
from bench.measurement import CLIENT, Measurement
from bench.servers import Scene

__all__ = [
    "Family",
    "Figure",
    "Result",
    "Round",
    "Row",
    "cpu",
    "difference",
    "elapsed",
    "figure",
    "growth",
    "rate",
    "ratio",
    "total",
]

#: One run of each contender, by name.
Round = Mapping[str, Measurement]
#: What a round says.
Figure = Callable[[Round], float]


def cpu(contender: str, *processes: str) -> Figure:
    """Microseconds of CPU a call, of the client or of other processes together."""
    return lambda measured: sum(measured[contender].cpu_per_call(name) for name in processes or (CLIENT,))


def rate(contender: str) -> Figure:
    """Calls a second."""
    return lambda measured: measured[contender].calls_per_second


def figure(contender: str, name: str) -> Figure:
    """What the contender measured besides."""
    return lambda measured: measured[contender].figures[name]


def elapsed(contender: str) -> Figure:
    """Seconds."""
    return lambda measured: measured[contender].elapsed


def growth(contender: str, process: str) -> Figure:
    """The memory of a process after the calls, as a part of what it was before."""
    return lambda measured: measured[contender].memory[process] / measured[contender].memory_before[process]


def ratio(part: Figure, whole: Figure) -> Figure:
    """One figure as a part of another of the same round."""
    return lambda measured: part(measured) / whole(measured)


def total(*figures: Figure) -> Figure:
    """The sum of figures."""
    return lambda measured: sum(one(measured) for one in figures)


def difference(more: Figure, less: Figure) -> Figure:
    """What a figure has above another."""
    return lambda measured: more(measured) - less(measured)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    :ivar contenders: those whose measurements it needs
    :ivar unit: of the figure; nothing for a ratio
    :ivar must: the limit; with none, the row only reports
    :ivar at_least: whether the figure must not be below the limit, instead of above
    :ivar summary: what counts of the rounds: their median, or the worst of them
    :ivar profiled: the contender and the process that ``make profile`` looks at
    """

    name: str
    title: str
    contenders: tuple[str, ...]
    figure: Figure
    must: float | None = None
    aim: float | None = None
    unit: str = ""
    at_least: bool = False
    summary: Callable[[Sequence[float]], float] = median
    profiled: tuple[str, str] = ("send_task", CLIENT)

    def result(self, rounds: Sequence[Round], problems: Mapping[str, str]) -> Result:
        """Judge what was measured.

        :param problems: why a contender could not be measured, by its name
        """
        for contender in self.contenders:
            if contender in problems:
                return Result(self, (), problems[contender])
        if not rounds:
            return Result(self, (), "not run")
        values = tuple(self.figure(measured) for measured in rounds)
        wrong = {
            contender: errors
            for contender in self.contenders
            if (errors := sum(measured[contender].errors for measured in rounds))
        }
        return Result(
            self, values, ", ".join(f"{name}: {errors} calls failed" for name, errors in wrong.items())
        )


@dataclass(frozen=True)
class Result:
    """What a row came to.

    :ivar values: its figure in each round
    :ivar problem: why there are none, or which calls went wrong
    """

    row: Row
    values: tuple[float, ...]
    problem: str = ""

    @property
    def value(self) -> float:
        """The figure of all rounds; only where there are any."""
        return self.row.summary(self.values)

    @property
    def failed(self) -> bool:
        """Whether the row must reach something, and was seen not to."""
        return self.verdict in {"missed", "wrong results"}

    @property
    def verdict(self) -> str:
        """``not measured``, ``wrong results``, ``reported``, ``aim reached``, ``reached`` or ``missed``."""
        if not self.values:
            return "not measured"
        if self.problem:
            return "wrong results"
        if self.row.must is None:
            return "reported"
        if self.row.aim is not None and self._reaches(self.row.aim):
            return "aim reached"
        return "reached" if self._reaches(self.row.must) else "missed"

    def _reaches(self, limit: float) -> bool:
        return self.value >= limit if self.row.at_least else self.value <= limit


@dataclass(frozen=True)
class Family:
    """Rows that are measured together.

    :ivar calls: made by each contender in a round, by default
    :ivar rounds: how many, whatever the command says; ``None``: as it says
    """

    name: str
    title: str
    scene: Scene
    contenders: tuple[Contender, ...]
    rows: tuple[Row, ...]
    calls: int = 2000
    rounds: int | None = None

    def contender(self, name: str) -> Contender:
        """The contender of this name."""
        return next(contender for contender in self.contenders if contender.name == name)
