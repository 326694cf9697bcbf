"""What every client does in a round."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TASK", "Workload", "X", "Y"]

#: The task, and what it adds.
TASK = "taskapp.add"
X, Y = 2, 3


@dataclass(frozen=True)
class Workload:
    """Calls of `TASK`.

    :ivar broker: the URL of a broker with a worker
    :ivar calls: how many calls are measured, all of them in flight at once
    :ivar warm_up: how many calls are made before, which connect and fill caches
    """

    broker: str
    calls: int
    warm_up: int = 200
