"""One canvas on its way: published as a whole, and followed to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.access import Sources
from twistedcelery.errors import NoResultBackend, TwistedCeleryError
from twistedcelery.gathering import all_done
from twistedcelery.join import Join

if TYPE_CHECKING:
    from twistedcelery.access import ResultAccess
    from twistedcelery.call import TaskDeferred
    from twistedcelery.canvas_encoder import CanvasEncoder, EncodedCanvas
    from twistedcelery.message import OutgoingMessage
    from twistedcelery.transports.interface import Publisher

__all__ = ["CanvasWires", "Sending"]

_log = Logger()


class CanvasWires(Sources, Protocol):
    """What a canvas goes out over."""

    @property
    def canvas(self) -> CanvasEncoder:
        """Encodes it."""

    @property
    def publisher(self) -> Publisher:
        """Takes its messages."""


class Sending:
    """The messages of one canvas on their way, and its result on the way back.

    :param call: hears how it ends
    :param end: called before the call is ended; false if it has ended already
    """

    def __init__(
        self,
        wires: CanvasWires,
        call: TaskDeferred,
        encoded: EncodedCanvas,
        end: Callable[[TaskDeferred, Sending], bool],
    ) -> None:
        self._end = end
        self._wires = wires
        self._call = call
        self._encoded = encoded
        self._publications: list[Deferred[None]] = []
        self._unconfirmed = 0
        self._sent = False
        self.join = Join(encoded.result, self._joined, call.update, in_order=wires.in_order)

    def start(self, access: ResultAccess, publish_timeout: float) -> None:
        """Publish as soon as no state will be missed and the result backend is prepared."""
        reactor = access.reactor
        limits = [message.confirm_timeout for message in self._encoded.messages if message.confirm_timeout]
        allowed = max(limits, default=publish_timeout)
        deadline = reactor.seconds() + allowed
        waiting = [access.listen(self.join)] if self.join.members else []
        if self._encoded.preparations and self._wires.store is not None:
            waiting.append(self._wires.store.prepare(self._encoded.preparations))
        ready = [one for one in waiting if one is not None]
        if not ready:
            self._publish(None)
            return

        def publish(_: object) -> None:
            self._publish(max(0.0, deadline - reactor.seconds()))

        def failed(failure: Failure) -> None:
            if self._end(self._call, self):
                self._call.fail_published(failure)

        for one in ready:
            one.addTimeout(allowed, reactor, lambda failure, _: failure)  # its own reason says more
        all_done(ready).addCallbacks(publish, failed)

    def withdraw(self) -> bool:
        """Take back what has not left.

        :return: whether the broker may have any of it
        """
        for publication in self._publications:
            publication.cancel()
        return self._sent

    def _publish(self, left: float | None) -> None:
        if self.join.over:
            # Cancelled before anything was sent.
            return
        messages = self._encoded.messages
        self._unconfirmed = len(messages)
        for message in messages:
            if self.join.over:
                # An earlier one was refused at once.
                return
            publication = self._wires.publisher.publish(
                message if left is None else replace(message, confirm_timeout=left)
            )
            self._publications.append(publication)
            publication.addCallbacks(self._published, self._not_published, errbackArgs=(message,))
        if not messages:
            self._all_published()

    def _published(self, _: object) -> None:
        self._sent = True
        self._unconfirmed -= 1
        if not self._unconfirmed:
            self._all_published()

    def _all_published(self) -> None:
        if self.join.over:
            return
        self._call.mark_published()
        if self.join.over:
            # Whoever waited for that has cancelled the call.
            return
        self.join.check()
        if not self.join.over and not self._wires.results.available and self._end(self._call, self):
            self._call.fail(NoResultBackend(f"{self._call.task_name} was sent; {NoResultBackend.__doc__}"))

    def _not_published(self, failure: Failure, message: OutgoingMessage) -> None:
        if message.task_id is None:
            # The event informs monitors; the task itself is published, or fails, on its own.
            _log.warn("a task-sent event could not be published: {error}", error=failure.value)
            self._published(None)
            return
        if failure.check(CancelledError):
            return
        self._sent = True
        if not self._end(self._call, self):
            return
        self.withdraw()
        if len(self._encoded.messages) > 1 and isinstance(failure.value, TwistedCeleryError):
            name = message.headers.get("task", "a task")
            error = type(failure.value)(f"{name} [{message.task_id}]: {failure.value}")
            error.__cause__ = failure.value
            failure = Failure(error)
        self._call.fail_published(failure)

    def _joined(self, outcome: Any) -> None:
        if not self._end(self._call, self):
            return
        result = self._encoded.result
        if result.members is None:
            self._call.meta = result.meta
        self._call.finish_joined(outcome)
