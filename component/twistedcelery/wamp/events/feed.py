"""Reads Celery's event stream.

Every bridge reads what it has to know of its own tasks. The leader reads everything, and also publishes
what belongs to no bridge: the workers, and the tasks that others sent.

A new leader opens a new stream, whose queue is declared after its election. Its predecessor's session
ended before that. So whatever the predecessor published was sent before the new queue existed, and
nothing is published twice. No clocks have to be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from twistedcelery.errors import TwistedCeleryError
from twistedcelery.wamp.event_kinds import EVENT_KINDS
from twistedcelery.wamp.events.celery_events import observe
from twistedcelery.wamp.events.foreign import ForeignTasks
from twistedcelery.wamp.events.worker_topics import WorkerTopics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.python.failure import Failure

    from twistedcelery import EventStream, TwistedCelery
    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.events.merge import EventMergers
    from twistedcelery.wamp.events.topics import EventPublisher

__all__ = ["EventFeed", "needs_leader"]

#: The events of own tasks that results do not report, or not always.
_FROM_STREAM = frozenset(kind.name for kind in EVENT_KINDS.values() if kind.from_stream)
#: Those of them that results wait for.
_OPENING = frozenset(kind.name for kind in EVENT_KINDS.values() if kind.opens_attempt)

_log = Logger()


def wants_foreign(config: Configuration) -> bool:
    """Whether events of tasks that no bridge sent are to be published."""
    return config.foreign_events and bool(config.events) and config.event_audience == "all"


def needs_leader(config: Configuration) -> bool:
    """Whether there is anything that one bridge has to do for all."""
    return bool(config.triggers) or wants_foreign(config) or config.worker_events or config.enable_events


class _Subscription:
    """One stream, and whether the bridge reads it as the leader."""

    def __init__(self, leads: bool) -> None:
        self.leads = leads
        self.stream: EventStream


class EventFeed:
    """Reads the event stream, as far as this bridge has to.

    :param mergers: take the events of the tasks that this bridge sent
    """

    def __init__(
        self, client: TwistedCelery, context: Context, events: EventPublisher, mergers: EventMergers
    ) -> None:
        self._client = client
        self._config = context.config
        self._ids = context.ids
        self._mergers = mergers
        self._foreign = ForeignTasks(context.config, context.clock, events)
        self._workers = WorkerTopics(context.clock, context.wall_clock, events, context.uris)
        self._subscription: _Subscription | None = None
        #: Workers that were asked to send events.
        self._enabled: set[str] = set()

    def start(self) -> None:
        """Read what concerns the bridge's own tasks. Does nothing the second time."""
        if self._subscription is None and self._needs_own:
            self._subscription = self._open(leads=False)

    def lead(self) -> None:
        """Read everything: the bridge has been elected."""
        subscription = self._open(leads=True)
        if subscription is None:
            return
        earlier, self._subscription = self._subscription, subscription
        self._enabled.clear()
        if self._config.worker_events:
            self._workers.start(lambda: subscription.stream.connected)
        if wants_foreign(self._config):
            self._foreign.keep_unnamed()
        # For a moment two streams report own tasks. That is better than none.
        subscription.stream.ready.addErrback(_not_ready).addCallback(lambda _: _close(earlier))

    def step_down(self) -> None:
        """Read, from now on, only what concerns the bridge's own tasks: it leads no longer."""
        self._foreign.forget()
        self._workers.stop()
        if self._subscription is not None:
            self._subscription.leads = False
            if not self._needs_own:
                _close(self._subscription)
                self._subscription = None

    @property
    def _needs_own(self) -> bool:
        return bool(self._config.events & _FROM_STREAM)

    def _open(self, leads: bool) -> _Subscription | None:
        subscription = _Subscription(leads)
        try:
            subscription.stream = self._client.events(
                {"*": lambda event: self._take(subscription, event)}, routing_key=self._routing_key(leads)
            )
        except TwistedCeleryError as error:
            _log.error("Celery's events cannot be read: {error}", error=error)
            return None
        subscription.stream.ready.addCallbacks(self._opened, _not_ready, callbackArgs=(subscription,))
        return subscription

    def _routing_key(self, leads: bool) -> str:
        of_workers = leads and (self._config.worker_events or self._config.enable_events)
        of_tasks = self._needs_own or (leads and wants_foreign(self._config))
        return "#" if of_workers and of_tasks else "worker.#" if of_workers else "task.#"

    def _take(self, subscription: _Subscription, event: Mapping[str, Any]) -> None:
        if event["type"].startswith("worker-"):
            if subscription.leads:
                self._take_worker(event)
            return
        observation = observe(event, self._config)
        if observation is None:
            return
        from_worker = observation.kind.from_worker
        if from_worker:
            self._mergers.workers_report(True)
        merger = self._mergers.find(observation.task_id)
        if merger is not None:
            # A client says that it sent a task; only the broker knows that it took it.
            if from_worker:
                merger.observe(observation)
        elif subscription.leads and wants_foreign(self._config) and not self._ids.made(observation.task_id):
            self._foreign.observe(observation)

    def _take_worker(self, event: Mapping[str, Any]) -> None:
        if self._config.worker_events:
            self._workers.take(event)
        hostname = event.get("hostname")
        if not self._config.enable_events or not isinstance(hostname, str):
            return
        if event["type"] != "worker-heartbeat":
            # A worker reports that it is online just before it listens for commands.
            self._enabled.discard(hostname)
        elif hostname not in self._enabled:
            self._enabled.add(hostname)
            self._enable(hostname)

    def _opened(self, _: None, subscription: _Subscription) -> None:
        if self._config.events & _OPENING:
            self._mergers.wait_for_stream(lambda: subscription.stream.connected)
        if subscription.leads and wants_foreign(self._config):
            _names_of_tasks(self._client).addCallback(self._named, subscription)

    def _named(self, names: Mapping[str, str], subscription: _Subscription) -> None:
        if subscription.leads:
            self._foreign.learn_names(names)

    def _enable(self, hostname: str) -> None:
        def failed(failure: Failure) -> None:
            self._enabled.discard(hostname)
            _log.warn(
                "the worker {name} could not be asked for events: {error}",
                name=hostname,
                error=failure.value,
            )

        self._client.control.enable_events(destination=[hostname]).addErrback(failed)


def _names_of_tasks(client: TwistedCelery) -> Deferred[dict[str, str]]:
    """The names, by id, of the tasks that workers have received and not ended. Never fails."""
    inspect = client.control.inspect()
    asking = DeferredList([inspect.active(), inspect.reserved(), inspect.scheduled()], consumeErrors=True)

    def collect(answers: list[tuple[bool, Any]]) -> dict[str, str]:
        names = {}
        for succeeded, workers in answers:
            for tasks in (workers or {}).values() if succeeded else ():
                for task in tasks:
                    # Scheduled tasks are wrapped, with their time.
                    request = task.get("request", task)
                    names[request["id"]] = request["name"]
        return names

    def failed(failure: Failure) -> dict[str, str]:
        _log.warn("the workers' replies about their tasks cannot be read: {error}", error=failure.value)
        return {}

    return asking.addCallback(collect).addErrback(failed)


def _not_ready(failure: Failure) -> None:
    # The broker refused its queue, which the stream has logged, or the client was disconnected.
    _log.debug("Celery's events will not be read: {error}", error=failure.value)


def _close(subscription: _Subscription | None) -> None:
    if subscription is not None:
        subscription.stream.close()
