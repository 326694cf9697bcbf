"""What canvases and results by id need of a client's transport."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.appview import backend_class
from twistedcelery.canvas_encoder import CanvasEncoder

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.encoder import Encoder
    from twistedcelery.transports.interface import Publisher, ResultSource, ResultStore

__all__ = ["Wires"]

_log = Logger()


class Wires:
    """A client's transport, and what is made of it when it is needed.

    :param encoder: has the recorder that takes the messages
    :param publisher: takes messages
    :param results: brings results
    :param store: answers questions about results; ``None``: nobody keeps them
    """

    def __init__(
        self,
        app: Celery,
        encoder: Encoder,
        publisher: Publisher,
        results: ResultSource,
        store: ResultStore | None,
    ) -> None:
        self._app = app
        self._encoder = encoder
        self.publisher = publisher
        self.results = results
        self.store = store

    @cached_property
    def canvas(self) -> CanvasEncoder:
        """Encodes canvases; it finalizes the application."""
        return CanvasEncoder(self._app, self._encoder, self.results.reply_to)

    @cached_property
    def in_order(self) -> bool:
        """Whether Celery looks at the members of a group one after another."""
        return not backend_class(self._app).supports_native_join

    def close(self) -> Deferred[None]:
        """Close the store: the others are their owner's to close. What goes wrong is logged."""
        if self.store is None:
            return succeed(None)
        return maybeDeferred(self.store.close).addErrback(_log_failure)


def _log_failure(failure: Failure) -> None:
    # Nobody can do anything about it any more, but it must be seen.
    _log.failure("disconnecting left something behind", failure=failure)
