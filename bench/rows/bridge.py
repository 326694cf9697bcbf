"""The bridge and its router: CPU and latency of a call through WAMP, with nobody subscribed to events."""

from __future__ import annotations

from bench.contender import Contender
from bench.echo import PROCEDURE
from bench.row import Family, Row, cpu, difference, figure, ratio, total
from bench.servers import Scene
from bench.workload import TASK

__all__ = ["FAMILIES"]

_SCENE = Scene("amqp", "rpc", bridges=1, echo=True)
_CALLERS = 200


def _contenders(at_once: int) -> tuple[Contender, ...]:
    load = {"in_flight": at_once}
    return (
        Contender("echo", "WAMP echo", "wamp_call", workload={**load, "options": {"procedure": PROCEDURE}}),
        Contender("send_task", "send_task without WAMP", "send_task", workload=load),
        Contender(
            "bridge",
            "through WAMP",
            "wamp_call",
            workload={**load, "options": {"procedure": f"celery.{TASK}"}},
        ),
    )


_ALL = ("echo", "send_task", "bridge")
_ALONE = total(figure("echo", "p50"), figure("send_task", "p50"))

FAMILIES = (
    Family(
        "bridge",
        f"Through WAMP, stub worker, {_CALLERS} callers",
        _SCENE,
        _contenders(_CALLERS),
        (
            Row(
                "bridge-cpu",
                "bridge CPU a call against echo callee and send_task together",
                _ALL,
                ratio(cpu("bridge", "bridge"), total(cpu("echo", "echo"), cpu("send_task"))),
                1.25,
                1.15,
                profiled=("bridge", "bridge"),
            ),
            Row(
                "router-cpu",
                "router CPU a call against echo",
                ("echo", "bridge"),
                ratio(cpu("bridge", "router"), cpu("echo", "router")),
                1.4,
                profiled=("bridge", "router"),
            ),
        ),
    ),
    Family(
        "latency",
        "Through WAMP, stub worker, one call after another",
        _SCENE,
        _contenders(1),
        (
            Row(
                "latency-p50",
                "bridge latency, p50 above echo and send_task together",
                _ALL,
                difference(figure("bridge", "p50"), _ALONE),
                0.5,
                unit="ms",
                profiled=("bridge", "bridge"),
            ),
            Row(
                "latency-p99",
                "bridge latency, p99 above the p50 of echo and send_task together",
                _ALL,
                difference(figure("bridge", "p99"), _ALONE),
                3.0,
                unit="ms",
                profiled=("bridge", "bridge"),
            ),
        ),
        calls=1000,
    ),
)
