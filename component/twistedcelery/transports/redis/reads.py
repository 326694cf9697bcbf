"""Reading many keys, again after a lost connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerUnavailable
from twistedcelery.transports.connection import Connection, State
from twistedcelery.transports.redis.link import RedisLink

__all__ = ["Reads"]

_log = Logger()

#: Keys that one MGET asks for. Redis does nothing else while it answers.
_AT_ONCE = 100


class Reads:
    """Reads the values of keys over one connection, whose user this is.

    The keys of one reactor turn are asked for together.

    :param reactor: for ``callLater``
    :param found: called with a key and its value, once for each key that has one
    """

    def __init__(self, reactor: Clock, found: Callable[[bytes, bytes], None]) -> None:
        self._reactor = reactor
        self._found = found
        # Wanted, and not asked for over the present link.
        self._wanted: dict[bytes, None] = {}
        self._asked: dict[bytes, None] = {}
        self._turn: Timer | None = None
        self._link: RedisLink | None = None
        self._connection: Connection[RedisLink]

    def use(self, connection: Connection[RedisLink]) -> Reads:
        """Read over a connection."""
        self._connection = connection
        return self

    @property
    def connected(self) -> bool:
        """Whether the connection is there."""
        return self._connection.state is State.UP

    def start(self) -> None:
        """Connect, though there is nothing to read yet."""
        self._connection.start()

    def add(self, key: bytes) -> None:
        """Read a key, now or when there is a connection."""
        self._asked.pop(key, None)
        self._wanted[key] = None
        if self._turn is None and self._link is not None:
            self._turn = self._reactor.callLater(0, self._ask)

    def discard(self, key: bytes) -> None:
        """The value is of no use any more."""
        self._wanted.pop(key, None)
        self._asked.pop(key, None)

    def close(self) -> Deferred[None]:
        """Close the connection."""
        self._stop()
        return self._connection.close()

    # The connection's user

    def prepare(self, link: RedisLink) -> Deferred[None]:
        """Nothing needs preparing."""
        self._link = link
        return succeed(None)

    def connection_up(self) -> None:
        """Ask for what is wanted."""
        self._ask()

    def connection_lost(self, _reason: BrokerUnavailable) -> None:
        """What was not answered is asked for again."""
        self._stop()
        self._link = None
        self._wanted = {**self._asked, **self._wanted}
        self._asked = {}

    def _stop(self) -> None:
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        self._turn = None

    def _ask(self) -> None:
        self._turn = None
        link = self._link
        if link is None:
            return
        keys, self._wanted = list(self._wanted), {}
        self._asked.update(dict.fromkeys(keys))
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            link.ask(("MGET", *some)).addCallbacks(
                self._answered, self._failed, callbackArgs=(some, link), errbackArgs=(some, link)
            )

    def _answered(self, values: Sequence[bytes | None], keys: Sequence[bytes], link: RedisLink) -> None:
        if link is not self._link:
            return
        for key, value in zip(keys, values, strict=True):
            if key in self._asked:
                del self._asked[key]
                if value is not None:
                    self._found(key, value)

    def _failed(self, failure: Failure, keys: Sequence[bytes], link: RedisLink) -> None:
        if link is not self._link or failure.check(BrokerUnavailable):
            # The connection tells of its end itself.
            return
        for key in keys:
            self._asked.pop(key, None)
        # States still come by subscription; what was stored before is not seen.
        _log.error("Redis does not let stored results be read: {error}", error=failure.value)
