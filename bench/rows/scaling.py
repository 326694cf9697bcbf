"""Calls a second with several bridges."""

from __future__ import annotations

from bench.contender import Contender
from bench.row import Family, Row, cpu, rate
from bench.servers import Scene
from bench.workload import TASK

__all__ = ["FAMILIES"]

_CALLERS = 400


def _family(bridges: int) -> Family:
    options = {"procedure": f"celery.{TASK}", "callees": bridges}
    contender = Contender(
        "bridge", "through WAMP", "wamp_call", workload={"in_flight": _CALLERS, "options": options}
    )
    name = f"bridges-{bridges}"
    number = "1 bridge" if bridges == 1 else f"{bridges} bridges"
    return Family(
        name,
        f"Through WAMP, {number}, stub worker, {_CALLERS} callers",
        Scene("amqp", "rpc", bridges=bridges),
        (contender,),
        (
            Row(
                f"{name}-rate",
                f"calls a second, {number}",
                ("bridge",),
                rate("bridge"),
                profiled=("bridge", "bridge"),
            ),
            Row(
                f"{name}-router",
                f"router CPU a call, {number}",
                ("bridge",),
                cpu("bridge", "router"),
                unit="µs",
                profiled=("bridge", "router"),
            ),
        ),
    )


FAMILIES = tuple(map(_family, (1, 2, 4)))
