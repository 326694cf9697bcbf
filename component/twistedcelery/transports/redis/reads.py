"""Reads the values of many keys together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerUnavailable, Disconnected
from twistedcelery.transports.redis.requests import Requests

__all__ = ["Reads"]

_log = Logger()

#: Keys that one MGET asks for. Redis does nothing else while it answers.
_AT_ONCE = 100


class Reads:
    """Reads the values of keys over a connection for `Requests`.

    The keys of one reactor turn are asked for together, and so are those that come before the answer.

    :param reactor: for ``callLater``
    :param requests: without a time limit; it is closed here
    :param found: called with a key and its value, once for each key that has one
    """

    def __init__(self, reactor: Clock, requests: Requests, found: Callable[[bytes, bytes], None]) -> None:
        self._reactor = reactor
        self._requests = requests
        self._found = found
        self._wanted: dict[bytes, None] = {}
        self._asked: dict[bytes, None] = {}
        self._turn: Timer | None = None
        self._asking = False

    def start(self) -> None:
        """Connect, though there is nothing to read yet."""
        self._requests.start()

    def add(self, key: bytes) -> None:
        """Read a key, now or when there is a connection."""
        self._asked.pop(key, None)
        self._wanted[key] = None
        self._plan()

    def discard(self, key: bytes) -> None:
        """The value is not needed any more."""
        self._wanted.pop(key, None)
        self._asked.pop(key, None)

    def close(self) -> Deferred[None]:
        """Close the connection."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._wanted.clear()
        return self._requests.close()

    def _plan(self) -> None:
        if self._wanted and self._turn is None and not self._asking:
            self._turn = self._reactor.callLater(0, self._ask)

    def _ask(self) -> None:
        self._turn = None
        keys = list(self._wanted)
        if not keys:
            return
        self._asked, self._wanted, self._asking = self._wanted, {}, True
        pieces = [keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE)]
        self._requests.ask([("MGET", *piece) for piece in pieces]).addCallbacks(
            self._answered, self._failed, callbackArgs=(keys,)
        ).addBoth(self._ended)

    def _answered(self, replies: Sequence[Sequence[bytes | None]], keys: Sequence[bytes]) -> None:
        for key, value in zip(keys, chain.from_iterable(replies), strict=True):
            if key in self._asked:
                del self._asked[key]
                if value is not None:
                    self._found(key, value)

    def _failed(self, failure: Failure) -> None:
        if failure.check(BrokerUnavailable):
            # Redis refused the password, which may be put right before the next attempt.
            self._wanted = {**self._asked, **self._wanted}
        elif not failure.check(Disconnected):
            # States still come by subscription; what was stored before is not seen.
            _log.error("Redis does not let stored results be read: {error}", error=failure.value)
        self._asked = {}

    def _ended(self, _: object) -> None:
        self._asking = False
        self._plan()
