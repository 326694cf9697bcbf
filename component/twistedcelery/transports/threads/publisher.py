"""Publishes messages by kombu's blocking code in a thread."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from twistedcelery._deferreds import settle
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import (
    BrokerUnavailable,
    Disconnected,
    Overloaded,
    PublishError,
    PublishUnconfirmed,
)
from twistedcelery.transports.connection import caused
from twistedcelery.transports.deadlines import Deadlines
from twistedcelery.transports.threads.handover import Handover
from twistedcelery.transports.threads.sender import Sender
from twistedcelery.transports.threads.thread import DedicatedThread, ThreadReactor

__all__ = ["ThreadedPublisher"]


class ThreadedPublisher:
    """A `twistedcelery.transports.interface.Publisher` on one kombu connection in one thread.

    With AMQP brokers a message counts as taken when the broker confirmed it, with others when
    kombu's blocking call returned.

    :param app: the Celery application, whose ``broker_write_url`` and options are used
    :param publish_timeout: seconds a message may take, where it does not say so itself
    :param max_queued: messages that may wait at once; past it, `publish` fails with
        `twistedcelery.errors.Overloaded`
    """

    def __init__(
        self,
        app: Any,
        reactor: ThreadReactor,
        publish_timeout: float = 10.0,
        max_queued: int = 10_000,
    ) -> None:
        self._reactor = reactor
        self._publish_timeout = publish_timeout
        self._max_queued = max_queued
        self._unsettled: dict[Handover, None] = {}
        self._deadlines: Deadlines[Handover] = Deadlines(reactor, self._expired)
        self._closed = False
        self._thread = DedicatedThread(reactor, "twistedcelery-publish", finish=self._release)
        self._sender = Sender(app, reactor.seconds, self._thread, self._settle)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker, as far as is known."""
        return self._sender.connected and not self._closed

    def publish(self, message: OutgoingMessage) -> Deferred[None]:
        """Send a message, as `twistedcelery.transports.interface.Publisher.publish` says.

        Cancelling drops the message if it is not being sent yet.
        """
        if self._closed:
            return fail(Disconnected("the client was disconnected; nothing was sent"))
        if len(self._unsettled) >= self._max_queued:
            return fail(Overloaded(f"{self._max_queued} messages wait for the broker already"))
        timeout = self._publish_timeout if message.confirm_timeout is None else message.confirm_timeout
        handover = Handover(message, self._reactor.seconds() + timeout)
        self._unsettled[handover] = None
        handover.done.addBoth(self._ended, handover)
        self._deadlines.add(timeout, handover)
        self._thread.submit(partial(self._sender.deliver, handover))
        return handover.done

    def close(self) -> Deferred[None]:
        """Stop. Unfinished messages fail with `Disconnected`; those not being sent yet never are.

        :return: fires once the thread ended. Where it hangs in a blocking call of a driver it is
            left behind after `twistedcelery.transports.threads.thread.STOP_LIMIT` seconds; it
            ends with that call and does not keep the process alive.
        """
        self._closed = True
        self._deadlines.stop()
        stopped = self._thread.stop()
        for handover in list(self._unsettled):
            unsent = handover.take()
            fate = "nothing was sent" if unsent else "the broker may or may not have the message"
            handover.done.errback(Disconnected(f"the client was disconnected; {fate}"))
        return stopped

    def _release(self) -> None:
        self._sender.close()

    def _ended(self, result: Any, handover: Handover) -> Any:
        del self._unsettled[handover]
        return result

    def _settle(self, handover: Handover, error: PublishError | None) -> None:
        settle(handover.done, None if error is None else Failure(error))

    def _expired(self, handover: Handover) -> None:
        error: PublishError
        last = handover.last_error
        because = f": {last}" if last is not None else ""
        if handover.take() and not handover.maybe_sent:
            error = BrokerUnavailable(
                f"the message could not be sent in the time allowed; nothing was sent{because}"
            )
        else:
            error = PublishUnconfirmed(
                "the broker did not confirm the message in the time allowed; it may or may not have it"
                f"{because}"
            )
        handover.done.errback(caused(error, last))
