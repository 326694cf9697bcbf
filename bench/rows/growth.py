"""Many calls in flight against few."""

from __future__ import annotations

from bench.contender import Contender
from bench.measurement import CLIENT
from bench.row import Family, Row, cpu, figure, ratio
from bench.servers import Scene

__all__ = ["FAMILIES"]

_FEW = Contender("few", "500 in flight", "held", workload={"in_flight": 500})
_MANY = Contender("many", "all in flight", "held")

FAMILIES = (
    Family(
        "growth",
        "AMQP and rpc://, stub worker, 50,000 in flight against 500",
        Scene("amqp", "rpc"),
        (_FEW, _MANY),
        (
            Row(
                "growth-cpu",
                "CPU a call, 50,000 in flight against 500",
                ("few", "many"),
                ratio(cpu("many"), cpu("few")),
                1.1,
                profiled=("many", CLIENT),
            ),
            Row(
                "growth-memory",
                "memory of a call, 50,000 in flight",
                ("many",),
                figure("many", "kib"),
                3.0,
                unit="KiB",
                profiled=("many", CLIENT),
            ),
        ),
        calls=50_000,
    ),
)
