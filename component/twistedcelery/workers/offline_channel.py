"""A kombu channel without a connection, for code of Celery's that is run without I/O."""

from __future__ import annotations

from typing import Any

__all__ = ["OfflineChannel"]


class OfflineChannel:
    """As much of kombu's connection and channel as Celery's code for control and events uses.

    Queues count as declared: the subscriber declares them.

    :param client: a kombu ``Connection`` that is never connected
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    @property
    def connection(self) -> OfflineChannel:
        return self

    def prepare_queue_arguments(self, arguments: dict[str, Any], **_: Any) -> dict[str, Any]:
        return arguments

    def exchange_declare(self, *_: Any, **__: Any) -> None: ...

    def queue_declare(self, queue: str, **_: Any) -> tuple[str, int, int]:
        return queue, 0, 0

    def queue_bind(self, *_: Any, **__: Any) -> None: ...
