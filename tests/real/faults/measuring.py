"""What a fault costs the process that it meets: time of the reactor, memory, and what is left in tables."""

from __future__ import annotations

import gc
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from twisted.internet import task

from tests.support.lateness import Lateness

__all__ = ["KEPT", "PENDING", "SLACK", "Report", "Watch", "resident", "tables"]

#: The tables of pending things. They must be exactly as full as before.
PENDING = {
    *(
        "PendingResults._waiting",
        "PendingResults._retried",
        "Route.in_flight",
        "LostCalls._sent",
        "Pacer._jobs",
    ),
    *("Revoker._gathered", "Waiters._waiting", "_Line._publications"),
    *("AmqpPublisher._preparing", "AmqpPublisher._unconfirmed", "AmqpResults._watched"),
    *("RedisPublisher._preparing", "RedisPublisher._unconfirmed", "RedisResults._watched", "Requests._open"),
    *("ThreadedPublisher._unsettled", "ThreadedResults._watched", "Fetcher._tasks"),
    *("InFlight._tasks", "_Group._by_owner", "EventMergers._open"),
}

#: Other tables may grow by this: by what is made once, such as a task's template. A leak is of many.
SLACK = 100

#: Tables that grow by more, and why they are bounded.
KEPT = {
    "StateCache._states": "the last states of tasks, at most 1,000",
    "StateCache._holders": "weak references to calls that somebody else holds",
    "Deadlines._heap": "an entry that was settled stays until its time is up",
    "EndedTasks._ended": "tasks that have ended, a bounded number of them",
    "EventPublisher._recent": "the last events, at most 1,000, and until the next subscriber comes",
    "ForeignTasks._known": "tasks of other clients, a bounded number of them",
}

_TABLES = (dict, list, set, deque, WeakSet, WeakValueDictionary)


def tables(*roots: object) -> dict[str, int]:
    """The size of each container that objects of this package have, by class and attribute.

    All objects are found that the roots lead to through attributes and containers, so that a table which
    is added to the package is looked at without being listed here. Sizes of several objects of one class
    are added up.
    """
    sizes: Counter[str] = Counter()
    seen: dict[int, object] = {}
    waiting: list[object] = list(roots)
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen[id(found)] = found
        if isinstance(found, Mapping):
            waiting.extend(list(found.values()))
        elif isinstance(found, _TABLES):
            waiting.extend(list(found))
        elif isinstance(found, MethodType):
            waiting.append(found.__self__)
        elif type(found).__module__.partition(".")[0] == "twistedcelery":
            for name, value in _attributes(found):
                if isinstance(value, _TABLES):
                    sizes[f"{type(found).__name__}.{name}"] += len(value)
                waiting.append(value)
    return dict(sizes)


def _attributes(thing: object) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(thing, "__dict__", {}).items())
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                yield name, getattr(thing, name)


def resident(pid: int | None = None) -> float:
    """The resident memory of a process, this one unless given, in MiB."""
    pages = Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Report:
    """What a process has cost since its first report, and what it holds.

    :ivar lateness: the longest time that the reactor's thread was busy with one thing, in seconds
    :ivar growth: how much more memory the process had at most, in MiB
    :ivar resident: its memory now, in MiB
    :ivar left: the tables that hold more than at the first report, and may not, and how much more
    """

    lateness: float
    growth: float
    resident: float
    left: dict[str, int]


class Watch:
    """Measures this process, on its reactor.

    :param find_roots: finds the objects whose tables are looked at
    """

    def __init__(self, find_roots: Callable[[], Iterable[object]]) -> None:
        self._find_roots = find_roots
        self._lateness = Lateness()
        self._sampling = task.LoopingCall(self._sample)
        self._tables: dict[str, int] | None = None
        self._began_at = self._peak = 0.0

    def report(self) -> Report:
        """Tell what has come of it since the first report, which should find nothing under way."""
        gc.collect()
        now = tables(*self._find_roots())
        if self._tables is None:
            self._tables = now
            self._lateness.__enter__()
            self._began_at = self._peak = resident()
            self._sampling.start(0.25)
        more = {name: size - self._tables.get(name, 0) for name, size in now.items() if name not in KEPT}
        left = {name: size for name, size in more.items() if size > (0 if name in PENDING else SLACK)}
        return Report(self._lateness.worst, self._peak - self._began_at, resident(), left)

    def stop(self) -> None:
        """Measure no more."""
        if self._sampling.running:
            self._sampling.stop()
            self._lateness.__exit__()

    def _sample(self) -> None:
        self._peak = max(self._peak, resident())
