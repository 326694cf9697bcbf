"""The methods of a client for what Celery does with canvases, tasks and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twistedcelery.canvas import CanvasCalls
from twistedcelery.task import TwistedTask

if TYPE_CHECKING:
    from celery import Task

    from twistedcelery.access import ResultAccess
    from twistedcelery.call import TaskDeferred
    from twistedcelery.pacing import Pacer
    from twistedcelery.results import AnyResult, GroupResult, TaskResult
    from twistedcelery.sending import CanvasWires

__all__ = ["CanvasMethods"]


class CanvasMethods:
    """A part of `twistedcelery.TwistedCelery`.

    :param access: answers what results are asked
    :param pacer: spreads the encoding of many calls over reactor turns
    :param connect: gives the wires; it may raise a `twistedcelery.TwistedCeleryError`
    :param publish_timeout: as of `twistedcelery.TwistedCelery`
    :param terminate: as of `twistedcelery.TwistedCelery`
    """

    def __init__(
        self,
        access: ResultAccess,
        pacer: Pacer,
        connect: Callable[[], CanvasWires],
        publish_timeout: float,
        terminate: bool,
    ) -> None:
        self._access = access
        self._canvases = CanvasCalls(
            pacer, access, connect, publish_timeout=publish_timeout, terminate=terminate
        )

    def apply_async(
        self,
        signature: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TaskDeferred:
        """Call a signature, or any canvas: chain, group, chord, map, starmap, chunks, nested at will.

        It never raises: what is wrong with the call fails the Deferred.

        :param signature: a signature of any application, or the dictionary it is serialised to. It
            stays as it is; its tasks are sent by this client's application.
        :param args: positional arguments, as ``signature.apply_async`` takes them
        :param kwargs: keyword arguments
        :param options: every option of ``signature.apply_async`` but ``connection`` and ``producer``
        :return: fires with what ``get()`` of Celery's result returns, or fails with what it raises.
            For a group it is a `GroupDeferred`.
        """
        return self._canvases.apply_signature(signature, args, kwargs, options)

    def task(self, task: Task) -> TwistedTask:
        """A Celery task whose ``delay`` and ``apply_async`` return Deferreds.

        :param task: a task of this client's application, or of another
        """
        return TwistedTask(self._canvases, task)

    def result(self, task_id: str) -> TaskResult:
        """What is known of a task: Celery's ``AsyncResult``, with Deferreds."""
        return self._access.task(task_id)

    def group_result(self, group_id: str, results: Sequence[AnyResult] = ()) -> GroupResult:
        """The results of a group: Celery's ``GroupResult``, with Deferreds.

        :param results: its members; without them, ``restore()`` reads those that were saved
        """
        return self._access.group(group_id, results)
