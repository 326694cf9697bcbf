"""How late calls make the reactor of the program that makes them."""

from __future__ import annotations

from bench.contender import Contender
from bench.measurement import CLIENT
from bench.row import Family, Row, figure
from bench.servers import Scene

__all__ = ["FAMILIES"]

_SCENE = Scene("amqp", "rpc")
_PACED = Contender("paced", "send_task, 1,000 a second", "late", workload={"options": {"rate": 1000}})
_LOOP = Contender("loop", "send_task, all in one loop", "late")

FAMILIES = (
    Family(
        "lateness-paced",
        "AMQP and rpc://, stub worker, 1,000 calls a second for 60 s",
        _SCENE,
        (_PACED,),
        (
            Row(
                "lateness-paced",
                "longest reactor lateness, 1,000 calls a second for 60 s",
                ("paced",),
                figure("paced", "worst"),
                10,
                unit="ms",
                summary=max,
                profiled=("paced", CLIENT),
            ),
        ),
        calls=60_000,
        # A minute is long enough, and a worst has no median.
        rounds=1,
    ),
    Family(
        "lateness-loop",
        "AMQP and rpc://, stub worker, 5,000 calls in one loop",
        _SCENE,
        (_LOOP,),
        (
            Row(
                "lateness-loop",
                "longest reactor lateness, 5,000 calls in one loop, the loop itself apart",
                ("loop",),
                figure("loop", "worst"),
                10,
                unit="ms",
                summary=max,
                profiled=("loop", CLIENT),
            ),
        ),
        calls=5000,
    ),
)
