"""The memory of a router that has been busy."""

from __future__ import annotations

from bench.contender import Contender
from bench.row import Family, Row, growth
from bench.servers import Scene
from bench.workload import TASK

__all__ = ["FAMILIES"]

_WAMP = Contender(
    "bridge",
    "through WAMP",
    "wamp_call",
    workload={"in_flight": 200, "warm_up": 2000, "options": {"procedure": f"celery.{TASK}"}},
)

FAMILIES = (
    Family(
        "router-memory",
        "Through WAMP, stub worker, 200 callers, 100,000 calls",
        Scene("amqp", "rpc", bridges=1),
        (_WAMP,),
        (
            Row(
                "router-memory",
                "router memory after 100,000 calls, no retained events, against before",
                ("bridge",),
                growth("bridge", "router"),
                1.05,
                summary=max,
                profiled=("bridge", "router"),
            ),
            Row(
                "bridge-memory",
                "bridge memory after 100,000 calls, against before",
                ("bridge",),
                growth("bridge", "bridge"),
                summary=max,
                profiled=("bridge", "bridge"),
            ),
        ),
        calls=100_000,
        # What grows, grows in one round; five would take ten minutes.
        rounds=1,
    ),
)
