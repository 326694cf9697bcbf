"""Wires the parts of a bridge, and keeps what outlives a WAMP session.

Autobahn makes a new session at each reconnect. The connection to the broker, the tasks in flight and
the statistics stay. Each session finds its bridge by the realm and the configuration.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from twisted.internet import defer
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorCore
from twisted.logger import Logger

from twistedcelery import TwistedCelery
from twistedcelery._logging import RepeatedWarnings
from twistedcelery.errors import CallCancelled, Disconnected, TwistedCeleryError
from twistedcelery.wamp.callers.api import CallerApi
from twistedcelery.wamp.callers.known_tasks import KnownTasks
from twistedcelery.wamp.callers.peers import PeerBridges
from twistedcelery.wamp.config import Configuration
from twistedcelery.wamp.context import Context
from twistedcelery.wamp.errors import CallErrors
from twistedcelery.wamp.events.feed import EventFeed, needs_leader
from twistedcelery.wamp.events.merge import EventMergers
from twistedcelery.wamp.events.topics import EventPublisher
from twistedcelery.wamp.operators.api import OperatorApi
from twistedcelery.wamp.router.bridge_topics import describe_process
from twistedcelery.wamp.router.leadership import Leadership
from twistedcelery.wamp.router.registrations import Procedures
from twistedcelery.wamp.task_ids import TaskIds
from twistedcelery.wamp.tasks.calls import TaskCalls
from twistedcelery.wamp.tasks.discovery import Discovery
from twistedcelery.wamp.tasks.exposed import ExposedTask, ExposedTasks, load_application
from twistedcelery.wamp.tasks.in_flight import InFlight
from twistedcelery.wamp.tasks.triggers import Triggers, check_triggers
from twistedcelery.wamp.uris import Uris

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from autobahn.wamp.exception import ApplicationError
    from celery import Celery
    from twisted.python.failure import Failure

    from twistedcelery.wamp.interfaces import WampSession
    from twistedcelery.wamp.invocation import Caller

__all__ = ["Bridge", "bridge_for", "check"]

#: Seconds for the client to disconnect from the broker when the process ends.
STOP_TIMEOUT = 5.0

#: Seconds for workers to answer when they are counted.
PING_TIMEOUT = 1.0

_log = Logger()


class Bridge:
    """One Celery application on one realm.

    :param client: makes the calls; the bridge disconnects it when it stops
    :param wall_clock: seconds since the epoch, for the events
    :param realm: the sessions' realm
    :raise ConfigurationError: if a trigger does not fit the application
    :ivar procedures: the handler of each procedure, by its URI
    :ivar router_warnings: logs why the router refuses sessions
    """

    def __init__(
        self,
        config: Configuration,
        app: Celery,
        reactor: Any,
        client: TwistedCelery,
        wall_clock: Callable[[], float] = time.time,
        *,
        realm: str,
    ) -> None:
        self.config = config
        self.uris = Uris(config.prefix)
        self.errors = CallErrors(self.uris, config.tracebacks)
        self._submit_uri = self.uris.api("submit")
        self.router_warnings = RepeatedWarnings(_log, reactor.seconds)
        self._name = app.main or config.app
        self._reactor = reactor
        self._client = client
        self._session: WampSession | None = None
        self._events = EventPublisher(config, self.uris, reactor, wall_clock)
        ids = TaskIds(realm, config.prefix)
        context = Context(config, reactor, wall_clock, app.timezone, self.uris, self.errors, ids)
        mergers = EventMergers(reactor, wall_clock, self._events.publish)
        self._in_flight = InFlight(client, context, mergers)
        self._tasks = ExposedTasks(app, config, self.uris, self._task_changed)
        self._calls = TaskCalls(context, self._tasks, self._in_flight, self._is_gone)
        self._discovery = None
        if config.discover != "app":
            self._discovery = Discovery(client, reactor, self._tasks.announced)
        self._triggers = Triggers(context, self._tasks, self._in_flight)
        self._feed = EventFeed(client, context, self._events, mergers)
        self._leadership = Leadership(
            self.uris.admin("leader"),
            lambda _: describe_process(),
            reactor,
            self._elected,
            self._feed.step_down,
        )
        known = KnownTasks(context, self._in_flight)
        peers = PeerBridges(client, context, known, lambda: self._session)
        api = CallerApi(client, context, self._tasks, self._in_flight, known, peers, self._describe)
        admin = OperatorApi(app, client, context)
        self.procedures = Procedures(
            {
                **{self.uris.api(name): handler for name, handler in api.handlers().items()},
                **{self.uris.admin(name): handler for name, handler in admin.handlers().items()},
                peers.uri: peers.answer,
            }
        )
        for task in self._tasks.values():
            self._task_changed(task, True)

    def attach(self, session: WampSession) -> None:
        """Use a session that has joined the realm and registered the procedures."""
        self._session = session
        self._events.attach(session)
        self._feed.start()
        if needs_leader(self.config):
            self._leadership.attach(session)
        if self._discovery is not None:
            self._discovery.start()

    def announce(self, registered: Container[object], joined_as: str) -> None:
        """Log what a session serves, once the online workers are counted.

        :param registered: URIs of procedures
        :param joined_as: who the router takes the session for
        """
        self.router_warnings.reset()
        tasks = sum(task.uri in registered for task in self._tasks.values())

        def log(workers: str) -> None:
            if self._session is None:
                # It has left meanwhile.
                return
            _log.info(
                "the bridge serves {tasks} of {app!r} (prefix {prefix}) as {joined_as}; {workers}",
                tasks=f"{tasks} task{'' if tasks == 1 else 's'}",
                app=self._name,
                prefix=self.config.prefix,
                joined_as=joined_as,
                workers=workers,
            )

        self._count_workers().addCallback(log)

    def detach(self, session: WampSession) -> None:
        """A session has ended. The tasks in flight go on."""
        self._events.detach(session)
        self._leadership.detach(session)
        if self._session is session:
            self._session = None

    def refusal(self, uri: str, caller: Caller) -> ApplicationError | None:
        """The error of a call that is refused before anything of it is looked at; ``None``: it is not.

        :param uri: the procedure
        """
        sends_a_task = self.uris.is_task(uri) or uri == self._submit_uri
        return self._in_flight.refusal(caller) if sends_a_task else None

    def drain(self, session: WampSession) -> None:
        """A session is about to leave. Until then it only publishes."""
        self._leadership.detach(session)
        self._events.drain(session)

    def stop(self) -> Deferred[None]:
        """Let the session leave, then disconnect from the broker. A later session gets a new bridge.

        :return: fires within `STOP_TIMEOUT` of the session's end, whatever the broker does
        """
        for key in [key for key, bridge in _bridges.items() if bridge is self]:
            del _bridges[key]
        if self._discovery is not None:
            self._discovery.stop()

        def unfinished(failure: Failure) -> None:
            failure.trap(defer.TimeoutError)
            _log.warn("the broker connection did not close within {seconds} s", seconds=STOP_TIMEOUT)

        def disconnect(_: object) -> Deferred[None]:
            return self._client.disconnect().addTimeout(STOP_TIMEOUT, self._reactor).addErrback(unfinished)

        left = succeed(None) if self._session is None else self._session.leave()
        return left.addCallback(disconnect)

    def _describe(self) -> dict[str, Any]:
        return {
            "router_connected": self._session is not None and self._session.is_attached(),
            "leader": self._leadership.leads,
            "workers": None if self._discovery is None else len(self._discovery),
            "version": _installed_version(),
        }

    def _count_workers(self) -> Deferred[str]:
        """Say how many workers are online. Never fails."""

        def counted(replies: list[Any]) -> str:
            return f"{len(replies)} worker{'' if len(replies) == 1 else 's'} online"

        def not_counted(failure: Failure) -> str:
            failure.trap(TwistedCeleryError, defer.TimeoutError, defer.CancelledError)
            if failure.check(TwistedCeleryError) and not failure.check(Disconnected, CallCancelled):
                return f"its workers cannot be counted: {failure.value}"
            return "the broker has not answered yet"

        pinging: Deferred[list[Any]] = self._client.control.ping(timeout=PING_TIMEOUT)
        pinging.addTimeout(2 * PING_TIMEOUT, self._reactor)
        return pinging.addCallbacks(counted, not_counted)

    def _elected(self, session: WampSession) -> None:
        self._triggers.start(session)
        self._feed.lead()

    def _task_changed(self, task: ExposedTask, exposed: bool) -> None:
        if task.uri is not None and exposed:
            self.procedures.add(task.uri, self._calls.handler(task.name))
        elif task.uri is not None:
            self.procedures.discard(task.uri)
        elif exposed:
            _log.info(
                "the task {name!r:.255} has no procedure, since its name makes no URI: {reason}. "
                "Call it with celery_api.submit.",
                name=task.name,
                reason=task.reason,
            )

    def _is_gone(self, session_id: int | None) -> Deferred[bool]:
        """Whether a caller has left, as far as the router knows."""
        if session_id is None or self._session is None or not self._session.is_attached():
            return succeed(True)

        # "no_such_session" means that it left. Where the bridge may not ask, or loses its session
        # meanwhile, it is not known; then the task is kept, as configured.
        asked = self._session.call("wamp.session.get", session_id)
        return asked.addCallbacks(lambda _: False, lambda _: True)


def _installed_version() -> str | None:
    try:
        return version("twistedcelery")
    except PackageNotFoundError:
        # It runs from its source.
        return None


def check(extra: Mapping[str, Any] | None) -> None:
    """Check a configuration and its application, without starting anything.

    :param extra: as `Configuration.parse` takes it
    :raise ConfigurationError: says what is wrong
    """
    config = Configuration.parse(extra)
    uris = Uris(config.prefix)
    check_triggers(config, ExposedTasks(load_application(config.app), config, uris), uris)


_bridges: dict[tuple[str, str, int], Bridge] = {}


def bridge_for(realm: str, extra: Mapping[str, Any] | None, reactor: Any) -> Bridge:
    """Return the bridge for a realm and a configuration. The first call makes it.

    :param extra: the component's configuration, as `Configuration.parse` takes it
    :raise ConfigurationError: if the configuration, or its application, is wrong
    """
    config = Configuration.parse(extra)
    key = (realm, json.dumps([config.app, extra], sort_keys=True, default=repr), id(reactor))
    if key not in _bridges:
        app = load_application(config.app)
        client = TwistedCelery(
            app,
            reactor,
            publish_timeout=config.publish_timeout,
            terminate=config.terminate,
            max_reply_bytes=config.max_reply_bytes,
            disconnect_at_shutdown=False,
        )
        bridge = _bridges[key] = Bridge(config, app, reactor, client, realm=realm)
        if IReactorCore.providedBy(reactor):
            reactor.addSystemEventTrigger("before", "shutdown", bridge.stop)
    return _bridges[key]
