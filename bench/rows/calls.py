"""The client's CPU for a call, and its throughput, where the worker is not the limit."""

from __future__ import annotations

from bench.contender import Contender
from bench.row import Family, Row, cpu, rate, ratio
from bench.servers import Scene

__all__ = ["CELERY", "FAMILIES", "SEND_TASK"]

CELERY = Contender("celery", "Celery: delay(), get()", "celery_get")
THREADS = Contender("threads", "Celery: a pool of 20 threads", "celery_threads")
DEFER = Contender("deferToThread", "Celery in deferToThread, 20 threads", "defer_to_thread")
TXCELERY = Contender("txcelery", "txcelery-py3, 50 threads", "txcelery_delay", needs="txcelery")
AIO = Contender("aio-celery", "aio-celery", "aio_celery", needs="aio_celery")
SEND_TASK = Contender("send_task", "TwistedCelery.send_task", "send_task")
PIKA = Contender("floor", "pika, a constant message", "pika_echo")
RAW = Contender("floor", "Redis' commands, a constant message", "redis_raw")


def _against(family: str, contender: Contender, must: float | None, aim: float | None = None) -> Row:
    return Row(
        f"{family}-{contender.name}",
        f"client CPU a call against: {contender.title}",
        (SEND_TASK.name, contender.name),
        ratio(cpu(SEND_TASK.name), cpu(contender.name)),
        must,
        aim,
    )


def _throughput(family: str, must: float | None, aim: float | None = None) -> Row:
    return Row(
        f"{family}-rate",
        "calls a second against Celery's, stub worker",
        (SEND_TASK.name, CELERY.name),
        ratio(rate(SEND_TASK.name), rate(CELERY.name)),
        must,
        aim,
        at_least=True,
    )


FAMILIES = (
    Family(
        "amqp",
        "AMQP and rpc://, stub worker, 2,000 in flight",
        Scene("amqp", "rpc"),
        (CELERY, SEND_TASK, PIKA, THREADS, DEFER),
        (
            _against("amqp", CELERY, 0.25, 0.22),
            _against("amqp", PIKA, 1.5, 1.4),
            _throughput("amqp", 3.5, 4),
            _against("amqp", THREADS, None),
            _against("amqp", DEFER, 0.3),
        ),
    ),
    Family(
        "redis",
        "Redis and Redis, stub worker, 2,000 in flight",
        Scene("redis", "redis"),
        (CELERY, SEND_TASK, RAW, THREADS, DEFER, TXCELERY),
        (
            _against("redis", CELERY, 0.35, 0.25),
            _against("redis", RAW, None),
            _throughput("redis", None),
            _against("redis", THREADS, None),
            _against("redis", DEFER, 0.3),
            _against("redis", TXCELERY, 0.2),
        ),
    ),
    Family(
        "amqp-redis",
        "AMQP and Redis, stub worker, 2,000 in flight",
        Scene("amqp", "redis"),
        (CELERY, SEND_TASK, AIO),
        (
            _against("amqp-redis", CELERY, 0.35, 0.25),
            _throughput("amqp-redis", None),
            _against("amqp-redis", AIO, 0.35),
        ),
    ),
)
