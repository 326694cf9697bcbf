"""Answers questions about results by Celery's blocking code in a thread.

The thread and its result backend are the store's own, and start with the first question: its work may
take long, and must not delay the states that another thread brings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from kombu.exceptions import ContentDisallowed, SerializationError
from kombu.utils.uuid import uuid
from twisted.internet.defer import Deferred

from twistedcelery.errors import ResultBackendUnavailable, TwistedCeleryError
from twistedcelery.transports.store import BackendStore
from twistedcelery.transports.threads.backend import OwnBackend
from twistedcelery.transports.threads.failures import Redactor, reply_error
from twistedcelery.transports.threads.thread import DedicatedThread, ThreadReactor

__all__ = ["ThreadedStore"]

T = TypeVar("T")


class ThreadedStore(BackendStore):
    """Asks one result backend, one question after another, in one thread.

    :param app: the Celery application, whose ``result_backend`` is used
    :param timeout: seconds for an answer, questions before it included
    """

    def __init__(self, app: Any, reactor: ThreadReactor, timeout: float) -> None:
        super().__init__(app)
        self._timeout = timeout
        self._redactor = Redactor(app)
        self._backend: Any = None
        self._thread = DedicatedThread(reactor, "twistedcelery-store", finish=self._drop)

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.close`.

        A thread that hangs in a driver is left behind, as that of
        `twistedcelery.transports.threads.results.ThreadedResults`.
        """
        return self._thread.stop()

    def _run(self, work: Callable[[Any], T]) -> Deferred[T]:
        return self._thread.call(partial(self._work, work), self._timeout, _unavailable)

    # In the thread

    def _work(self, work: Callable[[Any], T]) -> T:
        try:
            if self._backend is None:
                self._backend = OwnBackend(self._view, uuid()).make()
            return work(self._backend)
        except (TwistedCeleryError, NotImplementedError):
            raise
        except (ContentDisallowed, SerializationError, ValueError, LookupError, TypeError) as error:
            raise reply_error(error, self._redactor) from self._redactor.cause(error)
        except Exception as error:
            # Drivers choose what they raise when they have no connection.
            self._drop()
            raise ResultBackendUnavailable(
                f"the result backend cannot be reached: {self._redactor.text(error)}"
            ) from self._redactor.cause(error)

    def _drop(self) -> None:
        backend, self._backend = self._backend, None
        if backend is None:
            return
        # It failed already, or is not needed any more.
        with contextlib.suppress(Exception):
            backend.process_cleanup()
            # Backends have no common way to close what they opened.
            client = vars(backend).get("client")
            for opened in (client, getattr(client, "connection_pool", None)):
                close = getattr(opened, "disconnect", None) or getattr(opened, "close", None)
                if callable(close):
                    close()


def _unavailable() -> ResultBackendUnavailable:
    return ResultBackendUnavailable("the result backend did not answer in the time allowed")
