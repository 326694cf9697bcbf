"""Answers questions about results by the code of Celery's result backends, wherever it runs."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from celery import states
from celery.result import AsyncResult, GroupResult, result_from_tuple
from twisted.internet.defer import Deferred

from twistedcelery.encoding.app_view import view_of
from twistedcelery.encoding.message import Preparation
from twistedcelery.transports.decoding import check_meta

__all__ = ["BackendStore"]

T = TypeVar("T")


class BackendStore(ABC):
    """A `twistedcelery.transports.interface.ResultStore` on one of Celery's result backends.

    A subclass runs the backend's code without blocking the reactor: in a thread, or on replies that are
    there already.

    :param app: the Celery application
    """

    def __init__(self, app: Any) -> None:
        # Its results do no I/O of their own: what is read here becomes results of the client's.
        self._view = view_of(app)

    @abstractmethod
    def _run(self, work: Callable[[Any], T]) -> Deferred[T]:
        """Run code on a result backend.

        :param work: gets the backend. It does the same each time it runs.
        :return: fires with the code's value, or fails with a `twistedcelery.errors.TwistedCeleryError`
            or ``NotImplementedError``
        """

    @abstractmethod
    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.close`."""

    def task_meta(self, task_id: str) -> Deferred[Mapping[str, Any]]:
        """As `twistedcelery.transports.interface.ResultStore.task_meta`."""
        return self._run(lambda backend: check_meta(backend.get_task_meta(task_id, cache=False)))

    def exists(self, task_id: str) -> Deferred[bool]:
        """As `twistedcelery.transports.interface.ResultStore.exists`."""

        def exists(backend: Any) -> bool:
            # Celery 5.7 began with it.
            asked = getattr(backend, "task_result_exists", None)
            if asked is not None:
                return bool(asked(task_id))
            return bool(backend.get_task_meta(task_id, cache=False)["status"] != states.PENDING)

        return self._run(exists)

    def forget(self, task_id: str) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.forget`."""
        return self._run(lambda backend: _delete(backend.forget, task_id))

    def save_group(self, group_id: str, group: tuple[Any, ...]) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.save_group`."""

        def save(backend: Any) -> None:
            backend.save_group(group_id, _picklable(result_from_tuple(group, self._view), self._view))

        return self._run(save)

    def restore_group(self, group_id: str) -> Deferred[tuple[Any, ...] | None]:
        """As `twistedcelery.transports.interface.ResultStore.restore_group`."""

        def restore(backend: Any) -> tuple[Any, ...] | None:
            group = backend.restore_group(group_id, cache=False)
            return None if group is None else group.as_tuple()

        return self._run(restore)

    def delete_group(self, group_id: str) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.delete_group`."""
        return self._run(lambda backend: _delete(backend.delete_group, group_id))

    def prepare(self, preparations: Sequence[Preparation]) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.prepare`."""

        def prepare(backend: Any) -> None:
            for preparation in preparations:
                getattr(backend, preparation.method)(*preparation.args, **preparation.kwargs)

        return self._run(prepare)


def _delete(delete: Callable[[str], object], key: str) -> None:
    # The file backend raises this where there is nothing to delete.
    with contextlib.suppress(FileNotFoundError):
        delete(key)


def _picklable(result: Any, view: Any) -> Any:
    """A result of Celery's own classes, which SQL backends pickle as it is."""
    if result is None:
        return None
    parent = _picklable(result.parent, view)
    if isinstance(result, GroupResult):
        members = [_picklable(member, view) for member in result.results]
        plain = GroupResult(result.id, members, parent=parent, app=view)
        for member in members:
            # The reader of the group uses the backend that it was read from.
            member.__dict__["backend"] = None
        return plain
    return AsyncResult(result.id, app=view, parent=parent)
