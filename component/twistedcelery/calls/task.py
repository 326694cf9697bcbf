"""A Celery task whose ``delay`` and ``apply_async`` return Deferreds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Signature, Task

    from twistedcelery.calls.call import TaskDeferred
    from twistedcelery.calls.dispatcher import Dispatcher

__all__ = ["TwistedTask"]


class TwistedTask:
    """A Celery task as `twistedcelery.TwistedCelery` calls it: ``delay`` and ``apply_async`` do not block.

    Signatures are Celery's own, to be composed with others and given to
    `twistedcelery.TwistedCelery.apply_async`.

    :ivar name: the task's name
    """

    def __init__(self, dispatcher: Dispatcher, task: Task, headers: Mapping[str, Any] | None) -> None:
        self._dispatcher = dispatcher
        self._task = task
        self._headers = headers
        self.name: str = task.name

    def delay(self, *args: Any, **kwargs: Any) -> TaskDeferred:
        """Call the task with these arguments."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> TaskDeferred:
        """As ``Task.apply_async``, with all its options.

        It never raises: arguments that the task does not take, for one, fail the Deferred with a
        `twistedcelery.InvalidCall`. A task class may override ``apply_async``. What that raises fails the
        Deferred with a `twistedcelery.CallRefused`; if it gives the result of an earlier call, the Deferred
        follows that one.
        """
        return self._dispatcher.apply_task(self._task, args, kwargs, options, self._headers)

    def signature(self, *args: Any, **kwargs: Any) -> Signature:
        """As ``Task.signature``."""
        return self._task.signature(*args, **kwargs)

    subtask = signature

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """As ``Task.s``."""
        return self._task.s(*args, **kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """As ``Task.si``."""
        return self._task.si(*args, **kwargs)

    def map(self, it: Iterable[Any]) -> Signature:
        """As ``Task.map``."""
        return self._task.map(it)

    def starmap(self, it: Iterable[Any]) -> Signature:
        """As ``Task.starmap``."""
        return self._task.starmap(it)

    def chunks(self, it: Iterable[Any], n: int) -> Signature:
        """As ``Task.chunks``."""
        return self._task.chunks(it, n)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"
