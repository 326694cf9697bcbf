"""What every contender does in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TASK", "Workload", "Y"]

#: The task, and what it adds to the number of the call.
TASK = "taskapp.add"
Y = 3


@dataclass(frozen=True)
class Workload:
    """Calls of `TASK`.

    :ivar broker: the URL of a broker with a worker
    :ivar backend: the URL of the result backend
    :ivar calls: how many calls are measured
    :ivar in_flight: how many of them are in flight at once; all of them unless given
    :ivar warm_up: how many calls are made before, which connect and fill caches
    :ivar router: the URL of the router's WebSocket, where there is one
    :ivar processes: the ids of the processes whose CPU counts too, by name; their children count with them
    :ivar options: what a single contender understands
    """

    broker: str
    backend: str
    calls: int
    in_flight: int = 0
    warm_up: int = 200
    router: str = ""
    processes: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at_once(self) -> int:
        """How many calls are in flight at once."""
        return self.in_flight or self.calls
