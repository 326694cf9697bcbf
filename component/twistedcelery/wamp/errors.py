"""Makes the errors that WAMP callers see: `ApplicationError` with a stable URI.

===========================  =========================================================================
``celery.error.``            means
===========================  =========================================================================
``task_failed``              the task raised; ``exc_type``, ``exc_module``, ``exc_message``
``revoked``                  the task was revoked, by the caller or another client, or has expired;
                             from a worker with ``exc_type``, ``exc_module``, ``exc_message``
``timeout``                  the result did not come within ``call_timeout``
``unknown_task``             no such task is exposed, or no worker knows it
``invalid_arguments``        the arguments do not fit the task, or cannot be sent
``not_allowed``              an option of ``celery_options`` that the configuration does not allow; or the
                             task's own ``apply_async`` refused: ``exc_type``, ``exc_module``, ``exc_message``
``broker_unavailable``       the task did not reach a queue, or its result cannot be had
``overloaded``               too many calls are in flight; try again later
``worker_lost``              the worker's process died while it ran the task
``result_unencodable``       the task succeeded, and its result cannot be sent
``result_lost``              no worker and no queue has the task any more
===========================  =========================================================================

Every error has one text for people as its only positional argument, and the keyword ``task_id`` once
there is one. It never contains the bridge's own tracebacks, paths or settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from celery.exceptions import NotRegistered, WorkerLostError

from twistedcelery import errors
from twistedcelery.wamp.values import Unencodable, describe_exception, plain_text

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery.wamp.uris import Uris

__all__ = ["CallErrors"]

#: The library's errors, with the last component of the URI. The first match decides.
_LIBRARY_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (errors.CallCancelled, "revoked"),
    (errors.CallRefused, "not_allowed"),
    (errors.EncodeError, "invalid_arguments"),
    (errors.InvalidCall, "invalid_arguments"),
    (errors.Overloaded, "overloaded"),
    (errors.ReplyNotAccepted, "result_unencodable"),
    (errors.ReplyUndecodable, "result_unencodable"),
    (errors.ReplyTooLarge, "result_unencodable"),
    (errors.ResultLost, "result_lost"),
    # The broker, its queues, the result backend.
    (errors.TwistedCeleryError, "broker_unavailable"),
)


class _CallError(ApplicationError):
    """An error that keeps its keywords.

    Autobahn logs an error before it sends it, and ``ApplicationError.__str__`` replaces the keyword
    ``traceback`` by three dots, permanently.
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
        """Make an error of the module's table.

        :param name: the last component of its URI
        """
        return _CallError(self._uris.error(name), plain_text(message), **details)

    def is_a(self, error: object, name: str) -> bool:
        """Whether it is the error of that name in the module's table."""
        return isinstance(error, ApplicationError) and bool(error.error == self._uris.error(name))

    def is_one(self, error: ApplicationError) -> bool:
        """Whether a bridge of the same prefix made it."""
        return bool(error.error.startswith(self._uris.error("")))

    def again(self, error: ApplicationError) -> ApplicationError:
        """Renew an error that another bridge made."""
        message = str(error.args[0]) if error.args else ""
        return _CallError(error.error, plain_text(message), **error.kwargs)

    def task_failed(
        self, failure: Failure, task: str, task_id: str, traceback: str | None
    ) -> ApplicationError:
        """Make the error of a task that a worker reported as failed.

        :param failure: what ``AsyncResult.get()`` would have raised
        :param traceback: the remote one
        """
        error: Any = failure.value
        described = describe_exception(error)
        details: dict[str, Any] = {**described, "task_id": task_id}
        if self._tracebacks and traceback:
            details["traceback"] = plain_text(traceback)
        if isinstance(error, NotRegistered) and error.args[:1] == (task,):
            # The worker does not have the task. With another name, the task itself raised the error.
            return self.make("unknown_task", f"no worker knows the task {task}", **details)
        if isinstance(error, WorkerLostError):
            return self.make("worker_lost", "the worker died while it ran the task", **details)
        return self.make("task_failed", f"{described['exc_type']}: {described['exc_message']}", **details)

    def revoked(self, task_id: str, error: BaseException | None = None) -> ApplicationError:
        """Make the error of a task that was revoked.

        :param error: what the worker stored with that state; ``None`` where the bridge did not wait for it
        """
        if error is None:
            return self.make("revoked", "the task was revoked", task_id=task_id)
        described = describe_exception(error)
        text = f"the task was revoked: {described['exc_message']}"
        return self.make("revoked", text, **described, task_id=task_id)

    def not_delivered(self, failure: Failure, task_id: str | None = None) -> ApplicationError:
        """Make the error of a call that the library could not complete.

        :param failure: the library's own
        """
        error = failure.value
        details: dict[str, Any] = {} if task_id is None else {"task_id": task_id}
        if isinstance(error, errors.CallRefused):
            details |= describe_exception(error.__cause__ or error)
        for kind, name in _LIBRARY_ERRORS:
            if isinstance(error, kind):
                return self.make(name, str(error) or _first_line(kind), **details)
        # Not one of the library's errors, so a defect: its text may contain anything.
        return self.make("broker_unavailable", f"the call failed: {type(error).__name__}", **details)

    def unencodable(self, reason: Unencodable | str, task_id: str | None = None) -> ApplicationError:
        """Make the error of a result that WAMP cannot carry, or that the configuration does not allow."""
        details = {} if task_id is None else {"task_id": task_id}
        return self.make("result_unencodable", f"the result cannot be sent: {reason}", **details)


def _first_line(kind: type[Exception]) -> str:
    return (kind.__doc__ or kind.__name__).partition("\n")[0]
