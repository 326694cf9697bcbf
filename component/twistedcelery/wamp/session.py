"""The WAMP session of the bridge: the class that Crossbar, or Autobahn's runner, instantiates."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.message import Event, Interrupt, Invocation
from autobahn.wamp.types import RegisterOptions, SubscribeOptions
from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedcelery._deferreds import fork
from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.authentication import TICKET_VARIABLE, Credentials
from twistedcelery.wamp.bridge import Bridge, bridge_for, check
from twistedcelery.wamp.invocation import DETAILS, KEYWORDS, OpenInvocations
from twistedcelery.wamp.presence import Presence, describe_process
from twistedcelery.wamp.procedures import Registrations
from twistedcelery.wamp.process.container import Component, component_of, joined_component
from twistedcelery.wamp.values import MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autobahn.wamp.types import Challenge, CloseDetails, ComponentConfig, SessionDetails
    from twisted.python.failure import Failure

    from twistedcelery.wamp.invocation import Handler
    from twistedcelery.wamp.triggers import Listener

__all__ = ["CeleryBridge"]

#: Seconds between a router's refusal and the end of the connection. Crossbar starts a component
#: that restarts "always" again at once, however often the router refuses it.
REFUSED_DELAY = 2.0

#: Seconds for the router to take note that the bridge leaves.
LEAVE_TIMEOUT = 2.0

#: Room that a message needs besides its value.
_ENVELOPE = 64 * 1024

_log = Logger()


class CeleryBridge(ApplicationSession):
    """Registers a Celery application's tasks on a realm.

    Configuration is the component's ``extra``; see `twistedcelery.wamp.config.Configuration`. The
    router's secret comes from the environment; see `twistedcelery.wamp.authentication`.
    """

    @staticmethod
    def check_config(_personality: object, extra: Mapping[str, Any]) -> None:
        """Crossbar's hook: it starts no component whose configuration this refuses.

        :raise ConfigurationError: says what is wrong
        """
        try:
            check(extra)
        except ConfigurationError as error:
            # Crossbar itself mentions the reason at its debug level only.
            _log.error("the bridge cannot start: {error}", error=str(error))
            raise

    def __init__(self, config: ComponentConfig | None = None, reactor: Any = None) -> None:
        super().__init__(config)
        if reactor is None:
            # Importing it installs one, so it must not happen before somebody wants it.
            from twisted.internet import reactor
        self._reactor = reactor
        self._bridge: Bridge | None = None
        self._open: OpenInvocations | None = None
        self._component: Component | None = None
        self._presence: Presence | None = None
        self._joined = False
        #: What to take back before leaving.
        self._listening: list[Any] = []
        self._provided: dict[int, Any] = {}
        self._offered: Registrations | None = None
        self._left: Deferred[None] | None = None

    @property
    def max_size(self) -> int:
        """Bytes that one value may take on the way to the router."""
        # Only WebSocket has such a limit of its own, and 0 stands for none.
        limit = getattr(self.transport, "maxMessagePayloadSize", 0)
        return max(0, min(MAX_SIZE, limit - _ENVELOPE)) if limit else MAX_SIZE

    def onConnect(self) -> None:
        """The transport is there: find the bridge, and join the realm."""
        self._leave_before_closing()
        self._component = component_of(self)
        try:
            self._bridge = bridge_for(self.config.realm or "", self.config.extra, self._reactor)
        except ConfigurationError as error:
            self._give_up(f"the bridge cannot start: {error}")
            return
        self._open = OpenInvocations(self._bridge.errors, self)
        credentials = Credentials.from_environment(os.environ)
        if credentials is None:
            self.join(self.config.realm)
        else:
            self.join(self.config.realm, authmethods=list(Credentials.methods), authid=credentials.authid)

    def onChallenge(self, challenge: Challenge) -> str:
        """The router wants proof."""
        credentials = Credentials.from_environment(os.environ)
        if credentials is None:
            raise ValueError(f"the router wants a secret; set {TICKET_VARIABLE}")
        return credentials.answer(challenge)

    def onJoin(self, details: SessionDetails) -> Deferred[None]:
        """The session is established: register everything, then publish what was kept."""
        self._joined = True
        bridge = self._bridge
        if bridge is None:
            raise RuntimeError("joined without having connected")
        self._component = self._component or joined_component(self, self._reactor)
        if self._component is not None:
            self._component.joined()
        self._offered = Registrations(self, bridge.procedures, bridge.config.invoke)
        return self._offered.start().addCallback(self._registered)

    def onMessage(self, msg: Any) -> None:
        """Two things that Autobahn does not do for endpoints are done on the way to it."""
        if isinstance(msg, Interrupt) and self._open is not None:
            # It does not say how an invocation is interrupted.
            self._open.interrupt_mode = msg.mode
        elif isinstance(msg, Invocation | Event) and msg.kwargs:
            # It passes keywords through functions of its own: one named "self", "fun" or "f" would be
            # taken for theirs, and the exception would end the session.
            msg.kwargs = {KEYWORDS: msg.kwargs}
        super().onMessage(msg)

    def provide(self, uri: str, handler: Handler, invoke: str) -> Deferred[Any]:
        """Register a procedure.

        :param invoke: WAMP's registration policy
        :return: fires with the registration, or fails with the router's `ApplicationError`
        """
        if self._open is None:
            raise RuntimeError("joined without having connected")
        options = RegisterOptions(invoke=invoke, details_arg=DETAILS)
        registering: Deferred[Any] = self.register(self._open.endpoint(handler), uri, options=options)

        def registered(registration: Any) -> Any:
            self._provided[registration.id] = registration
            return registration

        return registering.addCallback(registered)

    def take_back(self, registration: Any) -> Deferred[Any]:
        """Undo `provide`; calls that are being answered go on.

        :return: fires once the router has taken note
        """
        self._provided.pop(registration.id, None)
        taking_back: Deferred[Any] = registration.unregister()
        return taking_back

    def listen(self, topic: str, match: str, listener: Listener) -> Deferred[Any]:
        """Subscribe.

        :param match: WAMP's matching policy
        :return: fires once the router has it, or fails with the router's `ApplicationError`
        """

        def happened(*args: Any, **kwargs: Any) -> None:
            listener(args, kwargs.get(KEYWORDS, {}), kwargs[DETAILS])

        options = SubscribeOptions(match=match, details_arg=DETAILS)
        subscribing: Deferred[Any] = self.subscribe(happened, topic, options)
        return subscribing.addCallback(self._listening.append)

    def leave(self, reason: str | None = None, message: str | None = None) -> Deferred[None]:
        """Leave the realm in good order: take no more calls, let those in flight end, and go.

        :return: fires once the session has ended, `LEAVE_TIMEOUT` after ``drain_timeout`` at the latest
        """
        if self._left is None:
            self._left = self._withdraw() if self._joined and self.is_attached() else succeed(None)
            self._left.addCallback(lambda _: self._retract())
            self._left.addCallback(lambda _: self._say_goodbye(reason, message))
        return fork(self._left)

    def onLeave(self, details: CloseDetails) -> Any:
        """The session has ended, or the router has refused it."""
        self._detach()
        if self._joined:
            return super().onLeave(details)
        _log.error(
            "the router refused the bridge: {reason}: {text}", reason=details.reason, text=details.message
        )
        # What follows closes the connection, upon which somebody will try again.
        return deferLater(self._reactor, REFUSED_DELAY, super().onLeave, details)

    def onDisconnect(self) -> Deferred[None] | None:
        """The transport is gone. The tasks in flight go on; their callers have been told by the router.

        :return: fires once Crossbar may know of that, where it is to know
        """
        super().onDisconnect()
        self._detach()
        if self._open is not None:
            self._open.close()
        return None if self._component is None else self._component.closed(self)

    def onUserError(self, fail: Failure, msg: str) -> None:
        """Autobahn logs here what it sends to callers, who need it; the log does not."""
        error = fail.value
        if isinstance(error, ApplicationError):
            _log.debug("a call ended with {uri}", uri=error.error)
        else:
            _log.failure("the bridge's session failed", failure=fail)

    def _withdraw(self) -> Deferred[None]:
        # Subscriptions before procedures: while the bridge still holds the leader's, nobody else acts.
        if self._bridge is None or self._open is None or self._offered is None:
            raise RuntimeError("joined without having connected")
        self._offered.stop()
        self._bridge.withdraw(self)
        taken_back = [subscription.unsubscribe() for subscription in self._listening]
        taken_back += [registration.unregister() for registration in self._provided.values()]
        ended = fork(DeferredList([*taken_back, self._open.ended()], consumeErrors=True))
        seconds = self._bridge.config.drain_timeout

        def unfinished(failure: Failure) -> None:
            failure.trap(defer.TimeoutError)
            _log.warn(
                "calls have not ended within {seconds} s: {count}",
                seconds=seconds,
                count=len(self._open or ()),
            )

        return ended.addTimeout(seconds, self._reactor).addCallbacks(lambda _: None, unfinished)

    def _description(self) -> dict[str, Any]:
        return {"id": self._session_id, "since": time.time(), **describe_process()}

    def _retract(self) -> Deferred[None]:
        if self._presence is None or not self.is_attached():
            return succeed(None)
        return self._within_leave_timeout(fork(self._presence.retract()))

    def _say_goodbye(self, reason: str | None, message: str | None) -> Deferred[None]:
        if not self.is_attached():
            return succeed(None)
        # Autobahn's Deferred is the transport's own, which others wait for as well.
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

    def _registered(self, _: Any) -> None:
        if self._bridge is not None and self.is_attached():
            self._bridge.attach(self)
            self._presence = Presence(self, self._bridge.uris, self._description())
            self._presence.announce()
            _log.info("the bridge serves {count} procedures", count=len(self._provided))

    def _leave_before_closing(self) -> None:
        """Crossbar's container stops a component by closing its transport, without asking the session."""
        transport: Any = self.transport
        close = transport.close

        def leave_and_close() -> None:
            leaving = self._joined and self.is_attached() and self._left is None
            if self._component is not None and (leaving or self.transport is None):
                # Crossbar knows the first session's transport alone, which may be long gone.
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
            # It would connect again and again, to the same end.
            runner.stop()
        self.disconnect()
