"""Sends messages in the publishing thread, each once, through failures of the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, PublishError, PublishUnconfirmed
from twistedcelery.transports.threads.backoff import Backoff
from twistedcelery.transports.threads.broker import BrokerConnection
from twistedcelery.transports.threads.failures import (
    Redactor,
    connect_error,
    declare_error,
    never_connected,
    send_error,
)
from twistedcelery.transports.threads.handover import Handover
from twistedcelery.transports.threads.thread import DedicatedThread

__all__ = ["Sender"]

#: The most seconds between attempts to connect.
_LONGEST_DELAY = 2.0

#: Seconds for which a refusal answers for all messages, so that a queue full of them does not
#: become as many failed logins.
_REFUSAL_STANDS = 1.0


class Sender:
    """Sends messages in order. Everything here runs in the publishing thread.

    :param app: the Celery application
    :param clock: seconds, as in `Handover.deadline`
    :param thread: where this runs
    :param settle: called on the reactor with a handover and its error, or ``None`` for success
    """

    def __init__(
        self,
        app: Any,
        clock: Callable[[], float],
        thread: DedicatedThread,
        settle: Callable[[Handover, PublishError | None], None],
    ) -> None:
        self._app = app
        self._redactor = Redactor(app)
        self._clock = clock
        self._thread = thread
        self._settle = settle
        self._broker: BrokerConnection | None = None
        self._backoff = Backoff(clock, _LONGEST_DELAY)
        self._refused: tuple[BrokerAccessRefused, float] | None = None
        #: Whether there is a connection that works, as far as is known. Read by the reactor too.
        self.connected = False

    def deliver(self, handover: Handover) -> None:
        """Send one message; returns when its fate is known, or when it was withdrawn."""
        while not handover.withdrawn and not self._thread.stopping.is_set():
            try:
                again = self._attempt(handover)
            except PublishError as error:
                self._thread.post(self._settle, handover, error)
                return
            if not again:
                self._thread.post(self._settle, handover, None)
                return
            self._thread.stopping.wait(self._backoff.failed())

    def close(self) -> None:
        """Let go of the connection."""
        self.connected = False
        if self._broker is None:
            return
        try:
            self._broker.close()
        except Exception:
            # The broker went away first, which does not matter any more.
            self._broker.discard()

    def _attempt(self, handover: Handover) -> bool:
        """Try once.

        :return: whether to try again
        :raises PublishError: there is no point in trying again
        """
        try:
            broker = self._connected_broker()
            self._declare(broker, handover)
        except BrokerUnavailable as unavailable:
            handover.last_error = unavailable
            if isinstance(unavailable, BrokerAccessRefused) or self._broker is None:
                raise
            return True
        return not handover.take() or self._send(broker, handover)

    def _declare(self, broker: BrokerConnection, handover: Handover) -> None:
        try:
            broker.declare(handover.message.declare)
        except Exception as failure:
            error = declare_error(failure, broker, self._redactor)
            self._disconnect()
            raise error from error.__cause__

    def _send(self, broker: BrokerConnection, handover: Handover) -> bool:
        """As `_attempt`, once there is nothing left to do but to send."""
        try:
            broker.send(handover.message, timeout=max(handover.deadline - self._clock(), 0.001))
        except PublishError:
            raise
        except Exception as failure:
            error = send_error(failure, broker, self._redactor)
            self._disconnect()
            if never_connected(failure):
                error = connect_error(failure, self._redactor)
            elif isinstance(error, PublishUnconfirmed) and handover.message.resend:
                handover.maybe_sent = True
            else:
                raise error from error.__cause__
            handover.last_error = error
            handover.give_back()
            return True
        self._backoff.succeeded()
        return False

    def _connected_broker(self) -> BrokerConnection:
        """:raises BrokerUnavailable: also where the transport cannot be used"""
        if self._refused is not None and self._clock() < self._refused[1]:
            raise BrokerAccessRefused(str(self._refused[0])) from self._refused[0]
        if self._broker is None:
            try:
                self._broker = BrokerConnection(self._app)
            except Exception as failure:
                cause = self._redactor.cause(failure)
                raise BrokerUnavailable(
                    f"the broker's transport cannot be used; check broker_url and that its driver is "
                    f"installed: {self._redactor.text(failure)}"
                ) from cause
        try:
            self._broker.open()
        except Exception as failure:
            self._disconnect()
            error = connect_error(failure, self._redactor)
            if isinstance(error, BrokerAccessRefused):
                self._refused = error, self._clock() + _REFUSAL_STANDS
            raise error from error.__cause__
        self.connected = True
        return self._broker

    def _disconnect(self) -> None:
        self.connected = False
        if self._broker is not None:
            self._broker.discard()
