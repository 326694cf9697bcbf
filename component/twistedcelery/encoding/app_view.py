"""The Celery application as the reactor's thread sees it.

Celery's own code for sending does no I/O by itself, but where it asks the application for
something that does: ``backend``, which subscribes to results and prepares chords,
``producer_or_acquire``, which connects, and ``thread_oid``, the reply queue that only Celery's own
result backend reads. A view shares the application's state and answers those differently. Tasks
and results hold on to their application, so a view has its own of both. The application itself is
not touched: its other threads, or a worker in the same process, go on as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import celery.app.task
from celery.app.backends import by_url
from celery.backends.base import BaseBackend, DisabledBackend
from celery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["OfflineBackend", "backend_class", "bind_task", "is_from", "sends_its_own_way", "view_of"]


def backend_class(app: Celery) -> type[Any]:
    """The class of an application's result backend, without making one.

    `DisabledBackend` where the class cannot be imported: using the backend will say why.
    """
    try:
        cls = by_url(app.backend_cls or app.conf.result_backend, app.loader)[0]
    except (ImproperlyConfigured, ImportError):
        cls = DisabledBackend
    return cast("type[Any]", cls)


class OfflineBackend(BaseBackend):
    """A result backend that stores and fetches nothing.

    What remains is Celery's own knowledge of results: which content types are accepted, and how
    exceptions are rebuilt.
    """

    # Settings that the real backend may well support; this one must not warn about them.
    supports_failure_expires = True
    supports_result_compression = True

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing to prepare: the client's own result source watches the task."""


def view_of(
    app: Celery,
    reply_to: str | None = None,
    *,
    producer: Any = None,
    backend: OfflineBackend | None = None,
) -> Celery:
    """Make a view of an application for sending without I/O.

    :param app: a configured application; its state is shared, not copied
    :param reply_to: the reply queue that messages name; ``None`` keeps the application's own
    :param producer: takes what is published without a producer of its own; ``None``: the
        application's pool does
    :param backend: the view's result backend
    :return: an object with the application's class and state, whose ``backend`` does no I/O
    """
    # These are made at first use and remember who asked: let that be the application, since the
    # view shares the dictionary that they are remembered in.
    for name in ("conf", "amqp", "control", "events", "AsyncResult", "GroupResult", "ResultSet", "Task"):
        getattr(app, name)
    offline = backend or OfflineBackend(app)

    class View(type(app)):  # type: ignore[misc]  # a class that is known only at run time
        @property
        def backend(self) -> OfflineBackend:
            return offline

        @property
        def thread_oid(self) -> str:
            return reply_to if reply_to is not None else app.thread_oid

        @property
        def tasks(self) -> _BoundTasks:
            return tasks

        @property
        def AsyncResult(self) -> type[Any]:  # Celery's name  # noqa: N802  # see above
            return async_result

        @property
        def GroupResult(self) -> type[Any]:  # Celery's name  # noqa: N802  # see above
            return group_result

        def producer_or_acquire(self, given: Any = None) -> AbstractContextManager[Any]:
            # Celery's own also looks up, at each call, how long it may wait for one of the pool.
            chosen = given or producer
            return nullcontext(chosen) if chosen else super().producer_or_acquire(given)

    view: Celery = View.__new__(View)
    view.__dict__ = app.__dict__
    tasks = _BoundTasks(app, view)
    async_result = type("AsyncResult", (_NamedResult, app.AsyncResult), {"app": view})
    group_result = type("GroupResult", (app.GroupResult,), {"app": view})
    return view


class _NamedResult:
    """An ``AsyncResult`` that remembers its task's name, which Celery passes it, and forgets."""

    def __init__(self, id: str, *args: Any, task_name: str | None = None, **kwargs: Any) -> None:  # noqa: A002  # Celery's name
        self.task_name = task_name
        super().__init__(id, *args, **kwargs)  # type: ignore[call-arg]  # of the class mixed into


class _BoundTasks(Mapping[str, Any]):
    """A view's task registry: the application's tasks, which send through the view."""

    def __init__(self, app: Celery, view: Celery) -> None:
        self._app = app
        self._view = view
        self._bound: dict[str, tuple[Any, Any]] = {}

    def __getitem__(self, name: str) -> Any:
        task = self._app.tasks[name]
        made = self._bound.get(name)
        if made is None or made[0] is not task:
            made = self._bound[name] = task, bind_task(task, self._view)
        return made[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._app.tasks)

    def __len__(self) -> int:
        return len(self._app.tasks)


def bind_task(task: Task, view: Celery) -> Any:
    """Make a copy of a task that belongs to a view.

    A task's application is an attribute of its class, so the copy's class is a new one. Copying
    the task itself would give the registered one: tasks are pickled as their name.

    :param task: a task of any application
    """
    cls = type(task)
    bound: Any = object.__new__(type(cls.__name__, (cls,), {"_app": view, "backend": view.backend}))
    bound.__dict__.update(vars(task))
    return bound


def sends_its_own_way(task: Task) -> bool:
    """Whether a task's class, or somebody who patches tasks, has a part in sending it.

    Such a task may choose another id, send nothing and give the result of an earlier call, or refuse.
    """
    return not all(
        is_from(celery.app.task, getattr(task, method)) for method in ("apply_async", "shadow_name")
    )


def is_from(module: ModuleType, function: Any) -> bool:
    """Whether a function is the one of a module, and no wrapper around it."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == module.__file__
