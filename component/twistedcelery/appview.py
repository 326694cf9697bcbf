"""The Celery application as the reactor's thread sees it.

Celery's own code for sending does no I/O by itself, but for two places where it asks the
application for something that does: `Celery.backend`, which subscribes to results before a task
is sent, and `Celery.thread_oid`, the reply queue that only Celery's own result backend reads.
A view shares the application's state and answers those two differently. The application itself
is not touched, so its other threads, or a worker in the same process, go on as before.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from celery.backends.base import Backend

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["OfflineBackend", "view_of"]


class OfflineBackend(Backend):
    """A result backend that stores and fetches nothing.

    What remains is Celery's own knowledge of results: which content types are accepted, and how
    exceptions are rebuilt.
    """

    # Settings that the real backend may well support; this one must not warn about them.
    supports_failure_expires = True
    supports_result_compression = True

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing to prepare: the client's own result source watches the task."""


def view_of(app: Celery, reply_to: str | None) -> Celery:
    """Make a view of an application for sending without I/O.

    :param app: a configured application; its state is shared, not copied
    :param reply_to: the reply queue that messages name; ``None`` keeps the application's own
    :return: an object with the application's class and state, whose ``backend`` does no I/O
    """
    # These are made at first use and remember who asked: let that be the application, since the
    # view shares the dictionary that they are remembered in.
    for name in ("conf", "amqp", "control", "events", "AsyncResult", "GroupResult", "ResultSet", "Task"):
        getattr(app, name)
    backend = OfflineBackend(app)

    class View(type(app)):  # type: ignore[misc]  # a class that is known only at run time
        @property
        def backend(self) -> OfflineBackend:
            return backend

        @property
        def thread_oid(self) -> str:
            return reply_to if reply_to is not None else app.thread_oid

        def producer_or_acquire(self, producer: Any = None) -> AbstractContextManager[Any]:
            # Celery's own also looks up, at each call, how long it may wait for one of the pool.
            return nullcontext(producer) if producer else super().producer_or_acquire(producer)

    view: Celery = View.__new__(View)
    view.__dict__ = app.__dict__
    return view
