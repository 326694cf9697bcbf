"""``celery_api.*``: the procedures for callers that are not tasks themselves."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from celery import states

from twistedcelery.wamp.followed import FollowedTask
from twistedcelery.wamp.submitted import EndedTask, EndedTasks
from twistedcelery.wamp.values import Unencodable, normalise_and_measure

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery import TwistedCelery
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.exposed import ExposedTask
    from twistedcelery.wamp.in_flight import InFlight
    from twistedcelery.wamp.invocation import Caller, Handler, Invocation

__all__ = ["CallerApi"]

#: Bytes that an error takes, about, while it is remembered.
_ERROR_SIZE = 1024

#: Longer ids are nobody's: AMQP itself carries no longer ones.
_MAX_TASK_ID = 255


class CallerApi:
    """What callers may ask of a bridge. Each method but the last is one procedure.

    ``result`` and ``state`` know the tasks that this bridge submitted, or is waiting for.
    """

    def __init__(
        self,
        client: TwistedCelery,
        context: Context,
        tasks: Mapping[str, ExposedTask],
        in_flight: InFlight,
    ) -> None:
        self._client = client
        self._context = context
        self._tasks = tasks
        self._in_flight = in_flight
        self._ended = EndedTasks()
        #: Calls of ``result`` that have no answer yet.
        self._waiting = 0

    def tasks(self, _: Caller) -> list[dict[str, Any]]:
        """Each exposed task: ``name``, ``uri``, ``signature``, ``doc``."""
        return [task.describe() for task in self._tasks.values()]

    def submit(
        self, caller: Caller, name: Any, args: Any = None, kwargs: Any = None, options: Any = None
    ) -> Deferred[str]:
        """Send a task without waiting for its result.

        :return: fires with the task's id once the broker has the task
        """
        task = self._tasks.get(name) if isinstance(name, str) else None
        if task is None:
            raise self._context.errors.make("unknown_task", f"no task {name!r:.255} is exposed here")
        if not isinstance(args, list | tuple | None) or not isinstance(kwargs, Mapping | None):
            raise self._context.errors.make(
                "invalid_arguments", "submit takes a list as args and an object as kwargs"
            )
        followed = self._in_flight.send(task, args or (), kwargs or {}, options, caller)
        self._remember_end(followed)
        return followed.published().addCallback(lambda _: followed.task_id)

    def result(self, caller: Caller, task_id: Any) -> Any:
        """Wait for a task's result."""
        canonical = self._canonical(task_id)
        known = self._find(canonical, caller)
        if known is None:
            raise self._unknown(canonical)
        if isinstance(known, FollowedTask):
            return self._wait(known)
        if isinstance(known.result, ApplicationError):
            raise known.result
        return known.result

    def state(self, caller: Caller, task_id: Any) -> str:
        """Celery's name of the task's state; ``PENDING``, as in Celery, also for what is not known."""
        known = self._find(self._canonical(task_id), caller)
        return known.state if known is not None else states.PENDING

    def revoke(self, caller: Caller, task_id: Any) -> Deferred[None]:
        """Ask the workers to revoke a task.

        :return: fires once the broker has the request; what becomes of the task, its events tell
        """
        canonical = self._canonical(task_id)
        # Where everybody may, another bridge's tasks can be revoked here as well.
        if self._context.config.task_access == "caller" and self._find(canonical, caller) is None:
            raise self._unknown(canonical)

        def failed(failure: Failure) -> None:
            raise self._context.errors.not_delivered(failure, canonical)

        return self._client.revoke(canonical, terminate=self._context.config.terminate).addErrback(failed)

    def status(self, _: Caller) -> dict[str, Any]:
        """``connected`` to the broker, ``in_flight``, ``max_in_flight`` and ``totals`` since the start."""
        return {
            "connected": self._client.connected,
            "in_flight": len(self._in_flight),
            "max_in_flight": self._context.config.max_in_flight,
            "totals": dict(self._in_flight.totals),
        }

    def handlers(self) -> dict[str, Handler]:
        """What answers the calls, by the name of the procedure."""
        procedures = (self.tasks, self.submit, self.result, self.state, self.revoke, self.status)
        return {procedure.__name__: self._handler(procedure) for procedure in procedures}

    def _handler(self, procedure: Callable[..., Any]) -> Handler:
        parameters = signature(procedure)

        def handle(invocation: Invocation) -> Any:
            try:
                bound = parameters.bind(invocation.caller, *invocation.args, **invocation.kwargs)
            except TypeError as error:
                raise self._context.errors.make(
                    "invalid_arguments", f"{procedure.__name__}: {error}"
                ) from error
            return procedure(*bound.args, **bound.kwargs)

        return handle

    def _find(self, task_id: str, caller: Caller) -> FollowedTask | EndedTask | None:
        """A task, as far as it is known here and the caller may know of it."""
        known = self._in_flight.find(task_id) or self._ended.find(task_id)
        if known is None or self._context.config.task_access == "all" or known.caller.is_same(caller):
            return known
        return None

    def _unknown(self, task_id: str) -> ApplicationError:
        # The same words for a task that does not exist and for one of somebody else.
        return self._context.errors.make("unknown_task", f"this bridge does not know the task {task_id}")

    def _wait(self, followed: FollowedTask) -> Deferred[Any]:
        limit = self._context.config.max_in_flight
        if self._waiting >= limit:
            raise self._context.errors.make(
                "overloaded", f"{limit} calls wait for results already; try again later"
            )
        self._waiting += 1

        def ended(result: Any) -> Any:
            self._waiting -= 1
            return result

        return followed.result().addBoth(ended)

    def _canonical(self, task_id: Any) -> str:
        """The id as Celery writes it. Callers may leave out the dashes, as the topics do."""
        if not isinstance(task_id, str) or not 0 < len(task_id) <= _MAX_TASK_ID:
            raise self._context.errors.make(
                "invalid_arguments", f"a task id is text of 1 to {_MAX_TASK_ID} characters"
            )
        try:
            return str(uuid.UUID(task_id))
        except ValueError:
            return task_id

    def _remember_end(self, followed: FollowedTask) -> None:
        def succeeded(value: Any) -> None:
            try:
                normal, size = normalise_and_measure(value)
            except Unencodable as unencodable:
                remember(self._context.errors.unencodable(unencodable, followed.task_id), _ERROR_SIZE)
            else:
                remember(normal, size)

        def failed(failure: Failure) -> None:
            remember(failure.value, _ERROR_SIZE)

        def remember(result: Any, size: int) -> None:
            self._ended.add(followed.task_id, EndedTask(followed.caller, followed.state, result, size))

        followed.result().addCallbacks(succeeded, failed)
