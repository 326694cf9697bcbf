"""The publishing thread's half: sends each message once, through failures of the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, PublishError, PublishUnconfirmed
from twistedcelery.transports.threads.broker import BrokerConnection
from twistedcelery.transports.threads.delivery import Delivery
from twistedcelery.transports.threads.failures import (
    Redactor,
    connect_error,
    declare_error,
    never_connected,
    send_error,
)
from twistedcelery.transports.threads.thread import DedicatedThread

__all__ = ["Sender"]

#: Seconds between attempts to connect: the first, doubled up to the last.
_FIRST_DELAY = 0.1
_LAST_DELAY = 2.0

#: Seconds for which a refusal answers for all messages, so that a queue full of them does not
#: become as many failed logins.
_REFUSAL_STANDS = 1.0


class Sender:
    """Sends deliveries in order. Everything here runs in the publishing thread.

    :param app: the Celery application
    :param clock: seconds, as in `Delivery.deadline`
    :param thread: where this runs
    :param settle: called on the reactor with a delivery and its error, or ``None`` for success
    """

    def __init__(
        self,
        app: Any,
        clock: Callable[[], float],
        thread: DedicatedThread,
        settle: Callable[[Delivery, PublishError | None], None],
    ) -> None:
        self._app = app
        self._redactor = Redactor(app)
        self._clock = clock
        self._thread = thread
        self._settle = settle
        self._broker: BrokerConnection | None = None
        self._delay = _FIRST_DELAY
        self._refused: tuple[BrokerAccessRefused, float] | None = None
        #: Whether there is a connection that works, as far as is known. Read by the reactor too.
        self.connected = False

    def deliver(self, delivery: Delivery) -> None:
        """Send one message; returns when its fate is known or nobody waits for it."""
        while not delivery.withdrawn and not self._thread.stopping.is_set():
            try:
                again = self._attempt(delivery)
            except PublishError as error:
                self._thread.post(self._settle, delivery, error)
                return
            if not again:
                self._thread.post(self._settle, delivery, None)
                return
            self._thread.stopping.wait(self._delay)
            self._delay = min(self._delay * 2, _LAST_DELAY)

    def close(self) -> None:
        """Let go of the connection."""
        self.connected = False
        if self._broker is None:
            return
        try:
            self._broker.close()
        except Exception:
            # There is nobody left for whom it would matter that the broker went away first.
            self._broker.discard()

    def _attempt(self, delivery: Delivery) -> bool:
        """Try once.

        :return: whether to try again
        :raises PublishError: there is no point in trying again
        """
        try:
            broker = self._connected_broker()
            self._declare(broker, delivery)
        except BrokerUnavailable as unavailable:
            delivery.last_error = unavailable
            if isinstance(unavailable, BrokerAccessRefused) or self._broker is None:
                raise
            return True
        return not delivery.take() or self._send(broker, delivery)

    def _declare(self, broker: BrokerConnection, delivery: Delivery) -> None:
        try:
            broker.declare(delivery.message.declare)
        except Exception as failure:
            error = declare_error(failure, broker, self._redactor)
            self._disconnect()
            raise error from error.__cause__

    def _send(self, broker: BrokerConnection, delivery: Delivery) -> bool:
        """As `_attempt`, once there is nothing left to do but to send."""
        try:
            broker.send(delivery.message, timeout=max(delivery.deadline - self._clock(), 0.001))
        except PublishError:
            raise
        except Exception as failure:
            error = send_error(failure, broker, self._redactor)
            self._disconnect()
            if never_connected(failure):
                error = connect_error(failure, self._redactor)
            elif isinstance(error, PublishUnconfirmed) and delivery.message.resend:
                delivery.maybe_sent = True
            else:
                raise error from error.__cause__
            delivery.last_error = error
            delivery.give_back()
            return True
        self._delay = _FIRST_DELAY
        return False

    def _connected_broker(self) -> BrokerConnection:
        """:raises BrokerUnavailable: also where the transport cannot be used at all"""
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
