"""Turns kombu's queues and exchanges into AMQP declarations, by kombu's own code, recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kombu.transport.base import to_rabbitmq_queue_arguments

__all__ = ["Declaration", "declarations"]


@dataclass(frozen=True, slots=True)
class Declaration:
    """One AMQP method, with arguments under pika's names.

    :ivar method: ``exchange_declare``, ``queue_declare``, ``queue_bind``, ``exchange_bind``, or
        ``queue_purge``, which is no declaration, but works like one
    """

    method: str
    arguments: Mapping[str, Any]


def declarations(entity: Any) -> tuple[Declaration, ...]:
    """List what ``entity.declare()`` would do.

    :param entity: a kombu ``Queue`` or ``Exchange``; it is not changed
    """
    channel = _RecordingChannel()
    entity.bind(channel).declare(channel=channel)
    return tuple(channel.recorded)


class _RecordingChannel:
    """As much of kombu's channel interface as declaring uses."""

    # kombu takes an entity on a channel without a connection for one that needs binding anew.
    connection = None

    def __init__(self) -> None:
        self.recorded: list[Declaration] = []

    def prepare_queue_arguments(self, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
        prepared: dict[str, Any] = to_rabbitmq_queue_arguments(arguments, **options)
        return prepared

    def exchange_declare(self, exchange: str, nowait: bool = False, **arguments: Any) -> None:
        arguments["exchange_type"] = arguments.pop("type")
        self._record("exchange_declare", exchange=exchange, **arguments)

    def queue_declare(self, queue: str, nowait: bool = False, **arguments: Any) -> tuple[str, int, int]:
        self._record("queue_declare", queue=queue, **arguments)
        return queue, 0, 0

    def queue_bind(self, queue: str, nowait: bool = False, **arguments: Any) -> None:
        self._record("queue_bind", queue=queue, **arguments)

    def exchange_bind(self, destination: str, source: str, nowait: bool = False, **arguments: Any) -> None:
        self._record("exchange_bind", destination=destination, source=source, **arguments)

    def _record(self, method: str, **arguments: Any) -> None:
        self.recorded.append(Declaration(method, arguments))
