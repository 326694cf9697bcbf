"""Receives states and results from Celery's Redis result backend, pushed.

A worker stores each state under the task's key, and publishes it on a channel of that name. One
connection is subscribed for all tasks that are waited for; a second one reads what was stored
before the subscription, at first and after a lost connection.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters, close_all
from twistedcelery._types import Clock, Timer
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    ResultBackendUnavailable,
    ResultError,
    TwistedCeleryError,
)
from twistedcelery.transports.connection import Connection, Refused, RefusedForNow, State, caused
from twistedcelery.transports.interface import ReplyReceiver
from twistedcelery.transports.redis.link import SubscriberLink
from twistedcelery.transports.redis.offline_backend import OfflineRedisBackend
from twistedcelery.transports.redis.requests import Reads
from twistedcelery.transports.resting import CROWD, REST

__all__ = ["RedisResults", "Subscriptions"]

_log = Logger()

#: Seconds after which subscriptions end that are not needed any more.
UNSUBSCRIBE_AFTER = 0.05

#: Channels in one command. Redis does nothing else meanwhile.
AT_ONCE = 500


class RedisResults:
    """A `twistedcelery.transports.interface.ResultSource` on Celery's Redis result backend.

    :param reactor: for time
    :param receiver: gets each state
    :param backend: knows keys and payloads
    :param give_up_after: seconds that Redis may be away before the tasks that wait for it fail
        with `twistedcelery.errors.ResultBackendUnavailable`
    """

    available = True
    reply_to: str | None = None

    def __init__(
        self,
        reactor: Clock,
        receiver: ReplyReceiver,
        backend: OfflineRedisBackend,
        give_up_after: float = 30.0,
    ) -> None:
        self._reactor = reactor
        self._receiver = receiver
        self._backend = backend
        self._give_up_after = give_up_after
        self._watched: dict[bytes, _Watch] = {}
        # What was read, until all that was published before it has been delivered.
        self._found: dict[bytes, bytes] = {}
        self._closed = False
        self._reason: BrokerUnavailable | None = None
        self._away: Timer | None = None
        self._subscriptions: Subscriptions
        self._reads: Reads

    def use(self, subscriptions: Subscriptions, reads: Reads) -> RedisResults:
        """Get states over two connections, whose owner this is."""
        self._subscriptions = subscriptions
        self._reads = reads
        return self

    @property
    def connected(self) -> bool:
        """Whether a state stored now would be seen at once."""
        return self._subscriptions.connected and not self._closed

    def watch(self, task_id: str) -> Deferred[None] | None:
        """As `twistedcelery.transports.interface.ResultSource.watch`."""
        if self._closed:
            return fail(Disconnected("the connection for results was closed by disconnect()"))
        try:
            key = self._backend.key(task_id)
        except TwistedCeleryError as error:
            return fail(error)
        watch = self._watched.get(key)
        if watch is None:
            watch = self._watched[key] = _Watch(task_id)
            self._reads.start()
            self._subscriptions.add(key)
            if not self._subscriptions.connected:
                self._begin_to_give_up()
        if watch.placed:
            return None
        return watch.waiters.wait(lambda: self._unavailable("it takes too long"))

    def forget(self, task_id: str) -> None:
        """As `twistedcelery.transports.interface.ResultSource.forget`."""
        if not self._watched:
            return
        key = self._backend.key(task_id)
        if self._watched.pop(key, None) is not None:
            self._unlisten(key)

    def _unlisten(self, key: bytes) -> None:
        self._subscriptions.discard(key)
        self._reads.discard(key)
        self._found.pop(key, None)

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultSource.close`."""
        self._closed = True
        self._stop_giving_up()
        watched, self._watched = self._watched, {}
        closed = close_all(self._subscriptions, self._reads)
        for watch in watched.values():
            watch.waiters.fail(Disconnected("the client was disconnected before the task was sent"))
        return closed

    # The owner of the subscriptions

    def subscribed(self, key: bytes) -> None:
        """No later state is missed; an earlier one may be there already."""
        watch = self._watched.get(key)
        if watch is not None:
            self._found.pop(key, None)
            self._reads.add(key)
            watch.placed = True
            watch.waiters.fire(None)

    def message(self, key: bytes, payload: bytes) -> None:
        """A state was stored. What was read is older, or the same."""
        if len(self._watched) > CROWD:
            self._subscriptions.rest()
        self._reads.discard(key)
        self._found.pop(key, None)
        self._deliver(key, payload)

    def found(self, key: bytes, payload: bytes) -> None:
        """A state was read. Earlier ones may still be on their way over the other connection."""
        self._found[key] = payload
        self._subscriptions.catch_up(lambda: self._caught_up(key, payload))

    def _caught_up(self, key: bytes, payload: bytes) -> None:
        if self._found.get(key) is payload:
            del self._found[key]
            self._deliver(key, payload)

    def refused(self, key: bytes, error: Refused) -> None:
        """The task cannot be watched."""
        watch = self._watched.pop(key, None)
        if watch is not None:
            self._reads.discard(key)
            self._end(watch, f"Redis does not allow the subscription: {error}")

    def up(self) -> None:
        """The tasks that wait may go on waiting."""
        self._reason = None
        self._stop_giving_up()

    def lost(self, reason: BrokerUnavailable) -> None:
        """Wait for the next link, unless Redis refused the password."""
        self._reason = reason
        self._found.clear()
        if isinstance(reason, BrokerAccessRefused):
            self._end_all(lambda watch: not watch.placed)
        elif self._watched:
            self._begin_to_give_up()

    def _deliver(self, key: bytes, payload: bytes) -> None:
        watch = self._watched.get(key)
        if watch is None:
            return
        try:
            meta = self._backend.decode(payload)
        except ResultError as error:
            self.forget(watch.task_id)
            self._receiver.reply_failed(watch.task_id, error)
            return
        self._receiver.state_changed(watch.task_id, meta)

    # Giving up

    def _begin_to_give_up(self) -> None:
        if self._away is None and not self._closed:
            self._away = self._reactor.callLater(self._give_up_after, self._give_up)

    def _stop_giving_up(self) -> None:
        if self._away is not None:
            self._away.cancel()
            self._away = None

    def _give_up(self) -> None:
        self._away = None
        self._end_all(lambda _watch: True)

    def _end_all(self, which: Callable[[_Watch], bool]) -> None:
        ended = [key for key, watch in self._watched.items() if which(watch)]
        for key in ended:
            watch = self._watched.pop(key, None)
            if watch is not None:
                self._unlisten(key)
                self._end(watch, "")

    def _end(self, watch: _Watch, why: str) -> None:
        if watch.waiters:
            watch.waiters.fail(self._unavailable(why))
        elif watch.placed:
            self._receiver.reply_failed(watch.task_id, self._unavailable(why))

    def _unavailable(self, why: str) -> ResultBackendUnavailable:
        text = f"no connection to the result backend: {self._reason or why}"
        return caused(ResultBackendUnavailable(text), self._reason)


