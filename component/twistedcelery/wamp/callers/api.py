"""``celery_api.*``: the procedures for callers, besides the tasks themselves.

A new procedure is a method of `CallerApi` and a line in `CallerApi.handlers`.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from celery import states

from twistedcelery.wamp.callers.backend_results import BackendResults

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery import TwistedCelery
    from twistedcelery.wamp.callers.known_tasks import KnownTasks
    from twistedcelery.wamp.callers.peers import PeerBridges
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.invocation import Caller, Handler, Invocation
    from twistedcelery.wamp.tasks.exposed import ExposedTask
    from twistedcelery.wamp.tasks.in_flight import InFlight

__all__ = ["CallerApi"]

#: Characters of a task id. AMQP cannot carry longer ones.
_MAX_TASK_ID = 255


class CallerApi:
    """The procedures for callers.

    A question about a task's id goes to the bridge that sent the task. About a task that no bridge sent,
    or that ended long ago, the result backend is asked.
    """

    def __init__(
        self,
        client: TwistedCelery,
        context: Context,
        tasks: Mapping[str, ExposedTask],
        in_flight: InFlight,
        known: KnownTasks,
        peers: PeerBridges,
        status: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Nothing is asked before a call comes.

        :param known: the tasks that this bridge sent
        :param peers: the bridges that sent others
        :param status: what the bridge adds to ``status``
        """
        self._client = client
        self._config = context.config
        self._clock = context.clock
        self._errors = context.errors
        self._tasks = tasks
        self._in_flight = in_flight
        self._known = known
        self._peers = peers
        self._backend = BackendResults(client, context)
        self._status = status
        #: How many calls of ``result`` have no answer yet, by who made them.
        self._waiting: Counter[Hashable] = Counter()

    def handlers(self) -> dict[str, Handler]:
        """The handlers of the procedures, by the last component of their URIs."""
        return {
            "tasks": self._handler("tasks", self.tasks),
            "submit": self._handler("submit", self.submit),
            "result": self._handler("result", self.result),
            "state": self._handler("state", self.state),
            "revoke": self._handler("revoke", self.revoke),
            "status": self._handler("status", self.status),
        }

    def tasks(self, _: Caller) -> list[dict[str, Any]]:
        """List the exposed tasks: ``name``, ``uri``, ``signature``, ``doc``."""
        return [task.describe() for task in self._tasks.values()]

    def submit(
        self, caller: Caller, name: Any, args: Any = None, kwargs: Any = None, options: Any = None
    ) -> Deferred[str]:
        """Send a task without waiting for its result.

        :return: fires with the task's id once the broker has the task
        """
        task = self._tasks.get(name) if isinstance(name, str) else None
        if task is None:
            raise self._errors.make("unknown_task", f"no task {name!r:.255} is exposed here")
        if not isinstance(args, list | tuple | None) or not isinstance(kwargs, Mapping | None):
            raise self._errors.make(
                "invalid_arguments", "submit takes a list as args and an object as kwargs"
            )
        followed = self._in_flight.send(task, args or (), kwargs or {}, options, caller)
        self._known.remember_end(followed)
        return followed.published().addCallback(lambda _: followed.task_id)

    def result(self, caller: Caller, task_id: Any) -> Deferred[Any]:
        """Wait for a task's result, within ``call_timeout``. A timeout does not end the task."""
        canonical = self._canonical(task_id)
        known = self._known.find(canonical, caller)
        if known is not None:
            return self._wait(known.result, canonical, caller)
        return self._wait(lambda: self._ask_others("result", canonical, caller), canonical, caller)

    def state(self, caller: Caller, task_id: Any) -> str | Deferred[str]:
        """Celery's name of a task's state. As in Celery, ``PENDING`` also means that the task is unknown."""
        canonical = self._canonical(task_id)
        known = self._known.find(canonical, caller)
        if known is not None:
            return known.state
        asked: Deferred[str] = self._ask_others("state", canonical, caller)
        return asked.addErrback(self._pending)

    def revoke(self, caller: Caller, task_id: Any) -> Deferred[None]:
        """Ask the workers to revoke a task.

        :return: fires once the broker has the request. The task's events report what becomes of it
        """
        canonical = self._canonical(task_id)
        if self._known.find(canonical, caller) is not None:
            return self._peers.revoke(canonical)
        asked: Deferred[None] = self._peers.ask("revoke", canonical, caller)
        if self._config.task_access == "all":
            # Where every caller may, it does not matter who sent it.
            asked.addErrback(self._revoke_unknown, canonical)
        return asked

    def status(self, _: Caller) -> dict[str, Any]:
        """The state of this bridge, as ``docs/bridge.md`` describes it."""
        return {
            "connected": self._client.connected,
            "broker_connected": self._client.broker_connected,
            "backend_connected": self._client.backend_connected,
            "in_flight": len(self._in_flight),
            "max_in_flight": self._config.max_in_flight,
            "scheduled": self._in_flight.scheduled,
            "waiting_for_worker": self._in_flight.waiting_for_worker,
            "waiting": self._waiting.total(),
            "tasks": len(self._tasks),
            "totals": dict(self._in_flight.totals),
            **self._status(),
        }

    def _handler(self, name: str, procedure: Callable[..., Any]) -> Handler:
        parameters = signature(procedure)

        def handle(invocation: Invocation) -> Any:
            try:
                bound = parameters.bind(invocation.caller, *invocation.args, **invocation.kwargs)
            except TypeError as error:
                raise self._errors.make("invalid_arguments", f"{name}: {error}") from error
            return procedure(*bound.args, **bound.kwargs)

        return handle

    def _ask_others(self, question: str, task_id: str, caller: Caller) -> Deferred[Any]:
        """Ask the bridge that sent a task, then the result backend, which knows no callers."""
        asked = self._peers.ask(question, task_id, caller)
        return asked.addErrback(self._ask_backend, question, task_id)

    def _ask_backend(self, failure: Failure, question: str, task_id: str) -> Deferred[Any] | Failure:
        unknown = self._errors.is_a(failure.value, "unknown_task")
        if not unknown or self._config.task_access == "caller" or not self._client.keeps_results:
            return failure
        return self._backend.state(task_id) if question == "state" else self._backend.result(task_id)

    def _revoke_unknown(self, failure: Failure, task_id: str) -> Deferred[None] | Failure:
        unknown = self._errors.is_a(failure.value, "unknown_task")
        return self._peers.revoke(task_id) if unknown else failure

    def _pending(self, failure: Failure) -> str:
        if not self._errors.is_a(failure.value, "unknown_task"):
            failure.raiseException()
        pending: str = states.PENDING
        return pending

    def _wait(self, start: Callable[[], Deferred[Any]], task_id: str, caller: Caller) -> Deferred[Any]:
        limit, own_limit = self._config.max_in_flight, self._config.max_in_flight_per_caller
        who = caller.identity
        if self._waiting.total() >= limit:
            refusal = f"{limit} calls wait for results already; try again later"
            raise self._errors.make("overloaded", refusal)
        if own_limit is not None and who is not None and self._waiting[who] >= own_limit:
            refusal = f"{own_limit} of your calls wait for results already; try again later"
            raise self._errors.make("overloaded", refusal)
        self._waiting[who] += 1

        def ended(result: Any) -> Any:
            self._waiting[who] -= 1
            if not self._waiting[who]:
                del self._waiting[who]
            return result

        waiting = start()
        timeout = self._config.call_timeout
        if timeout is not None:
            waiting.addTimeout(timeout, self._clock, lambda *_: self._too_late(timeout, task_id))
        return waiting.addBoth(ended)

    def _too_late(self, timeout: float, task_id: str) -> None:
        raise self._errors.make("timeout", f"no result within {timeout:g} s", task_id=task_id)

    def _canonical(self, task_id: Any) -> str:
        """The id as Celery writes it. Callers may leave out the dashes, as topics do."""
        if not isinstance(task_id, str) or not 0 < len(task_id) <= _MAX_TASK_ID:
            raise self._errors.make(
                "invalid_arguments", f"a task id is text of 1 to {_MAX_TASK_ID} characters"
            )
        try:
            return str(uuid.UUID(task_id))
        except ValueError:
            return task_id
