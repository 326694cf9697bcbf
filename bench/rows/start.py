"""The start of a bridge."""

from __future__ import annotations

from bench.contender import Contender
from bench.row import Family, Row, elapsed, ratio
from bench.servers import Scene

__all__ = ["FAMILIES"]

_IMPORT = Contender(
    "import",
    "import of Crossbar's container",
    "start",
    workload={"calls": 1, "options": {"imports": "crossbar.worker.container"}},
)
_BRIDGE = Contender("bridge", "a bridge with 200 tasks", "start", workload={"calls": 1})

FAMILIES = (
    Family(
        "start",
        "Start of a bridge with 200 tasks",
        Scene("amqp", "rpc", router=True),
        (_IMPORT, _BRIDGE),
        (
            Row(
                "start",
                "process start to bridge registered, 200 tasks, against the import of Crossbar's container",
                ("import", "bridge"),
                ratio(elapsed("bridge"), elapsed("import")),
                2.0,
                profiled=("bridge", "client"),
            ),
            Row(
                "start-seconds",
                "process start to bridge registered, 200 tasks",
                ("bridge",),
                elapsed("bridge"),
                unit="s",
                profiled=("bridge", "client"),
            ),
        ),
        calls=1,
    ),
)
