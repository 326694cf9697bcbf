"""Celery's control commands and queries, for type checkers alone.

Nothing here exists when the program runs: `twistedcelery.workers.control` has whatever methods the installed
Celery and the application have. A test compares names and parameters with the installed Celery's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

__all__ = ["ControlCommands", "InspectQueries", "Workers"]

T = TypeVar("T")

#: Names of workers; ``None``: all of them.
Workers: TypeAlias = "Sequence[str] | None"
#: One reply each, by worker; ``None`` without ``reply=True``.
Replies: TypeAlias = "list[dict[str, Any]] | None"
#: By worker; ``None``: no worker has replied.
ByWorker: TypeAlias = "dict[str, T] | None"


class ControlCommands:
    """Celery's ``Control``. Further options (``kwargs``) are those of `broadcast`."""

    if TYPE_CHECKING:

        def broadcast(
            self,
            command: str,
            arguments: Mapping[str, Any] | None = None,
            destination: Workers = None,
            connection: None = None,
            reply: bool = False,
            timeout: float | None = 1.0,
            limit: int | None = None,
            callback: Callable[[dict[str, Any]], object] | None = None,
            channel: None = None,
            pattern: str | None = None,
            matcher: str | None = None,
            **extra_kwargs: Any,
        ) -> Deferred[Replies]: ...

        def ping(
            self, destination: Workers = None, timeout: float | None = 1.0, **kwargs: Any
        ) -> Deferred[list[dict[str, dict[str, str]]]]: ...

        def revoke(
            self,
            task_id: str | Sequence[str],
            destination: Workers = None,
            terminate: bool = False,
            signal: str = "SIGTERM",
            **kwargs: Any,
        ) -> Deferred[Replies]: ...

        def revoke_by_stamped_headers(
            self,
            headers: Mapping[str, str | Sequence[str]],
            destination: Workers = None,
            terminate: bool = False,
            signal: str = "SIGTERM",
            **kwargs: Any,
        ) -> Deferred[Replies]: ...

        def terminate(
            self,
            task_id: str | Sequence[str],
            destination: Workers = None,
            signal: str = "SIGTERM",
            **kwargs: Any,
        ) -> Deferred[Replies]: ...

        def rate_limit(
            self, task_name: str, rate_limit: float | str, destination: Workers = None, **kwargs: Any
        ) -> Deferred[Replies]: ...

        def time_limit(
            self,
            task_name: str,
            soft: float | None = None,
            hard: float | None = None,
            destination: Workers = None,
            **kwargs: Any,
        ) -> Deferred[Replies]: ...

        def add_consumer(
            self,
            queue: str,
            exchange: str | None = None,
            exchange_type: str = "direct",
            routing_key: str | None = None,
            options: Mapping[str, Any] | None = None,
            destination: Workers = None,
            **kwargs: Any,
        ) -> Deferred[Replies]: ...

        def cancel_consumer(
            self, queue: str, destination: Workers = None, **kwargs: Any
        ) -> Deferred[Replies]: ...

        def enable_events(self, destination: Workers = None, **kwargs: Any) -> Deferred[Replies]: ...

        def disable_events(self, destination: Workers = None, **kwargs: Any) -> Deferred[Replies]: ...

        def heartbeat(self, destination: Workers = None, **kwargs: Any) -> Deferred[Replies]: ...

        def pool_grow(self, n: int = 1, destination: Workers = None, **kwargs: Any) -> Deferred[Replies]: ...

        def pool_shrink(
            self, n: int = 1, destination: Workers = None, **kwargs: Any
        ) -> Deferred[Replies]: ...

        def pool_restart(
            self,
            modules: Sequence[str] | None = None,
            reload: bool = False,
            reloader: Any = None,
            destination: Workers = None,
            **kwargs: Any,
        ) -> Deferred[Replies]: ...

        def autoscale(
            self,
            max: int,  # Celery's name  # noqa: A002  # see before
            min: int,  # as max  # noqa: A002  # see before
            destination: Workers = None,
            **kwargs: Any,
        ) -> Deferred[Replies]: ...

        def shutdown(self, destination: Workers = None, **kwargs: Any) -> Deferred[Replies]: ...

        def election(
            self,
            id: str,  # Celery's name  # noqa: A002  # see before
            topic: str,
            action: Any = None,
            connection: None = None,
        ) -> Deferred[None]: ...


class InspectQueries:
    """Celery's ``Inspect``."""

    if TYPE_CHECKING:

        def active(self, safe: bool | None = None) -> Deferred[ByWorker[list[dict[str, Any]]]]: ...

        def scheduled(self, safe: bool | None = None) -> Deferred[ByWorker[list[dict[str, Any]]]]: ...

        def reserved(self, safe: bool | None = None) -> Deferred[ByWorker[list[dict[str, Any]]]]: ...

        def query_task(self, *ids: str | Sequence[str]) -> Deferred[ByWorker[dict[str, Any]]]: ...

        def revoked(self) -> Deferred[ByWorker[list[str]]]: ...

        def registered(self, *taskinfoitems: str) -> Deferred[ByWorker[list[str]]]: ...

        registered_tasks = registered

        def active_queues(self) -> Deferred[ByWorker[list[dict[str, Any]]]]: ...

        def stats(self) -> Deferred[ByWorker[dict[str, Any]]]: ...

        def conf(self, with_defaults: bool = False) -> Deferred[ByWorker[dict[str, Any]]]: ...

        def report(self) -> Deferred[ByWorker[dict[str, str]]]: ...

        def ping(self, destination: Workers = None) -> Deferred[ByWorker[dict[str, str]]]: ...

        def clock(self) -> Deferred[ByWorker[dict[str, int]]]: ...

        def hello(self, from_node: str, revoked: Any = None) -> Deferred[ByWorker[dict[str, Any]]]: ...

        def memsample(self) -> Deferred[ByWorker[Any]]: ...

        def memdump(self, samples: int = 10) -> Deferred[ByWorker[Any]]: ...

        def objgraph(
            self,
            type: str = "Request",  # Celery's name  # noqa: A002  # see before
            n: int = 200,
            max_depth: int = 10,
        ) -> Deferred[ByWorker[Any]]: ...
