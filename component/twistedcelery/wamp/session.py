"""The WAMP session of the bridge, which Crossbar or Autobahn's runner instantiates."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.message import Error, Event, Interrupt, Invocation
from autobahn.wamp.types import RegisterOptions, SubscribeOptions
from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedcelery._deferreds import fork
from twistedcelery._logging import CountedWarnings
from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.bridge import Bridge, bridge_for, check
from twistedcelery.wamp.invocation import DETAILS, KEYWORDS, Caller, OpenInvocations
from twistedcelery.wamp.router.authentication import AUTHID_VARIABLE, TICKET_VARIABLE, Credentials
from twistedcelery.wamp.router.bridge_topics import BridgeTopics, describe_process
from twistedcelery.wamp.router.container import Component, component_of, joined_component
from twistedcelery.wamp.router.registrations import Registrations
from twistedcelery.wamp.router.unreadable import Unreadable, keep_session
from twistedcelery.wamp.values import MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autobahn.wamp.types import Challenge, CloseDetails, ComponentConfig, SessionDetails
    from twisted.python.failure import Failure

    from twistedcelery.wamp.interfaces import Subscriber
    from twistedcelery.wamp.invocation import Handler

__all__ = ["CeleryBridge"]

#: Seconds between a router's refusal and the end of the connection. Crossbar restarts a component with
#: ``restart-always`` at once, however often the router refuses it.
REFUSED_DELAY = 2.0

#: Seconds for the router to confirm that the bridge leaves.
LEAVE_TIMEOUT = 2.0

#: What to check, by the router's reason for refusing a session.
_ADVICE = {
    "wamp.error.no_such_realm": "Check the name of the realm.",
    "wamp.error.no_auth_method": f"Is {TICKET_VARIABLE} set?",
    "wamp.error.not_authorized": f"Check {TICKET_VARIABLE} and {AUTHID_VARIABLE}.",
    "wamp.error.authentication_failed": f"Check {TICKET_VARIABLE} and {AUTHID_VARIABLE}.",
}

#: Bytes of a message besides its value.
_ENVELOPE = 64 * 1024

_log = Logger()


class CeleryBridge(ApplicationSession):
    """Serves a Celery application's tasks on a realm.

    Configuration is the component's ``extra``; see `twistedcelery.wamp.config.Configuration`. The
    router's secret comes from the environment; see `twistedcelery.wamp.router.authentication`.
    """

    @staticmethod
    def check_config(_personality: object, extra: Mapping[str, Any]) -> None:
        """Check a configuration. Crossbar calls this before it starts the component.

        :raise ConfigurationError: names the key, what was found and what is accepted
        """
        try:
            check(extra)
        except ConfigurationError as error:
            # Crossbar logs the reason at debug level only.
            _log.error("the bridge cannot start: {error}", error=str(error))
            raise

    def __init__(self, config: ComponentConfig | None = None, reactor: Any = None) -> None:
        super().__init__(config)
        if reactor is None:
            # Importing it installs it, so import it as late as possible.
            from twisted.internet import reactor
        self._reactor = reactor
        self._bridge: Bridge | None = None
        self._open: OpenInvocations | None = None
        self._component: Component | None = None
        self._topics: BridgeTopics | None = None
        self._joined = False
        self._warnings = CountedWarnings(_log, reactor.seconds)
        #: What to undo before leaving.
        self._subscribed: list[Any] = []
        self._provided: dict[int, Any] = {}
        self._offered: Registrations | None = None
        self._left: Deferred[None] | None = None
        self._draining: Deferred[None] | None = None

    @property
    def max_size(self) -> int:
        """Bytes that one value may take on the way to the router."""
        # Only WebSocket has a limit of its own. 0 means none.
        limit = getattr(self.transport, "maxMessagePayloadSize", 0)
        return max(0, min(MAX_SIZE, limit - _ENVELOPE)) if limit else MAX_SIZE

    @property
    def is_serving(self) -> bool:
        """Whether the procedures are registered, as far as the router allows."""
        return self._topics is not None

    def onConnect(self) -> None:
        """Find the bridge, and join the realm: the transport is connected."""
        self._leave_before_closing()
        self._component = component_of(self)
        try:
            self._bridge = bridge_for(self.config.realm or "", self.config.extra, self._reactor)
        except ConfigurationError as error:
            self._give_up(f"the bridge cannot start: {error}")
            return
        self._open = OpenInvocations(self._bridge.errors, self)
        keep_session(self.transport, self._unreadable, self._bridge.config.max_call_bytes)
        credentials = Credentials.from_environment(os.environ)
        if credentials is None:
            self.join(self.config.realm)
        else:
            self.join(self.config.realm, authmethods=list(Credentials.methods), authid=credentials.authid)

    def onChallenge(self, challenge: Challenge) -> str:
        """Answer the router's challenge."""
        credentials = Credentials.from_environment(os.environ)
        if credentials is None:
            raise ValueError(f"the router asks for a secret: set {TICKET_VARIABLE}")
        return credentials.answer(challenge)

    def onJoin(self, details: SessionDetails) -> Deferred[None]:
        """Register everything, then publish the events that were kept."""
        self._joined = True
        bridge = self._bridge
        if bridge is None:
            raise RuntimeError("joined without having connected")
        self._component = self._component or joined_component(self, self._reactor)
        self._offered = Registrations(self, bridge.procedures, bridge.config.invoke)
        return self._offered.start().addCallback(self._registered, details)

    def onMessage(self, msg: Any) -> None:
        """Pass a message to Autobahn, with two things that Autobahn does not do for endpoints.

        A call that there is no room for is refused here: Autobahn's way costs four times as much, and while
        one caller sends thousands of them, another one waits.
        """
        if isinstance(msg, Invocation) and self._refuse(msg):
            return
        if isinstance(msg, Interrupt) and self._open is not None:
            # Autobahn does not pass the mode on.
            self._open.interrupt_mode = msg.mode
        elif isinstance(msg, Invocation | Event) and msg.kwargs:
            # Autobahn passes keywords through functions of its own. A keyword "self", "fun" or "f" would
            # clash with a parameter there, and the exception would end the session.
            msg.kwargs = {KEYWORDS: msg.kwargs}
        super().onMessage(msg)

    def provide(self, uri: str, handler: Handler, invoke: str) -> Deferred[Any]:
        """As `twistedcelery.wamp.interfaces.WampSession`."""
        if self._open is None:
            raise RuntimeError("joined without having connected")
        options = RegisterOptions(invoke=invoke, details_arg=DETAILS)
        registering: Deferred[Any] = self.register(self._open.endpoint(handler), uri, options=options)

        def registered(registration: Any) -> Any:
            self._provided[registration.id] = registration
            return registration

        return registering.addCallback(registered)

    def withdraw(self, registration: Any) -> Deferred[Any]:
        """As `twistedcelery.wamp.interfaces.WampSession`."""
        self._provided.pop(registration.id, None)
        unregistering: Deferred[Any] = registration.unregister()
        return unregistering

    def listen(self, topic: str, match: str, subscriber: Subscriber) -> Deferred[Any]:
        """As `twistedcelery.wamp.interfaces.WampSession`."""

        def happened(*args: Any, **kwargs: Any) -> None:
            subscriber(args, kwargs.get(KEYWORDS, {}), kwargs[DETAILS])

        options = SubscribeOptions(match=match, details_arg=DETAILS)
        subscribing: Deferred[Any] = self.subscribe(happened, topic, options)
        return subscribing.addCallback(self._subscribed.append)

    def leave(self, reason: str | None = None, message: str | None = None) -> Deferred[None]:
        """Leave in good order: accept no more calls, and let those in progress end.

        :return: fires once the session has ended, `LEAVE_TIMEOUT` after ``drain_timeout`` at the latest
        """
        if self._left is None:
            self._left = self._drain() if self._joined and self.is_attached() else succeed(None)
            self._left.addCallback(lambda _: self._publish_offline())
            self._left.addCallback(lambda _: self._close(reason, message))
        return fork(self._left)

    @property
    def open_calls(self) -> int:
        """The number of calls that have not ended."""
        return len(self._open or ())

    def stop_draining(self) -> None:
        """Leave without the calls that are still in progress. Does nothing before `leave`."""
        if self._draining is not None:
            self._draining.cancel()

    def onLeave(self, details: CloseDetails) -> Any:
        """Detach from the bridge: the session has ended, or the router has refused it."""
        self._detach()
        if self._joined:
            return super().onLeave(details)
        if self._component is not None:
            self._component.answered()
        reason = f"{details.reason}: {details.message}"
        advice = _ADVICE.get(details.reason or "", "Check the realm, and who may join it.")
        self._warn(f"the router refused the bridge: {reason}. {advice}")
        # The bridge reconnects after the end of the connection.
        return deferLater(self._reactor, REFUSED_DELAY, self.disconnect)

    def onDisconnect(self) -> Deferred[None] | None:
        """Release the open calls: the transport is closed. The tasks in flight go on.

        :return: fires when Crossbar may learn that
        """
        super().onDisconnect()
        self._detach()
        if self._open is not None:
            self._open.close()
        return None if self._component is None else self._component.closed(self)

    def onUserError(self, fail: Failure, msg: str) -> None:
        """Log an error. Autobahn also passes those for callers, which need no traceback in the log."""
        error = fail.value
        if isinstance(error, ApplicationError):
            _log.debug("a call ended with {uri}", uri=error.error)
        else:
            _log.failure("the bridge's session failed", failure=fail)

    def _refuse(self, msg: Invocation) -> bool:
        registration = self._provided.get(msg.registration)
        if registration is None or self._bridge is None:
            return False
        caller = Caller(msg.caller, msg.caller_authid, msg.caller_authrole)
        error = self._bridge.refusal(registration.procedure, caller)
        if error is None:
            return False
        self._answer(msg.request, error)
        return True

    def _unreadable(self, message: Unreadable) -> None:
        if self._bridge is None or message.kind != Invocation.MESSAGE_TYPE:
            self._warnings.warn("an event is dropped", message.reason)
            return
        error = self._bridge.errors.make(
            "invalid_arguments", f"the bridge did not decode the call: {message.reason}"
        )
        self._answer(message.number, error)

    def _answer(self, call: int, error: ApplicationError) -> None:
        """Answer a call that Autobahn does not get."""
        transport: Any = self._transport
        transport.send(Error(Invocation.MESSAGE_TYPE, call, error.error, args=list(error.args)))

    def _drain(self) -> Deferred[None]:
        # Subscriptions before procedures: while the bridge holds the leader's, no other bridge takes over.
        if self._bridge is None or self._open is None or self._offered is None:
            raise RuntimeError("joined without having connected")
        self._offered.stop()
        self._bridge.drain(self)
        withdrawn = [subscription.unsubscribe() for subscription in self._subscribed]
        withdrawn += [registration.unregister() for registration in self._provided.values()]
        ended = self._draining = fork(DeferredList([*withdrawn, self._open.ended()], consumeErrors=True))
        seconds = self._bridge.config.drain_timeout

        def unfinished(failure: Failure) -> None:
            failure.trap(defer.TimeoutError, defer.CancelledError)
            in_time = f" within {seconds} s" if failure.check(defer.TimeoutError) else ""
            _log.warn("{count} call(s) have not ended{in_time}", in_time=in_time, count=self.open_calls)

        return ended.addTimeout(seconds, self._reactor).addCallbacks(lambda _: None, unfinished)

    def _description(self) -> dict[str, Any]:
        return {"id": self._session_id, "since": time.time(), **describe_process()}

    def _publish_offline(self) -> Deferred[None]:
        if self._topics is None or not self.is_attached():
            return succeed(None)
        return self._within_leave_timeout(fork(self._topics.publish_offline()))

    def _close(self, reason: str | None, message: str | None) -> Deferred[None]:
        if not self.is_attached():
            return succeed(None)
        # Autobahn's Deferred is the transport's own, and has other waiters.
        return self._within_leave_timeout(fork(super().leave(reason, message)))

    def _within_leave_timeout(self, waiting: Deferred[None]) -> Deferred[None]:
        return waiting.addTimeout(LEAVE_TIMEOUT, self._reactor).addErrback(
            lambda failure: failure.trap(defer.TimeoutError) and None
        )

    def _detach(self) -> None:
        if self._offered is not None:
            self._offered.stop()
        if self._bridge is not None:
            self._bridge.detach(self)

    def _registered(self, _: object, details: SessionDetails) -> Deferred[None] | None:
        """Begin to serve.

        :return: where the router authorised nothing: fires once the session has been given up
        """
        if self._bridge is None or self._offered is None or not self.is_attached():
            return None
        if self._offered.are_forbidden:
            return self._leave_forbidden(details)
        if self._component is not None:
            self._component.joined()
        self._bridge.attach(self)
        self._topics = BridgeTopics(self, self._bridge.uris, self._description())
        self._topics.publish_online()
        # The authid of an anonymous session is random.
        name = details.authrole if details.authmethod == "anonymous" else details.authid
        self._bridge.announce(self._offered, f"{name}@{details.realm}")
        return None

    def _leave_forbidden(self, details: SessionDetails) -> Deferred[None]:
        has_ticket = Credentials.from_environment(os.environ) is not None
        advice = "Check the role's permissions." if has_ticket else f"Is {TICKET_VARIABLE} set?"
        self._warn(
            f"the router accepted the bridge in {details.realm} as role {details.authrole!r}, which may not "
            f"register its procedures. {advice}"
        )
        if self._component is not None and self._component.discard(self):
            self._component = None
        return deferLater(self._reactor, REFUSED_DELAY).addCallback(lambda _: self.leave())

    def _warn(self, text: str) -> None:
        """Log that the router refuses the bridge. Each attempt has its own session."""
        if self._bridge is not None:
            self._bridge.router_warnings.warn(text)

    def _leave_before_closing(self) -> None:
        """Leave before the transport is closed, which is how Crossbar's container stops a component."""
        transport: Any = self.transport
        close = transport.close

        def leave_and_close() -> None:
            leaving = self._joined and self.is_attached() and self._left is None
            if self._component is not None and (leaving or self.transport is None):
                # Crossbar knows only the first session's transport, which may be closed already.
                self._component.stop()
            elif leaving:
                # The end of the session closes the transport.
                self.leave()
            else:
                close()

        transport.close = leave_and_close

    def _give_up(self, reason: str) -> None:
        _log.error("{reason}", reason=reason)
        runner = self.config.runner
        if runner is not None:
            # It would reconnect for ever.
            runner.stop()
        self.disconnect()
