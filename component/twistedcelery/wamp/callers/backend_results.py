"""Asks the result backend about tasks, whoever sent them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from celery import states
from twisted.internet.defer import CancelledError

from twistedcelery.wamp.items import TooManyItems, check_items

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery import TwistedCelery
    from twistedcelery.wamp.context import Context

__all__ = ["BackendResults"]

_FAILURES = {*states.PROPAGATE_STATES, states.IGNORED, states.REJECTED}


class BackendResults:
    """The results in a backend that keeps them."""

    def __init__(self, client: TwistedCelery, context: Context) -> None:
        self._client = client
        self._errors = context.errors
        self._max_items = context.config.max_items

    def state(self, task_id: str) -> Deferred[str]:
        """Fires with Celery's name of the state: ``PENDING`` also for a task that does not exist."""
        return self._client.result(task_id).state.addErrback(self._not_answered, task_id)

    def result(self, task_id: str) -> Deferred[Any]:
        """Wait for a task's value. For a task that does not exist, it never fires."""
        result = self._client.result(task_id)

        def succeeded(value: Any) -> Any:
            try:
                check_items(self._max_items, result=value)
            except TooManyItems as error:
                raise self._errors.unencodable(f"it has {error}", task_id) from None
            return value

        def failed(failure: Failure) -> NoReturn:
            meta = result.meta
            if meta is None or meta["status"] not in _FAILURES:
                self._not_answered(failure, task_id)
            elif meta["status"] == states.REVOKED:
                raise self._errors.revoked(task_id, failure.value)
            else:
                name = meta.get("name") or _named_in(failure)
                raise self._errors.task_failed(failure, name, task_id, meta.get("traceback"))

        return result.get().addCallbacks(succeeded, failed)

    def _not_answered(self, failure: Failure, task_id: str) -> NoReturn:
        if failure.check(CancelledError):
            failure.raiseException()
        raise self._errors.not_delivered(failure, task_id)


def _named_in(failure: Failure) -> str:
    """The name in the error of a worker that does not know the task; of other errors, any text."""
    args = getattr(failure.value, "args", ())
    return args[0] if args and isinstance(args[0], str) else ""
