"""Answers questions about results by Celery's own Redis backend, run without blocking.

The backend's client asks over a connection of ours, and the backend's code runs again once the reply
is there: see `twistedcelery.encoding.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from kombu.exceptions import ContentDisallowed
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twistedcelery.encoding.replay import Replay
from twistedcelery.errors import (
    BrokerUnavailable,
    ReplyNotAccepted,
    ReplyUndecodable,
    ResultBackendUnavailable,
    TwistedCeleryError,
)
from twistedcelery.transports.connection import Refused, caused
from twistedcelery.transports.decoding import MAX_REPLY_BYTES
from twistedcelery.transports.redis.link import Command
from twistedcelery.transports.redis.offline_backend import OfflineRedisBackend
from twistedcelery.transports.redis.recorded_client import RecordedClient, Tape
from twistedcelery.transports.redis.requests import Requests
from twistedcelery.transports.store import BackendStore

__all__ = ["RedisStore"]

T = TypeVar("T")


class RedisStore(BackendStore):
    """A `twistedcelery.transports.interface.ResultStore` on Celery's Redis result backend.

    :param app: the Celery application
    :param max_bytes: what a state may have
    """

    def __init__(self, app: Any, max_bytes: int = MAX_REPLY_BYTES) -> None:
        super().__init__(app)
        self._replay = Replay(self._ask)
        # Each reply decides what follows.
        client = RecordedClient(Tape(self._replay.step, None))
        self._backend = OfflineRedisBackend(self._view, client, max_bytes)
        self._requests: Requests

    def use(self, requests: Requests) -> RedisStore:
        """Ask over a connection."""
        self._requests = requests
        return self

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.close`."""
        return self._requests.close()

    def _run(self, work: Callable[[Any], T]) -> Deferred[T]:
        return self._replay.run(partial(self._work, work))

    def _work(self, work: Callable[[Any], T]) -> T:
        try:
            return work(self._backend.celery)
        except TwistedCeleryError:
            raise
        except ContentDisallowed as error:
            raise ReplyNotAccepted(f"its content type is not accepted: {error}") from error
        except Exception as error:
            # The client raises errors of this package alone. The rest is decoding: anything may be stored.
            raise ReplyUndecodable(f"not a result as Celery stores it: {error!r}") from error

    def _ask(self, commands: Sequence[Command]) -> Deferred[Any]:
        """:return: fires with the reply to the last command"""
        return self._requests.ask(commands).addCallbacks(lambda replies: replies[-1], _unavailable)


def _unavailable(failure: Failure) -> Failure:
    error = failure.value
    if isinstance(error, BrokerUnavailable):
        text = f"no connection to the result backend: {error}"
    elif isinstance(error, Refused):
        text = f"the result backend refuses: {error}"
    else:
        return failure
    return Failure(caused(ResultBackendUnavailable(text), error))
