"""Flower's REST API against calls through WAMP, with the same worker."""

from __future__ import annotations

from bench.contender import Contender
from bench.row import Family, Row, cpu, rate, ratio
from bench.servers import Scene
from bench.workload import TASK

__all__ = ["FAMILIES"]

_CALLERS = 20
_FLOWER = Contender(
    "flower",
    "Flower's REST API",
    "flower_apply",
    needs="flower",
    workload={"in_flight": _CALLERS, "warm_up": 100},
)
_BRIDGE = Contender(
    "bridge",
    "through WAMP",
    "wamp_call",
    workload={"in_flight": _CALLERS, "options": {"procedure": f"celery.{TASK}"}},
)
_BOTH = ("flower", "bridge")

FAMILIES = (
    Family(
        "flower",
        f"AMQP and Redis, stub worker, {_CALLERS} callers",
        Scene("amqp", "redis", bridges=1, flower=True),
        (_FLOWER, _BRIDGE),
        (
            Row(
                "flower-rate",
                "calls a second through WAMP against Flower's REST API",
                _BOTH,
                ratio(rate("bridge"), rate("flower")),
                5,
                at_least=True,
                profiled=("bridge", "bridge"),
            ),
            Row(
                "flower-cpu",
                "CPU a call of router and bridge against Flower's server",
                _BOTH,
                ratio(cpu("bridge", "router", "bridge"), cpu("flower", "Flower")),
                0.2,
                profiled=("bridge", "router"),
            ),
        ),
        calls=1000,
    ),
)
