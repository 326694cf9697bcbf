"""The transport for every broker kombu knows and every result backend Celery knows, on their own code.

At most four dedicated threads serve all calls of a client together: one publishes, one waits for
results, one consumes further queues, and one asks the result backend; each starts when it is first
used. `publisher`, `results`, `subscriber` and `store` are on the reactor's side; `sender`, `fetcher`
and `listener` run in the threads of the first three. `thread` carries work from one side to the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery.backends.base import DisabledBackend

from twistedcelery.encoding.app_view import backend_class
from twistedcelery.transports.interface import Transport
from twistedcelery.transports.threads.publisher import ThreadedPublisher
from twistedcelery.transports.threads.results import ThreadedResults

if TYPE_CHECKING:
    from twistedcelery.transports.interface import ReplyReceiver, ResultStore, Setup, Subscriber

__all__ = ["ThreadsTransport"]


class ThreadsTransport(Transport):
    """Celery's and kombu's own client code, in threads."""

    def publisher(self, setup: Setup) -> ThreadedPublisher:
        """Publish in one thread, which starts with the first message."""
        return ThreadedPublisher(setup.app, setup.reactor, setup.timeout)

    def subscriber(self, setup: Setup) -> Subscriber:
        """Consume in one thread, which starts with the first subscription."""
        from twistedcelery.transports.threads.subscriber import ThreadedSubscriber

        return ThreadedSubscriber(setup.app, setup.reactor)

    def results(self, setup: Setup, receiver: ReplyReceiver) -> ThreadedResults:
        """Wait for results in one thread, which starts with the first task that is watched."""
        return ThreadedResults(setup.app, setup.reactor, receiver)

    def store(self, setup: Setup) -> ResultStore | None:
        """Ask in one thread, which starts with the first question."""
        cls = backend_class(setup.app)
        if issubclass(cls, DisabledBackend) or cls.__name__ == "RPCBackend":
            return None
        from twistedcelery.transports.threads.store import ThreadedStore

        return ThreadedStore(setup.app, setup.reactor, setup.timeout)
