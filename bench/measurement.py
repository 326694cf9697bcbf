"""CPU, time and memory of one run."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.workload import Workload
from tests.support.guardian import descendants

__all__ = ["CLIENT", "Measurement", "Stopwatch", "count_errors", "memory", "quantile"]

#: The process that makes the calls.
CLIENT = "client"


@dataclass(frozen=True)
class Measurement:
    """What a number of calls took.

    :ivar elapsed: seconds
    :ivar cpu: seconds of user and system time by process
    :ivar errors: calls that failed, or gave another value than they should
    :ivar memory: bytes resident at the end, by process; for the client the most it had
    :ivar figures: what a single contender measures besides
    """

    calls: int
    elapsed: float
    cpu: Mapping[str, float]
    errors: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def cpu_per_call(self, process: str = CLIENT) -> float:
        """Microseconds."""
        return self.cpu[process] / self.calls * 1e6

    @property
    def calls_per_second(self) -> float:
        """The throughput."""
        return self.calls / self.elapsed


class Stopwatch:
    """Measures this process, and those that belong to the workload, from the moment it is made."""

    def __init__(self, workload: Workload) -> None:
        self._calls = workload.calls
        # Looking for children takes long, so it is done before the start, and not again.
        self._trees = {name: [pid, *descendants(pid)] for name, pid in workload.processes.items()}
        self._cpu = self._all_cpu()
        self._started = time.perf_counter()

    def stop(self) -> Stopwatch:
        """Stop it; what is checked and counted afterwards does not count."""
        elapsed = time.perf_counter() - self._started
        self._elapsed = elapsed
        self._used = {name: now - self._cpu[name] for name, now in self._all_cpu().items()}
        return self

    def measurement(self, errors: int, **figures: float) -> Measurement:
        """What passed until it was stopped."""
        sizes = {name: sum(map(memory, tree)) for name, tree in self._trees.items()}
        sizes[CLIENT] = _peak_memory()
        return Measurement(self._calls, self._elapsed, self._used, errors, sizes, figures)

    def _all_cpu(self) -> dict[str, float]:
        return {
            CLIENT: time.process_time(),
            **{name: sum(map(_cpu, tree)) for name, tree in self._trees.items()},
        }


def memory(pid: int | None = None) -> int:
    """Bytes resident of a process; of this one unless given."""
    pages = int(Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak_memory() -> int:
    # getrusage(2) would count what the process that started this one had.
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def _cpu(pid: int) -> float:
    # The clock that clock_getcpuclockid(3) gives on Linux. /proc has hundredths of a second only.
    return time.clock_gettime((~pid << 3) | 2)


def count_errors(outcomes: Iterable[Any], expected: Callable[[int], Any]) -> int:
    """How many outcomes, in the order of the calls, are not what they should be.

    :param expected: gives the value for the number of the call
    """
    return sum(outcome != expected(number) for number, outcome in enumerate(outcomes))


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which a part of the values lies, 0 to 1."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
