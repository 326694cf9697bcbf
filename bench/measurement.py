"""CPU and time of one run."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

__all__ = ["Measurement", "Stopwatch"]


@dataclass(frozen=True)
class Measurement:
    """What a number of calls took.

    :ivar cpu: seconds of user and system time of the whole process
    :ivar elapsed: seconds
    """

    calls: int
    cpu: float
    elapsed: float

    @property
    def cpu_per_call(self) -> float:
        """Microseconds."""
        return self.cpu / self.calls * 1e6

    @property
    def calls_per_second(self) -> float:
        """The throughput."""
        return self.calls / self.elapsed


class Stopwatch:
    """Measures this process from the moment it is made."""

    def __init__(self) -> None:
        self._cpu = _cpu()
        self._started = time.perf_counter()

    def stop(self, calls: int) -> Measurement:
        """What has passed until now, for so many calls."""
        return Measurement(calls, _cpu() - self._cpu, time.perf_counter() - self._started)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
