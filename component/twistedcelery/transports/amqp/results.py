"""Receives states and results over AMQP: Celery's ``rpc://`` with a reply queue that survives.

The queue that Celery's own client declares is deleted with its only consumer, and results in
flight with it. This one stays while the connection is made anew; the broker deletes it when it
has had no consumer for ``x-expires``, and `AmqpResults.close` deletes it at once. Where the
application's own queues are quorum queues, so is this one: a classic queue of a RabbitMQ cluster is
on one node alone. While that node is down, no other has the queue, and none lets a client declare it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, inlineCallbacks, succeed
from twisted.logger import Logger

from twistedcelery._deferreds import Waiters
from twistedcelery._logging import CountedWarnings
from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, Disconnected, ResultError
from twistedcelery.transports.amqp.declare import Declaration
from twistedcelery.transports.amqp.delivery import Delivery
from twistedcelery.transports.amqp.link import AmqpChannel, AmqpLink
from twistedcelery.transports.connection import CLOSE_TIMEOUT, Connection, Refused, State
from twistedcelery.transports.deadlines import cancel_after
from twistedcelery.transports.decoding import ReplyDecoder
from twistedcelery.transports.interface import ReplyReceiver
from twistedcelery.transports.resting import CROWD, REST
from twistedcelery.transports.turns import Turns

__all__ = ["AmqpResults"]

_log = Logger()

#: Deliveries that may be unacknowledged: what the broker sends ahead.
PREFETCH = 500

#: Deliveries are acknowledged together: after so many, or so many seconds after the first. Replies
#: trickle in as workers finish, and an acknowledgement wakes the reactor as often as a reply does.
ACK_EVERY = PREFETCH // 2
ACK_DELAY = 0.02

#: The least and the usual time, in seconds, that the reply queue outlives its consumer.
MIN_EXPIRES = 600
DEFAULT_EXPIRES = 86_400


class AmqpResults:
    """A `twistedcelery.transports.interface.ResultSource` on a reply queue of its own.

    :param reactor: for time
    :param receiver: gets each state
    :param decoder: reads the replies
    :param queue: the reply queue's name
    :param quorum: whether it is a quorum queue
    :param clock: seconds of real time
    """

    available = True

    def __init__(
        self,
        reactor: Clock,
        receiver: ReplyReceiver,
        decoder: ReplyDecoder,
        queue: str,
        quorum: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reactor = reactor
        self._receiver = receiver
        self._decoder = decoder
        self._queue = queue
        self._quorum = quorum
        self._watched: set[str] = set()
        self._waiters: Waiters[None] = Waiters()
        # Thousands may have waited.
        self._let_publish = Turns(
            reactor,
            clock,
            lambda: bool(self._waiters) and self.connected,
            lambda: self._waiters.fire_first(None),
        )
        self._channel: AmqpChannel | None = None
        #: Whether the broker may have the reply queue.
        self._is_declared = False
        #: Whether there were results on an earlier link, and whether the present one finds them gone.
        self._was_up = False
        self._are_replies_lost = False
        self._is_closing = False
        self._attempted: Waiters[None] = Waiters()
        self._delivered_tag = self._acked_tag = 0
        self._warnings = CountedWarnings(_log, reactor.seconds)
        self._ack_timer: Timer | None = None
        self._reason: BrokerUnavailable | None = None
        self._connection: Connection[AmqpLink]

    def use(self, connection: Connection[AmqpLink]) -> AmqpResults:
        """Consume over a connection, whose user this is."""
        self._connection = connection
        return self

    @property
    def connected(self) -> bool:
        """Whether a state sent now would be seen at once."""
        return self._connection.state is State.UP

    @property
    def reply_to(self) -> str:
        """The reply queue."""
        return self._queue

    def watch(self, task_id: str) -> Deferred[None] | None:
        """As `twistedcelery.transports.interface.ResultSource.watch`; the queue serves all tasks."""
        state = self._connection.state
        if self._is_closing:
            return fail(Disconnected("the connection for results was closed by disconnect()"))
        self._watched.add(task_id)
        if state is State.UP and not self._waiters:
            return None
        self._connection.start()
        return self._waiters.wait(self._unavailable)

    def forget(self, task_id: str) -> None:
        """As `twistedcelery.transports.interface.ResultSource.forget`."""
        self._watched.discard(task_id)

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultSource.close`; deletes the reply queue.

        A link that is being made is waited for: the queue may be there already, or from an earlier link.
        """
        self._is_closing = True
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._let_publish.stop()
        self._waiters.fail(Disconnected("the client was disconnected before the task was sent"))
        state = self._connection.state
        attempted: Deferred[None] = succeed(None)
        if state is State.PREPARING or (state is State.CONNECTING and self._is_declared):
            attempted = cancel_after(CLOSE_TIMEOUT, self._attempted.wait(), self._reactor)
            attempted.addErrback(lambda failure: failure.trap(CancelledError))
        return attempted.addCallback(lambda _: self._close())

    def _close(self) -> Deferred[None]:
        channel, self._channel = self._channel, None
        if channel is not None and self.connected:
            # It goes out before the closing handshake, so its answer need not be waited for.
            channel.delete_consumed_queue(self._queue).addErrback(
                lambda failure: _log.debug("the reply queue was left to expire: {error}", error=failure.value)
            )
        return self._connection.close()

    # The connection's user

    @inlineCallbacks
    def prepare(self, link: AmqpLink) -> Generator[Deferred[Any], Any, None]:
        """Declare the reply queue and consume it on a new link."""
        self._are_replies_lost = self._was_up and not (yield from self._is_kept(link))
        channel: AmqpChannel = yield link.open_channel()
        channel.on_closed(lambda _reason: link.drop())
        expires = max(MIN_EXPIRES, self._decoder.expires or DEFAULT_EXPIRES)
        arguments: dict[str, Any] = {"x-expires": int(expires * 1000)}
        if self._quorum:
            arguments["x-queue-type"] = "quorum"
        self._is_declared = True
        yield channel.declare(
            Declaration("queue_declare", {"queue": self._queue, "durable": True, "arguments": arguments})
        )
        # The broker ends the consumer when the queue is deleted under it; the next link declares
        # it again.
        yield channel.consume(self._queue, PREFETCH, self._delivered, on_cancelled=link.drop)
        self._channel = channel

    def connection_up(self) -> None:
        """Let tasks be published."""
        self._let_publish.run()
        if self._was_up:
            self._receiver.resumed(self._are_replies_lost)
        self._was_up = True
        self._attempted.fire(None)

    def _is_kept(self, link: AmqpLink) -> Generator[Deferred[Any], Any, bool]:
        """Whether the broker still has the reply queue."""
        # A channel of its own: the broker closes it where there is no such queue.
        channel: AmqpChannel = yield link.open_channel()
        try:
            yield channel.declare(Declaration("queue_declare", {"queue": self._queue, "passive": True}))
        except Refused:
            return False
        channel.close()
        return True

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Wait for the next link, unless the broker refused the password."""
        self._channel = None
        self._let_publish.stop()
        self._delivered_tag = self._acked_tag = 0
        self._reason = reason
        if isinstance(reason, BrokerAccessRefused):
            self._waiters.fail(reason)
        self._attempted.fire(None)

    def _unavailable(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"no connection to receive results: {self._reason or 'it takes too long'}")

    def _delivered(self, delivery: Delivery) -> None:
        self._delivered_tag = delivery.delivery_tag
        if self._delivered_tag - self._acked_tag >= ACK_EVERY:
            self._ack()
        elif self._ack_timer is None and self.connected:
            self._ack_timer = self._reactor.callLater(ACK_DELAY, self._ack_in_time)
        if len(self._watched) > CROWD and self._channel is not None:
            self._channel.rest(REST)
        task_id = delivery.correlation_id
        try:
            meta = self._decoder.decode(
                delivery.body,
                delivery.content_type,
                delivery.content_encoding,
                delivery.headers,
                is_expected=task_id in self._watched,
            )
        except ResultError as error:
            if task_id is None:
                self._warnings.warn("a reply without a correlation id is dropped", str(error))
            else:
                self._receiver.reply_failed(task_id, error)
            return
        # As Celery's own client does: a caller may have chosen another correlation id.
        if isinstance(meta.get("task_id"), str):
            task_id = meta["task_id"]
        if task_id is None:
            self._warnings.warn("a reply that names no task is dropped")
        else:
            self._receiver.state_changed(task_id, meta)

    def _ack_in_time(self) -> None:
        self._ack_timer = None
        if self._delivered_tag > self._acked_tag:
            self._ack()

    def _ack(self) -> None:
        if self._channel is not None:
            self._channel.ack(self._delivered_tag)
            self._acked_tag = self._delivered_tag
