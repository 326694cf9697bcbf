"""Which transport serves an application's broker and result backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.transports.interface import Publisher, ReplyReceiver, ResultSource


def choose(
    app: Celery, reactor: Any, receiver: ReplyReceiver, *, publish_timeout: float, transport: str = "auto"
) -> tuple[Publisher, ResultSource]:
    from twistedcelery.transports import amqp

    return amqp.make_publisher(app, reactor, publish_timeout), amqp.make_results(app, reactor, receiver)
