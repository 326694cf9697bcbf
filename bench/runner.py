"""Runs families of rows: their servers, and round after round their contenders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.contender import Contender, ContenderFailed
from bench.measurement import Measurement
from bench.row import Family, Result, Round
from bench.servers import ServerMissing, Servers
from bench.workload import Workload

__all__ = ["Measured", "run"]


@dataclass(frozen=True)
class Measured:
    """What the rounds of a family gave.

    :ivar problems: why a contender could not be measured, by its name
    """

    family: Family
    calls: int
    rounds: tuple[Round, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def results(self) -> tuple[Result, ...]:
        """The family's rows."""
        return tuple(row.result(self.rounds, self.problems) for row in self.family.rows)


def run(
    families: Iterable[Family], rounds: int, calls: int | None, log: Callable[[str], None] = print
) -> list[Measured]:
    """Run families, one after another.

    :param calls: for all contenders, instead of their families' own numbers
    :param log: called with a line for each run of a contender
    """
    with Servers() as servers:
        return [
            _run(servers, family, family.rounds or rounds, calls or family.calls, log) for family in families
        ]


def _run(servers: Servers, family: Family, rounds: int, calls: int, log: Callable[[str], None]) -> Measured:
    log(f"\n{family.name}: {family.title}; {calls} calls, {rounds} rounds")
    try:
        with servers.scene(family.scene, calls) as workload:
            measured, problems = _rounds(family, rounds, workload, log)
    except ServerMissing as missing:
        log(f"  {missing}")
        return Measured(family, calls, (), {contender.name: str(missing) for contender in family.contenders})
    return Measured(family, calls, measured, problems)


def _rounds(
    family: Family, rounds: int, workload: Workload, log: Callable[[str], None]
) -> tuple[tuple[Round, ...], dict[str, str]]:
    """Interleave the contenders, and let each begin a round in its turn."""
    problems: dict[str, str] = {}
    finished: list[Round] = []
    for number in range(rounds):
        measured: dict[str, Measurement] = {}
        for contender in _turned(family.contenders, number):
            if contender.name in problems:
                continue
            try:
                measured[contender.name] = contender.measure(workload)
            except ContenderFailed as failed:
                problems[contender.name] = str(failed)
                log(f"  {contender.title}: {failed}")
            else:
                log(f"  round {number + 1}, {contender.title}: {_line(measured[contender.name])}")
        finished.append(measured)
    return tuple(finished), problems


def _turned(items: Sequence[Contender], by: int) -> Sequence[Contender]:
    by %= len(items)
    return (*items[by:], *items[:by])


def _line(measured: Measurement) -> str:
    cpu = ", ".join(f"{name} {measured.cpu_per_call(name):.0f}" for name in measured.cpu)
    errors = f", {measured.errors} errors" if measured.errors else ""
    return f"{measured.calls_per_second:.0f} calls/s; us CPU a call: {cpu}{errors}"
