"""Progressive results at a high rate. A row in which one is lost, or out of order, counts as wrong."""

from __future__ import annotations

from bench.contender import Contender
from bench.row import Family, Row, cpu, rate
from bench.servers import Scene

__all__ = ["FAMILIES"]


def _family(name: str, what: str, followers: int, updates: int, calls: int) -> Family:
    contender = Contender(
        "progress", what, "progress", workload={"options": {"followers": followers, "rate": updates}}
    )
    bridge = ("progress", "bridge")
    return Family(
        name,
        f"Progress through WAMP, {what}",
        Scene("amqp", "rpc", bridges=1),
        (contender,),
        (
            Row(
                f"{name}-bridge",
                f"bridge CPU an update: {what}",
                ("progress",),
                cpu(*bridge),
                unit="µs",
                profiled=bridge,
            ),
            Row(
                f"{name}-router",
                f"router CPU an update: {what}",
                ("progress",),
                cpu("progress", "router"),
                unit="µs",
                profiled=("progress", "router"),
            ),
            Row(
                f"{name}-rate",
                f"updates that arrive a second: {what}",
                ("progress",),
                rate("progress"),
                at_least=True,
                profiled=bridge,
            ),
        ),
        calls=calls,
    )


FAMILIES = (
    _family("progress-one", "10,000 updates a second to one follower", 1, 10_000, 40_000),
    _family("progress-many", "1,000 updates a second to 100 followers", 100, 1000, 4000),
)
