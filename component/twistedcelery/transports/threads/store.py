"""`ThreadedStore`: Celery's blocking code as a `twistedcelery.transports.interface.ResultStore`.

It has a thread and a result backend of its own, which start with the first question: what it does
may take long, and must not hold up the states that the waiting thread brings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from celery.result import AsyncResult, GroupResult, result_from_tuple
from kombu.exceptions import ContentDisallowed, SerializationError
from kombu.utils.uuid import uuid
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from twistedcelery.encoding.app_view import view_of
from twistedcelery.encoding.message import Preparation
from twistedcelery.errors import Disconnected, ResultBackendUnavailable, TwistedCeleryError
from twistedcelery.transports.threads.backend import OwnBackend
from twistedcelery.transports.threads.failures import Redactor, reply_error
from twistedcelery.transports.threads.stored import check_meta
from twistedcelery.transports.threads.thread import DedicatedThread

__all__ = ["ThreadedStore"]

Work = Callable[[Any], Any]


class ThreadedStore:
    """Asks one result backend, one question after another, in one thread.

    :param app: the Celery application, whose ``result_backend`` is used
    :param give_up_after: seconds to wait for an answer
    """

    def __init__(self, app: Any, reactor: Any, give_up_after: float = 30.0) -> None:
        self._reactor = reactor
        self._give_up_after = give_up_after
        self._redactor = Redactor(app)
        # Its results do no I/O of their own: what is read here becomes results of the client's.
        self._view = view_of(app)
        self._backend: Any = None
        self._open: dict[Deferred[Any], None] = {}
        self._closed = False
        self._thread = DedicatedThread(reactor, "twistedcelery-store", finish=self._release)

    def task_meta(self, task_id: str) -> Deferred[Mapping[str, Any]]:
        """As `twistedcelery.transports.interface.ResultStore.task_meta`."""
        return self._ask(lambda backend: check_meta(backend.get_task_meta(task_id, cache=False)))

    def exists(self, task_id: str) -> Deferred[bool]:
        """As `twistedcelery.transports.interface.ResultStore.exists`."""
        return self._ask(lambda backend: self._view.AsyncResult(task_id, backend=backend).exists())

    def forget(self, task_id: str) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.forget`."""

        def forget(backend: Any) -> None:
            # The file backend's way to say that there is nothing to forget.
            with contextlib.suppress(FileNotFoundError):
                backend.forget(task_id)

        return self._ask(forget)

    def save_group(self, group_id: str, group: tuple[Any, ...]) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.save_group`."""

        def save(backend: Any) -> None:
            backend.save_group(group_id, _picklable(result_from_tuple(group, self._view), self._view))

        return self._ask(save)

    def restore_group(self, group_id: str) -> Deferred[tuple[Any, ...] | None]:
        """As `twistedcelery.transports.interface.ResultStore.restore_group`."""

        def restore(backend: Any) -> tuple[Any, ...] | None:
            group = backend.restore_group(group_id, cache=False)
            return None if group is None else group.as_tuple()

        return self._ask(restore)

    def delete_group(self, group_id: str) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.delete_group`."""

        def delete(backend: Any) -> None:
            with contextlib.suppress(FileNotFoundError):  # as in `forget`
                backend.delete_group(group_id)

        return self._ask(delete)

    def prepare(self, preparations: Sequence[Preparation]) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.prepare`."""

        def prepare(backend: Any) -> None:
            for preparation in preparations:
                getattr(backend, preparation.method)(*preparation.args, **preparation.kwargs)

        return self._ask(prepare)

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.close`.

        A thread that hangs in a driver is left to itself, as that of
        `twistedcelery.transports.threads.results.ThreadedResults`.
        """
        self._closed = True
        stopped = self._thread.stop()
        for answer in list(self._open):
            answer.errback(Disconnected("the client was disconnected before the result backend answered"))
        return stopped

    def _ask(self, work: Work) -> Deferred[Any]:
        if self._closed:
            return fail(Disconnected("the client was disconnected"))
        answer: Deferred[Any] = Deferred(self._gave_up)
        self._open[answer] = None
        answer.addBoth(self._answered, answer)
        answer.addTimeout(self._give_up_after, self._reactor, lambda failure, _: failure)
        self._thread.submit(partial(self._work, work, answer))
        return answer

    def _answered(self, outcome: Any, answer: Deferred[Any]) -> Any:
        del self._open[answer]
        return outcome

    def _gave_up(self, answer: Deferred[Any]) -> None:
        answer.errback(ResultBackendUnavailable("the result backend did not answer in the time allowed"))

    def _settle(self, answer: Deferred[Any], outcome: Any) -> None:
        if answer.called:
            # Nobody waits any more.
            return
        if isinstance(outcome, Failure):
            answer.errback(outcome)
        else:
            answer.callback(outcome)

    # In the thread

    def _work(self, work: Work, answer: Deferred[Any]) -> None:
        outcome: Any
        try:
            if self._backend is None:
                self._backend = OwnBackend(self._view, uuid()).make()
            outcome = work(self._backend)
        except (TwistedCeleryError, NotImplementedError) as error:
            outcome = Failure(error)
        except (ContentDisallowed, SerializationError, ValueError, LookupError, TypeError) as error:
            outcome = Failure(reply_error(error, self._redactor))
        except Exception as error:
            # Drivers choose what they raise when they have no connection.
            self._drop()
            unavailable = ResultBackendUnavailable(
                f"the result backend cannot be reached: {self._redactor.text(error)}"
            )
            unavailable.__cause__ = self._redactor.cause(error)
            outcome = Failure(unavailable)
        self._thread.post(self._settle, answer, outcome)

    def _release(self) -> None:
        if self._backend is not None:
            self._drop()

    def _drop(self) -> None:
        backend, self._backend = self._backend, None
        if backend is None:
            return
        # It failed already, or nobody is left for whom that would matter.
        with contextlib.suppress(Exception):
            backend.process_cleanup()
            # Backends have no common way to close what they opened.
            client = vars(backend).get("client")
            for opened in (client, getattr(client, "connection_pool", None)):
                close = getattr(opened, "disconnect", None) or getattr(opened, "close", None)
                if callable(close):
                    close()


def _picklable(result: Any, view: Any) -> Any:
    """A result of Celery's own classes, which SQL backends pickle as it is."""
    if result is None:
        return None
    parent = _picklable(result.parent, view)
    if isinstance(result, GroupResult):
        members = [_picklable(member, view) for member in result.results]
        plain = GroupResult(result.id, members, parent=parent, app=view)
        for member in members:
            # Whoever reads it uses the backend that it was read from.
            member.__dict__["backend"] = None
        return plain
    return AsyncResult(result.id, app=view, parent=parent)
