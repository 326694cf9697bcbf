"""One worker of Celery's with ``--pool=solo``, as the limit of what is measured."""

from __future__ import annotations

from bench.row import Family, Row, cpu, rate, ratio
from bench.rows.calls import CELERY, PIKA, SEND_TASK
from bench.servers import Scene

__all__ = ["FAMILIES"]

_BOTH = (SEND_TASK.name, CELERY.name)
_CPU = ratio(cpu(SEND_TASK.name), cpu(CELERY.name))
_RATE = ratio(rate(SEND_TASK.name), rate(CELERY.name))

FAMILIES = (
    Family(
        "amqp-solo",
        "AMQP and rpc://, one solo worker, 2,000 in flight",
        Scene("amqp", "rpc", "solo"),
        (CELERY, SEND_TASK, PIKA),
        (
            Row("amqp-solo-celery", f"client CPU a call against: {CELERY.title}", _BOTH, _CPU, 0.25, 0.22),
            Row(
                "amqp-solo-floor",
                f"client CPU a call against: {PIKA.title}",
                (SEND_TASK.name, PIKA.name),
                ratio(cpu(SEND_TASK.name), cpu(PIKA.name)),
                1.5,
                1.4,
            ),
            Row(
                "amqp-solo-rate", "calls a second against Celery's, solo worker", _BOTH, _RATE, at_least=True
            ),
        ),
    ),
    Family(
        "redis-solo",
        "Redis and Redis, one solo worker, 2,000 in flight",
        Scene("redis", "redis", "solo"),
        (CELERY, SEND_TASK),
        (
            Row(
                "redis-solo-rate",
                "calls a second against Celery's, solo worker",
                _BOTH,
                _RATE,
                1.0,
                at_least=True,
            ),
            Row("redis-solo-celery", f"client CPU a call against: {CELERY.title}", _BOTH, _CPU),
        ),
    ),
)
