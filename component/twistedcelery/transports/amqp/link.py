"""Holds one live AMQP connection. The only module that imports pika.

pika's Twisted adapter does the protocol, but for the frames of messages, which `wire` writes and
reads. Where its Twisted wrapper of a channel makes a Deferred or a queue for each event, pika's own
channel is used, which takes plain callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pika import ConnectionParameters, PlainCredentials, exceptions
from pika.adapters.twisted_connection import TwistedChannel, TwistedProtocolConnection
from pika.credentials import ExternalCredentials
from pika.spec import Basic, Exchange, Queue
from twisted.internet import defer, error
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure

from twistedcelery._deferreds import settle
from twistedcelery._types import Clock
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, EncodeError
from twistedcelery.transports.amqp.brokers import AmqpParameters
from twistedcelery.transports.amqp.declare import Declaration
from twistedcelery.transports.amqp.delivery import Delivery
from twistedcelery.transports.amqp.silence import SilenceWatch
from twistedcelery.transports.amqp.wire import DeliveryReader, encode_properties, publish_frames
from twistedcelery.transports.connection import Refused, caused, is_limit
from twistedcelery.transports.resting import Resting

__all__ = ["AmqpChannel", "AmqpLink", "open_link"]


def open_link(
    endpoint: IStreamClientEndpoint, parameters: AmqpParameters, reactor: Clock, answer_time: float
) -> defer.Deferred[AmqpLink]:
    """Connect and shake hands.

    :param answer_time: seconds within which a link to a silent broker ends
    :return: fires with the link once the broker has accepted it. It fails with
        `BrokerAccessRefused` or another `BrokerUnavailable`. Cancelling it drops the connection;
        there is no other limit on the time it takes.
    """

    def opened(protocol: _Protocol) -> defer.Deferred[AmqpLink]:
        return protocol.opened.addCallback(lambda _: AmqpLink(protocol, reactor, answer_time))

    def translate(failure: Failure) -> Failure:
        if failure.check(defer.CancelledError, BrokerUnavailable):
            return failure
        return Failure(_connection_error(failure.value))

    # mypy cannot see that zope interfaces leave out self.
    connect: Callable[[Factory], defer.Deferred[_Protocol]] = endpoint.connect  # type: ignore[assignment]
    connecting = connect(_ProtocolFactory(parameters, reactor))
    return connecting.addCallback(opened).addErrback(translate)


class AmqpLink:
    """An open AMQP connection; it ends once, and is not used again."""

    def __init__(self, protocol: _Protocol, reactor: Clock, answer_time: float) -> None:
        self._protocol = protocol
        self._closing = False
        self._asking: defer.Deferred[AmqpChannel | None] | None = None
        self._watch = SilenceWatch(self, reactor, answer_time)
        self.on_lost(lambda _: self._watch.stop())

    def on_lost(self, callback: Callable[[BrokerUnavailable], None]) -> None:
        """Call back once, when the connection has ended on either side."""
        self._protocol.when_lost(callback)

    def allow_silence(self, condition: Callable[[], bool]) -> None:
        """Do not take the broker for gone while a condition holds."""
        self._watch.is_normal = condition

    @property
    def received(self) -> int:
        """How many bytes have come."""
        return self._protocol.received

    def ask(self) -> None:
        """Ask the broker for something that changes nothing, on a channel that is kept for that."""
        if self._asking is None:
            self._asking = self.open_channel().addErrback(_link_lost)
        else:
            self._asking.addCallback(_ask)

    def give_up(self, why: str) -> None:
        """End the connection now, since the broker is gone."""
        self._protocol.abort(BrokerUnavailable(why))

    def on_blocked(self, blocked: Callable[[str], None], unblocked: Callable[[], None]) -> None:
        """Call back each time the broker stops, and begins again, to read what is published.

        RabbitMQ does so under its memory and disk alarms, on links on which something was published.

        :param blocked: called with the broker's reason
        """
        connection = self._protocol._impl  # noqa: SLF001  # pika's plain connection: see the top of this file
        connection.add_on_connection_blocked_callback(lambda _, frame: blocked(frame.method.reason))
        connection.add_on_connection_unblocked_callback(lambda _, frame: unblocked())

    def open_channel(self) -> defer.Deferred[AmqpChannel]:
        """Open a channel. Fails with `BrokerUnavailable` when the connection is lost first."""
        try:
            opening: defer.Deferred[TwistedChannel] = self._protocol.channel()
        except exceptions.AMQPError as closed:
            return defer.fail(_connection_error(closed))
        return opening.addCallbacks(
            lambda channel: AmqpChannel(channel, self._protocol),
            lambda failure: Failure(_connection_error(failure.value)),
        )

    def close(self) -> None:
        """Begin to close in good order; `on_lost` calls back at the end. What was written before goes
        out first.
        """
        self._closing = True
        try:
            self._protocol.close()
        except exceptions.ConnectionWrongStateError:
            # The broker is closing it already.
            self.abort()

    def drop(self) -> None:
        """End the connection, since something on it has failed; does nothing while it closes in
        good order.
        """
        if not self._closing:
            self.abort()

    def abort(self) -> None:
        """End the connection now."""
        self._protocol.abort()


def _ask(channel: AmqpChannel | None) -> AmqpChannel | None:
    if channel is not None:
        channel.ask()
    return channel


def _link_lost(failure: Failure) -> None:
    """`AmqpLink.on_lost` calls back."""
    failure.trap(BrokerUnavailable)


class AmqpChannel:
    """A channel: publish with confirms, consume, declare."""

    def __init__(self, channel: TwistedChannel, protocol: _Protocol) -> None:
        self._calls = channel
        self._protocol = protocol
        # pika's plain channel behind its Twisted wrapper: see the top of this file.
        self._channel = channel._channel  # noqa: SLF001  # see above
        #: The longest frame that both sides take, in bytes.
        self._frame_max: int = self._channel.connection.params.frame_max
        self._consumer_tag = ""

    def on_closed(self, callback: Callable[[Refused | BrokerUnavailable], None]) -> None:
        """Call back once, when the broker has closed the channel, or the connection has ended."""
        self._calls.on_closed.addBoth(lambda reason: callback(_channel_error(reason)))

    def ask(self) -> None:
        """Have the broker answer."""
        self._call("basic_qos", {"prefetch_count": 0}).addErrback(_link_lost)

    def _fail_when_closed(self, ready: defer.Deferred[None]) -> None:
        self.on_closed(lambda reason: settle(ready, Failure(reason)))

    # Publishing

    def confirm_publishing(
        self,
        on_confirm: Callable[[int, bool, bool], None],
        on_return: Callable[[str | None, str, str, str], None],
    ) -> defer.Deferred[None]:
        """Make the broker confirm each message (RabbitMQ's publisher confirms).

        :param on_confirm: called as ``on_confirm(tag, multiple, taken)``; the first message
            published on the channel has tag 1
        :param on_return: called as ``on_return(correlation_id, exchange, routing_key, reason)`` for a
            mandatory message that reached no queue, before its confirmation
        """
        ready: defer.Deferred[None] = defer.Deferred()

        def confirm(frame: Any) -> None:
            method = frame.method
            on_confirm(method.delivery_tag, method.multiple, isinstance(method, Basic.Ack))

        def returned(_channel: Any, method: Any, properties: Any, _body: bytes) -> None:
            on_return(
                properties.correlation_id,
                method.exchange,
                method.routing_key,
                f"{method.reply_code} {method.reply_text}",
            )

        self._channel.add_on_return_callback(returned)
        self._channel.confirm_delivery(confirm, lambda _frame: ready.callback(None))
        self._fail_when_closed(ready)
        return ready

    def publish(self, message: OutgoingMessage) -> None:
        """Write a message.

        :raises EncodeError: when the broker cannot take its properties or headers
        :raises BrokerUnavailable: when the channel is not open
        """
        if not self._channel.is_open:
            raise BrokerUnavailable("the channel is closed")
        try:
            properties = encode_properties(message, self._protocol.userid)
            frames = publish_frames(message, properties, self._channel.channel_number, self._frame_max)
        except Exception as problem:
            # py-amqp names no common class for what it cannot encode.
            raise EncodeError(
                f"the message to {message.exchange or message.routing_key!r} has no AMQP form; "
                f"check its options and headers: {problem or type(problem).__name__}"
            ) from problem
        self._protocol.transport.write(frames)

    # Consuming

    def consume(
        self,
        queue: str,
        prefetch: int | None,
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[], None],
    ) -> defer.Deferred[None]:
        """Consume a queue.

        :param prefetch: how many deliveries may be unacknowledged at once, until `ack`; ``None``:
            the broker forgets what it has delivered
        :param on_cancelled: called when the broker ends the consumer, for example since the queue
            was deleted
        """
        ready: defer.Deferred[None] = defer.Deferred()
        self._channel.add_on_cancel_callback(lambda _frame: on_cancelled())
        self._fail_when_closed(ready)

        def begin(_: object) -> None:
            self._protocol.deliveries.consume(self._channel.channel_number, on_delivery)
            self._consumer_tag = self._channel.basic_consume(
                queue, _not_by_pika, auto_ack=prefetch is None, callback=lambda _frame: ready.callback(None)
            )

        def refused(failure: Failure) -> None:
            settle(ready, Failure(_channel_error(failure)))

        self._call("basic_qos", {"prefetch_count": prefetch or 0}).addCallback(begin).addErrback(refused)
        return ready

    def ack(self, delivery_tag: int) -> None:
        """Acknowledge every delivery up to this one. Does nothing on a closed channel: the broker
        delivers them again.
        """
        if self._channel.is_open:
            self._channel.basic_ack(delivery_tag, multiple=True)

    def rest(self, seconds: float) -> None:
        """Read nothing more on the link for a moment. Does nothing while it rests already."""
        self._protocol.rest(seconds)

    # Declaring

    def declare(self, declaration: Declaration) -> defer.Deferred[Any]:
        """Carry out one declaration.

        :return: fails with `Refused` where the broker refuses it (which also closes the
            channel), with `EncodeError` where it has no AMQP form, or with `BrokerUnavailable`
        """
        try:
            _encode(declaration)
        except Exception as problem:
            # pika encodes when it waits for the answer already, and would keep every later call
            # waiting as well. It names no common class for what it cannot encode.
            text = f"{declaration.method} has no AMQP form: {problem or type(problem).__name__}"
            return defer.fail(caused(EncodeError(text), problem))
        return self._call(declaration.method, declaration.arguments)

    def close(self) -> None:
        """Close the channel, if it is open."""
        if self._channel.is_open:
            self._channel.close()

    def delete_consumed_queue(self, queue: str) -> defer.Deferred[Any]:
        """Stop consuming, and delete the queue. One that does not exist is no error."""
        if self._channel.is_open:
            self._channel.basic_cancel(self._consumer_tag)
        return self._call("queue_delete", {"queue": queue})

    def _call(self, method: str, arguments: Mapping[str, Any]) -> defer.Deferred[Any]:
        if not self._channel.is_open:
            # While it closes, pika would keep the call, and fail it unhandled.
            return defer.fail(BrokerUnavailable("the channel is closed"))
        calling: defer.Deferred[Any] = getattr(self._calls, method)(**arguments)
        return calling.addErrback(lambda failure: Failure(_channel_error(failure)))


def _encode(declaration: Declaration) -> None:
    arguments = dict(declaration.arguments)
    if "exchange_type" in arguments:
        arguments["type"] = arguments.pop("exchange_type")
    _METHODS[declaration.method](**arguments).encode()


_METHODS: Mapping[str, Callable[..., Any]] = {
    "exchange_bind": Exchange.Bind,
    "exchange_declare": Exchange.Declare,
    "queue_bind": Queue.Bind,
    "queue_declare": Queue.Declare,
    "queue_purge": Queue.Purge,
}


def _not_by_pika(*delivery: Any) -> None:
    """For pika, which gets no deliveries."""


class _Protocol(TwistedProtocolConnection):
    """pika's protocol, with the reason why a handshake failed, and a way to drop it."""

    def __init__(self, parameters: ConnectionParameters, reactor: Clock) -> None:
        super().__init__(parameters, custom_reactor=reactor)
        # Of a certificate only the broker knows the user.
        self.userid: str = getattr(parameters.credentials, "username", "")
        self._reason: BaseException | None = None
        self._lost_callbacks: list[Callable[[BrokerUnavailable], None]] = []
        self._lost: BrokerUnavailable | None = None
        self._given_up: BrokerUnavailable | None = None
        self._resting = Resting(reactor)
        self.opened: defer.Deferred[None] = defer.Deferred(canceller=lambda _: self.abort())
        self.ready.addCallbacks(lambda _: self.opened.callback(None), self._not_opened)
        self.deliveries = DeliveryReader(super().dataReceived)
        self._impl._adapter_disconnect_stream = self._disconnect_stream  # noqa: SLF001  # see there

    @property
    def received(self) -> int:
        return int(self._impl.bytes_received)

    def dataReceived(self, data: bytes) -> None:
        # pika checks this to see whether the broker is alive; it does not get all frames.
        self._impl.bytes_received += len(data)
        self.deliveries.feed(data)

    def rest(self, seconds: float) -> None:
        self._resting.begin(self.transport, seconds)

    def _not_opened(self, failure: Failure) -> None:
        settle(self.opened, Failure(_connection_error(self._reason or failure.value)))

    def _disconnect_stream(self) -> None:
        # As pika does it, what was written would have to go out first. A peer that sends no heartbeats
        # does not read either, and the link would never end.
        if isinstance(self._impl._error, exceptions.AMQPHeartbeatTimeout):  # noqa: SLF001  # only there
            self.abort()
        else:
            self.transport.loseConnection()

    # pika hands the reason to this method and then forgets it.
    def _on_connection_failed(self, connection: Any, reason: BaseException | None = None) -> None:
        self._reason = self._reason or reason
        super()._on_connection_failed(connection, reason)

    def _on_connection_closed(self, connection: Any, reason: BaseException) -> None:
        self._reason = self._reason or reason
        super()._on_connection_closed(connection, reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # What the broker said when it closed; pika's adapter overwrites it with "connection done".
        self._reason = self._impl._error  # noqa: SLF001  # see above
        super().connectionLost(reason)
        self._resting.end()
        self._lost = self._given_up or _connection_error(self._reason or reason.value)
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            callback(self._lost)

    def when_lost(self, callback: Callable[[BrokerUnavailable], None]) -> None:
        if self._lost is not None:
            callback(self._lost)
        else:
            self._lost_callbacks.append(callback)

    def abort(self, reason: BrokerUnavailable | None = None) -> None:
        self._given_up = self._given_up or reason
        if self.transport is not None:
            self.transport.abortConnection()


class _ProtocolFactory(Factory):
    noisy = False

    def __init__(self, parameters: AmqpParameters, reactor: Clock) -> None:
        self._parameters = ConnectionParameters(
            virtual_host=parameters.virtual_host,
            credentials=(
                ExternalCredentials()
                if parameters.external
                else PlainCredentials(parameters.userid, parameters.password)
            ),
            heartbeat=parameters.heartbeat,
            client_properties=dict(parameters.client_properties),
            **parameters.limits,
        )
        self._reactor = reactor

    def buildProtocol(self, addr: IAddress | None) -> _Protocol:
        return _Protocol(self._parameters, self._reactor)


def _connection_error(reason: BaseException | None) -> BrokerUnavailable:
    """Translate pika's or Twisted's error of a connection."""
    if isinstance(reason, exceptions.ConnectionClosed):
        # 530 is also what RabbitMQ says past a limit of connections, which passes.
        refused = reason.reply_code in (403, 530) and not is_limit(reason.reply_text)
        text = f"the broker closed the connection: {reason.reply_code} {reason.reply_text}"
    elif isinstance(reason, exceptions.AuthenticationError | exceptions.ProbableAuthenticationError):
        refused, text = True, "the broker refused the user name or the password"
    elif isinstance(reason, exceptions.ProbableAccessDeniedError):
        refused, text = True, "the broker refused the virtual host"
    elif isinstance(reason, exceptions.StreamLostError | error.ConnectionDone):
        refused, text = False, "the connection to the broker was lost"
    else:
        refused, text = False, str(reason) or type(reason).__name__
    return caused(BrokerAccessRefused(text) if refused else BrokerUnavailable(text), reason)


def _channel_error(reason: Any) -> Refused | BrokerUnavailable:
    """Translate why a channel ended: refused by the broker, or lost with its connection."""
    exception = reason.value if isinstance(reason, Failure) else reason
    if isinstance(exception, Refused | BrokerUnavailable):
        return exception
    if isinstance(exception, exceptions.ChannelClosedByBroker):
        text = f"the broker refused: {exception.reply_code} {exception.reply_text}"
        return caused(Refused(text), exception)
    return _connection_error(exception)
