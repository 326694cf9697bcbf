"""What a WAMP caller sees when a call does not end well: an `ApplicationError` with a stable URI.

===========================  =========================================================================
``celery.error.``            means
===========================  =========================================================================
``task_failed``              the task raised; ``exc_type``, ``exc_module``, ``exc_message``
``revoked``                  the task was revoked, by the caller or by somebody else
``timeout``                  the result did not come within ``call_timeout``
``unknown_task``             no such task is exposed, or no worker knows it
``invalid_arguments``        the arguments do not fit the task, or cannot be serialised
``not_allowed``              an option of ``celery_options`` that the configuration does not allow
``broker_unavailable``       the task did not reach a queue, or its result cannot be had any more
``overloaded``               too many calls are in flight; try again later
``worker_lost``              the worker's process died while it ran the task
``result_unencodable``       the task ended well, and WAMP cannot carry what it returned
===========================  =========================================================================

Every error has one text for people as its only positional argument, and ``task_id`` as keyword once
there is one. Nothing of the bridge's own tracebacks, paths or settings is in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from celery.exceptions import NotRegistered, WorkerLostError

from twistedcelery import errors
from twistedcelery.wamp.descriptions import describe_exception, plain_text
from twistedcelery.wamp.values import Unencodable

if TYPE_CHECKING:
    from twistedcelery.wamp.uris import Uris

if TYPE_CHECKING:
    from twisted.python.failure import Failure

__all__ = ["CallErrors"]

#: Errors of the library to the last part of the URI; the first that fits decides.
_LIBRARY_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (errors.CallCancelled, "revoked"),
    (errors.EncodeError, "invalid_arguments"),
    (errors.InvalidCall, "invalid_arguments"),
    (errors.Overloaded, "overloaded"),
    (errors.ReplyNotAccepted, "result_unencodable"),
    (errors.ReplyUndecodable, "result_unencodable"),
    (errors.ReplyTooLarge, "result_unencodable"),
    # Everything else between here and the result: the broker, its queues, the result backend.
    (errors.TwistedCeleryError, "broker_unavailable"),
)


class _CallError(ApplicationError):
    """An error that keeps its keywords.

    Autobahn makes text of an error before it sends it, and its own ``__str__`` replaces a
    ``traceback`` among the keywords by three dots, for good.
    """

    def __init__(self, uri: str, message: str, **details: Any) -> None:
        super().__init__(uri, message, **details)  # type: ignore[no-untyped-call]  # it has no types

    def __str__(self) -> str:
        return f"{self.error}: {self.args[0]}"


class CallErrors:
    """Makes the errors of one bridge.

    :param tracebacks: whether a failed task's remote traceback travels, as keyword ``traceback``
    """

    def __init__(self, uris: Uris, tracebacks: bool) -> None:
        self._uris = uris
        self._tracebacks = tracebacks

    def make(self, name: str, message: str, **details: Any) -> ApplicationError:
        """One of the errors in the module's table, by the last part of its URI."""
        return _CallError(self._uris.error(name), plain_text(message), **details)

    def is_a(self, error: object, name: str) -> bool:
        """Whether it is the error of that name."""
        return isinstance(error, ApplicationError) and bool(error.error == self._uris.error(name))

    def is_one(self, error: ApplicationError) -> bool:
        """Whether a bridge of the same prefix has made it."""
        return bool(error.error.startswith(self._uris.error("")))

    def again(self, error: ApplicationError) -> ApplicationError:
        """The same error, as another bridge has made it."""
        message = str(error.args[0]) if error.args else ""
        return _CallError(error.error, plain_text(message), **error.kwargs)

    def task_failed(
        self, failure: Failure, task: str, task_id: str, traceback: str | None
    ) -> ApplicationError:
        """A worker reported that the task failed.

        :param failure: what ``AsyncResult.get()`` would have raised
        :param traceback: the remote one
        """
        error: Any = failure.value
        described = describe_exception(error)
        details: dict[str, Any] = {**described, "task_id": task_id}
        if self._tracebacks and traceback:
            details["traceback"] = plain_text(traceback)
        if isinstance(error, NotRegistered) and error.args[:1] == (task,):
            # The worker's own words for a message whose task it does not have. With another name
            # in it, it is the task itself that looked for one.
            return self.make("unknown_task", f"no worker knows the task {task}", **details)
        if isinstance(error, WorkerLostError):
            return self.make("worker_lost", "the worker died while it ran the task", **details)
        return self.make("task_failed", f"{described['exc_type']}: {described['exc_message']}", **details)

    def not_delivered(self, failure: Failure, task_id: str | None = None) -> ApplicationError:
        """The library could not bring the call to its end; no worker is to blame.

        :param failure: one of the library's
        """
        error = failure.value
        details = {} if task_id is None else {"task_id": task_id}
        for kind, name in _LIBRARY_ERRORS:
            if isinstance(error, kind):
                return self.make(name, str(error) or _first_line(kind), **details)
        # Not of the library's tree, so a defect somewhere: its text may hold anything.
        return self.make("broker_unavailable", f"the call failed: {type(error).__name__}", **details)

    def unencodable(self, error: Unencodable, task_id: str) -> ApplicationError:
        """The task ended well; what it returned cannot be sent."""
        return self.make("result_unencodable", f"the result cannot be sent: {error}", task_id=task_id)


def _first_line(kind: type[Exception]) -> str:
    return (kind.__doc__ or kind.__name__).partition("\n")[0]