class _Watch:
    """A watched task.

    :ivar placed: whether it may be published without a state being missed
    """

    __slots__ = ("placed", "task_id", "waiters")

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.placed = False
        self.waiters: Waiters[None] = Waiters()


class Subscriptions:
    """Keeps a set of channels subscribed over one connection, whose user this is.

    The channels of one reactor turn are subscribed together. A subscription that is not needed any more costs
    nothing, so those end together, too.

    :param reactor: for ``callLater``
    :param owner: gets the messages
    """

    def __init__(self, reactor: Clock, owner: RedisResults) -> None:
        self._reactor = reactor
        self._owner = owner
        self._channels: dict[bytes, None] = {}
        # What of them is to be subscribed at the end of this turn; and what else is to be unsubscribed.
        self._wanted: dict[bytes, None] = {}
        self._unwanted: dict[bytes, None] = {}
        self._turn: Timer | None = None
        self._later: Timer | None = None
        self._link: SubscriberLink | None = None
        self._connection: Connection[SubscriberLink]

    def use(self, connection: Connection[SubscriberLink]) -> Subscriptions:
        """Subscribe over a connection."""
        self._connection = connection
        return self

    @property
    def connected(self) -> bool:
        """Whether the connection is there."""
        return self._connection.state is State.UP

    def add(self, channel: bytes) -> None:
        """Subscribe, at the end of the turn or when there is a connection."""
        self._channels[channel] = None
        self._unwanted.pop(channel, None)
        self._connection.start()
        if self._link is not None:
            self._wanted[channel] = None
            if self._turn is None:
                self._turn = self._reactor.callLater(0, self._subscribe_all)

    def discard(self, channel: bytes) -> None:
        """Unsubscribe, soon."""
        self._channels.pop(channel, None)
        if channel in self._wanted:
            # It was not sent yet.
            del self._wanted[channel]
            return
        if self._link is None:
            return
        self._unwanted[channel] = None
        if self._later is None:
            self._later = self._reactor.callLater(UNSUBSCRIBE_AFTER, self._unsubscribe_all)

    def rest(self) -> None:
        """Read nothing for a moment, since very much comes."""
        if self._link is not None:
            self._link.rest(REST)

    def catch_up(self, then: Callable[[], None]) -> None:
        """Call back once every message that was published before now has been delivered.

        It is not called when the connection is lost first.
        """
        if self._link is not None:
            self._link.ask(("PING",)).addCallbacks(lambda _: then(), lambda _failure: None)

    def close(self) -> Deferred[None]:
        """Close the connection."""
        self._stop()
        return self._connection.close()

    def _stop(self) -> None:
        self._wanted.clear()
        self._unwanted.clear()
        for timer in (self._turn, self._later):
            if timer is not None:
                timer.cancel()
        self._turn = self._later = None

    # The connection's user

    def prepare(self, link: SubscriberLink) -> Deferred[None]:
        """Subscribe to everything on a new link."""
        self._link = link
        link.on_message(self._owner.message)
        return succeed(None)

    def connection_up(self) -> None:
        """Subscribe to everything on a new link."""
        if self._turn is not None:
            self._turn.cancel()
        self._wanted = dict(self._channels)
        self._subscribe_all()
        self._owner.up()

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Wait for the next link."""
        self._link = None
        self._stop()
        self._owner.lost(reason)

    def _subscribe_all(self) -> None:
        self._turn = None
        wanted, self._wanted = list(self._wanted), {}
        for start in range(0, len(wanted), AT_ONCE):
            assert self._link is not None
            self._subscribe(self._link, wanted[start : start + AT_ONCE])

    def _subscribe(self, link: SubscriberLink, channels: list[bytes]) -> None:
        def subscribed(_: object) -> None:
            for channel in channels:
                if link is self._link and channel in self._channels:
                    self._owner.subscribed(channel)

        def failed(failure: Failure) -> None:
            # After a lost connection `connection_up` subscribes again.
            if isinstance(failure.value, RefusedForNow):
                link.abort()
            elif not isinstance(failure.value, Refused):
                return
            elif len(channels) > 1:
                # Because of one of them, perhaps.
                for channel in channels:
                    self._subscribe(link, [channel])
            elif channels[0] in self._channels:
                del self._channels[channels[0]]
                self._owner.refused(channels[0], failure.value)

        link.subscribe(*channels).addCallbacks(subscribed, failed)

    def _unsubscribe_all(self) -> None:
        self._later = None
        unwanted, self._unwanted = list(self._unwanted), {}
        for start in range(0, len(unwanted), AT_ONCE):
            assert self._link is not None
            self._link.unsubscribe(*unwanted[start : start + AT_ONCE]).addErrback(
                lambda failure: _log.debug("subscriptions were left: {error}", error=failure.value)
            )
